"""Search spaces: what they say of mistakes, what they come to, and what counts as the same space."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.core.configs import PAPER_RECIPE, CAMixerSRConfig, RoutingConfig, SwinIRConfig, Task
from harness.core.errors import UserError
from harness.models import preset_config
from harness.search import SearchSpace, find_space, preset_names, read_space
from harness.search.proposals import count_networks, decode, encode_values, grid
from harness.search.space import Dimension, encode, load_space
from harness.search.space import presets_dir as find_presets_dir
from harness.search.yaml_lines import parse_yaml

SPACE = """\
scale: 4
data: {train: demo, validation: demo}
model: {groups: [1], window: 8}
training: {steps: 2}
dimensions:
  model.channels: {low: 8, high: 24, step: 4}
  routing.gamma: {choices: [0.0, 0.5, 1.0]}
objectives: [psnr_db, macs]
"""


def read(tmp_path: Path, text: str, overrides: dict[str, Any] | None = None) -> SearchSpace:
    path = tmp_path / "space.yaml"
    path.write_text(text, encoding="utf-8")
    return read_space(path, overrides)


def replaced(old: str, new: str) -> str:
    assert old in SPACE
    return SPACE.replace(old, new)


# What is written, the line that the error names, and words of the error: what is wrong, and what is allowed.
MISTAKES: dict[str, tuple[str, int | None, list[str]]] = {
    "unknown section": (SPACE + "budgets: {networks: 3}\n", 9, ["budgets: unknown key", "budget", "objectives"]),
    "unknown key in data": (SPACE + "data2: 1\n", 9, ["data2: unknown key"]),
    "unknown key in sampler": (SPACE + "sampler:\n  nmae: tpe\n", 10, ["sampler.nmae: unknown key", "name, startup"]),
    "unknown key in budget": (
        SPACE + "budget: {trials: 3}\n",
        9,
        ["budget.trials: unknown key", "networks, steps, seconds"],
    ),
    "unknown key in profile": (SPACE + "profile: {device: x}\n", 9, ["profile.device: unknown key", "devices"]),
    "unknown key in routing": (SPACE + "routing: {gama: 1}\n", 9, ["routing.gama: unknown key", "gamma, policy"]),
    "unknown key in model": (replaced("groups", "group"), 3, ["model.group: unknown key", "groups", "window"]),
    "unknown key in training": (
        replaced("{steps: 2", "{steps: 2, lr: 1"),
        4,
        ["training.lr: unknown key", "learning_rate"],
    ),
    "unknown key in a dimension": (replaced("step: 4", "stepp: 4"), 6, ["channels.stepp: unknown key", "choices, low"]),
    "unknown key in an objective": (
        replaced("[psnr_db, macs]", "\n  - psnr_db\n  - {metric: macs, dir: up}"),
        10,
        ["objectives.1.dir: unknown key", "metric, direction"],
    ),
    "missing section": (replaced("objectives: [psnr_db, macs]\n", ""), None, ["objectives: required key is missing"]),
    "key twice": (SPACE + "scale: 2\n", 9, ["'scale' stands twice"]),
    "key twice, deep": (replaced("step: 4", "step: 4, step: 2"), 6, ["'step' stands twice"]),
    "key that is no text": (SPACE + "3: 4\n", 9, ["key 3", "expected text"]),
    "scale": (replaced("scale: 4", "scale: 5"), 1, ["scale: Input should be 2, 3 or 4 (got 5)"]),
    "scale in model": (replaced("{groups", "{scale: 4, groups"), 3, ["model.scale", "top level"]),
    "routing in model": (replaced("{groups", "{routing: {}, groups"), 3, ["model.routing", "top level"]),
    "task": (SPACE + "task: video\n", 9, ["task: Input should be 'classic' or 'odi' (got 'video')"]),
    "task in training": (replaced("{steps: 2", "{task: odi, steps: 2"), 4, ["training.task", "top level"]),
    "task as a dimension": (
        replaced("model.channels: {low: 8, high: 24, step: 4}", "training.task: {choices: [odi]}"),
        6,
        ["training.task: no such setting"],
    ),
    "task of a baseline": (
        SPACE + "baseline_training: {task: odi}\n",
        9,
        ["baseline_training.task: baselines train on the same images"],
    ),
    "protocol of another task": (
        replaced("{train: demo", "{protocol: light, train: demo") + "task: odi\n",
        2,
        ["data.protocol: task odi is scored by latitude"],
    ),
    "text for a number": (replaced("low: 8", "low: small"), 6, ["channels.low: expected a number (got 'small')"]),
    "list for a number": (replaced("low: 8", "low: [8]"), 6, ["channels.low: expected a number (got [8])"]),
    "text for a list": (replaced("[psnr_db, macs]", "psnr_db"), 8, ["objectives: expected a list (got 'psnr_db')"]),
    "list for settings": (replaced("{steps: 2}", "[2]"), 4, ["training: expected settings, `key: value` (got [2])"]),
    "empty section": (replaced(" {steps: 2}", ""), 4, ["training: expected settings"]),
    "text for settings": (SPACE + "sampler: tpe\n", 9, ["sampler: expected settings, `key: value` (got 'tpe')"]),
    "number for an objective": (replaced("[psnr_db, macs]", "[3]"), 8, ["objectives.0: expected settings"]),
    "model value": (replaced("groups: [1]", "groups: [0]"), 3, ["model.groups", "greater than or equal to 1 (got 0)"]),
    "model type": (replaced("groups: [1]", "groups: 1"), 3, ["model.groups: expected a list (got 1)"]),
    "model family": (replaced("{groups", "{family: rdn, groups"), 3, ["model.family: expected camixersr, swinir or"]),
    "nothing to search": (
        replaced("{groups: [1], window: 8}", "{family: bicubic}").replace("model.channels", "training.seed"),
        3,
        ["model.family: bicubic has nothing to search"],
    ),
    "training value": (replaced("steps: 2", "steps: 0"), 4, ["training.steps", "greater than or equal to 1 (got 0)"]),
    "training steps missing": (replaced("steps: 2", "batch_size: 2"), 4, ["`steps` is missing", "recipe: paper"]),
    "training steps only as a dimension": (
        replaced("steps: 2", "batch_size: 2").replace(
            "dimensions:", "dimensions:\n  training.steps: {choices: [1, 2]}"
        ),
        4,
        ["`steps` is missing", "baselines"],
    ),
    "recipe": (replaced("steps: 2", "recipe: mine"), 4, ["training.recipe: unknown recipe 'mine'", "'paper'"]),
    "protocol": (
        replaced("{train: demo", "{protocol: best, train: demo"),
        2,
        ["data.protocol: unknown", "light", "odi"],
    ),
    "device": (SPACE + "profile: {devices: [gpu]}\n", 9, ["profile.devices: unknown device 'gpu'", "cuda:INDEX"]),
    "device with a size and without": (
        SPACE + 'profile: {devices: [cpu, "cpu:1/32x48"]}\n',
        9,
        ["profile.devices: cpu:1 stands with a size and without; give each a size"],
    ),
    "device twice": (SPACE + 'profile: {devices: [cpu, "cpu:1"]}\n', 9, ["profile.devices", "twice"]),
    "size with one side": (
        SPACE + "profile: {latency_input_size: [8]}\n",
        9,
        ["profile.latency_input_size.1", "missing"],
    ),
    "budget": (SPACE + "budget: {networks: 0}\n", 9, ["budget.networks: Input should be greater than or equal to 1"]),
    "seed": (SPACE + "seed: -1\n", 9, ["seed: Input should be greater than or equal to 0 (got -1)"]),
    "sampler": (SPACE + "sampler: {name: bayes}\n", 9, ["sampler.name", "'tpe'", "'grid'", "(got 'bayes')"]),
    "baseline": (SPACE + "baselines: [bicubic, edsr]\n", 9, ["baselines.1", "'swinir-light'", "(got 'edsr')"]),
    "no dimensions": (
        SPACE.partition("dimensions:")[0] + "dimensions: {}\nobjectives: [macs]\n",
        5,
        ["dimensions: Dictionary should have at least 1 item"],
    ),
    "dimension without section": (
        replaced("model.channels", "channels"),
        6,
        ["dimensions.channels", "model., training., compression. or routing."],
    ),
    "dimension that is no setting": (
        replaced("model.channels", "model.channel"),
        6,
        ["model.channel: no such setting", "model.channels, model.window"],
    ),
    "training dimension that is no setting": (
        replaced("model.channels", "training.rate"),
        6,
        ["training.rate: no such setting", "training.learning_rate"],
    ),
    "routing dimension that is no setting": (
        replaced("routing.gamma", "routing.share"),
        7,
        ["routing.share: no such setting; allowed: routing.gamma, routing.policy"],
    ),
    "scale as a dimension": (replaced("model.channels", "model.scale"), 6, ["model.scale: no such setting"]),
    "family as a dimension": (replaced("model.channels", "model.family"), 6, ["model.family: no such setting"]),
    "routing of a network that does not route": (
        replaced("{groups: [1], window: 8}", "{family: swinir}").replace("model.channels", "training.seed"),
        7,
        ["routing.gamma: no such setting"],
    ),
    "dimension value": (
        replaced("low: 8", "low: 0"),
        6,
        ["model.channels: Input should be greater than or equal to 4 (got 0)"],
    ),
    "dimension choice": (
        replaced("{low: 8, high: 24, step: 4}", "{choices: [8, big]}"),
        6,
        ["model.channels", "(got 'big')"],
    ),
    "dimension choice that is no list": (
        replaced("model.channels: {low: 8, high: 24, step: 4}", "model.groups: {choices: [1, 2]}"),
        6,
        ["model.groups: expected a list (got 1)"],
    ),
    "range and choices": (
        replaced("step: 4", "choices: [8]"),
        6,
        ["model.channels: expected either `choices`, or `low` and `high`"],
    ),
    "neither range nor choices": (replaced("{low: 8, high: 24, step: 4}", "{}"), 6, ["expected either `choices`"]),
    "half a range": (replaced("high: 24, step: 4", ""), 6, ["a range needs `low` ≤ `high`"]),
    "range upside down": (replaced("high: 24", "high: 4"), 6, ["a range needs `low` ≤ `high`"]),
    "high that is never reached": (replaced("high: 24", "high: 26"), 6, ["26 is never reached"]),
    "step of nothing": (replaced("step: 4", "step: 0"), 6, ["`step` must be > 0"]),
    "log with step": (replaced("step: 4", "step: 4, log: true"), 6, ["`log` needs `low` > 0 and goes without `step`"]),
    "log from zero": (
        replaced("low: 8, high: 24, step: 4", "low: 0, high: 24, log: true"),
        6,
        ["`log` needs `low` > 0"],
    ),
    "no choice": (replaced("[0.0, 0.5, 1.0]", "[]"), 7, ["`choices` needs at least one value"]),
    "choice twice": (replaced("[0.0, 0.5, 1.0]", "[0.5, 0.5]"), 7, ["`choices` holds a value twice"]),
    "γ out of range": (replaced("[0.0, 0.5, 1.0]", "[0.0, 1.5]"), 7, ["less than or equal to 1 (got 1.5)"]),
    "γ without end": (
        replaced("{choices: [0.0, 0.5, 1.0]}", "{low: 0.0, high: 1.0}"),
        7,
        ["needs `choices` or a `step`"],
    ),
    "γ under threshold": (
        SPACE + "routing: {policy: threshold}\n",
        7,
        ["routing.policy is threshold, which ignores γ"],
    ),
    "schedule as a policy": (
        replaced("routing.gamma: {choices: [0.0, 0.5, 1.0]}", "routing.policy: {choices: [fixed, schedule]}"),
        7,
        ["'probability' or 'threshold' (got 'schedule')", "calibrated on trained networks: see `calibrate`"],
    ),
    "detail as a policy": (
        replaced("routing.gamma: {choices: [0.0, 0.5, 1.0]}", "routing.policy: {choices: [detail]}"),
        7,
        ["(got 'detail')", "calibrated on trained networks: see `calibrate`"],
    ),
    "unknown key in calibrate": (SPACE + "calibrate:\n  share: 0.25\n", 10, ["calibrate.share: unknown key", "shares"]),
    "share to calibrate at": (
        SPACE + "calibrate:\n  shares:\n  - 0.25\n  - 1.5\n",
        12,
        ["calibrate.shares.1", "less than or equal to 1 (got 1.5)"],
    ),
    "share of nothing": (SPACE + "calibrate: {shares: [0]}\n", 9, ["calibrate.shares.0", "greater than 0 (got 0)"]),
    "share that is none": (SPACE + "calibrate: {shares: [.nan]}\n", 9, ["calibrate.shares.0", "(got nan)"]),
    "share twice": (SPACE + "calibrate: {shares: [0.1, 0.10]}\n", 9, ["calibrate.shares: the same share stands twice"]),
    "no share": (SPACE + "calibrate: {shares: []}\n", 9, ["calibrate.shares", "at least 1 item"]),
    "one share": (SPACE + "calibrate: {shares: 0.25}\n", 9, ["calibrate.shares: expected a list (got 0.25)"]),
    "policy to calibrate": (
        SPACE + "calibrate: {policy: fixed}\n",
        9,
        ["calibrate.policy", "'detail' or 'schedule' (got 'fixed')"],
    ),
    "images to calibrate on": (SPACE + "calibrate: {images: 0}\n", 9, ["calibrate.images", "(got 0)"]),
    "crop to calibrate on": (SPACE + "calibrate: {crop: 8}\n", 9, ["calibrate.crop", "equal to 16 (got 8)"]),
    "calibrate as a number": (
        SPACE + "calibrate: 0.25\n",
        9,
        ["calibrate: expected settings, `key: value` (got 0.25)"],
    ),
    "calibrating what does not route": (
        replaced("{groups: [1], window: 8}", "{family: swinir, num_heads: 2}")
        .replace("model.channels", "model.embed_dim")
        .replace("  routing.gamma: {choices: [0.0, 0.5, 1.0]}\n", "")
        + "calibrate: {}\n",
        8,
        ["calibrate: swinir does not route"],
    ),
    "schedule as a setting": (SPACE + "routing: {policy: schedule}\n", 9, ["routing.policy", "(got 'schedule')"]),
    "condition on a later dimension": (
        replaced("step: 4", "step: 4, when: {model.window: [8]}").replace(
            "objectives", "  model.window: {choices: [4, 8]}\nobjectives"
        ),
        6,
        ["when.model.window: expected an earlier dimension: none"],
    ),
    "condition on itself": (
        replaced("step: 4", "step: 4, when: {model.channels: [8]}"),
        6,
        ["expected an earlier dimension"],
    ),
    "condition on nothing known": (
        replaced("objectives", "  model.offsets: {choices: [true, false], when: {model.width: [8]}}\nobjectives"),
        8,
        ["when.model.width: expected an earlier dimension: model.channels"],
    ),
    "condition on γ": (
        replaced("objectives", "  model.offsets: {choices: [true, false], when: {routing.gamma: [0.5]}}\nobjectives"),
        8,
        ["expected an earlier dimension: model.channels"],
    ),
    "condition on a value that does not exist": (
        replaced("objectives", "  model.offsets: {choices: [true, false], when: {model.channels: [9]}}\nobjectives"),
        8,
        ["when.model.channels: 9 is not a value of that dimension"],
    ),
    "condition without a list": (
        replaced("objectives", "  model.offsets: {choices: [true, false], when: {model.channels: 8}}\nobjectives"),
        8,
        ["when.model.channels: expected a list (got 8)"],
    ),
    "condition for γ": (replaced("1.0]}", "1.0], when: {model.channels: [8]}}"), 7, ["take no condition"]),
    "unknown metric": (replaced("psnr_db, macs", "psnr, macs"), 8, ["unknown metric 'psnr'", "psnr_db, ssim"]),
    "metric twice": (replaced("psnr_db, macs", "macs, macs"), 8, ["the same metric stands twice"]),
    "metric without device": (
        replaced("psnr_db, macs", "macs/cpu:1"),
        8,
        ["'macs/cpu:1' names a device", "latency_ms"],
    ),
    "metric of a device that is not measured": (
        replaced("psnr_db, macs", "psnr_db, latency_ms/cpu:2"),
        8,
        ["objectives.1: 'latency_ms/cpu:2' names a device", "profile.devices: cpu:1"],
    ),
    "direction": (
        replaced("macs]", "{metric: macs, direction: up}]"),
        8,
        ["objectives.1.direction", "'minimize' or 'maximize' (got 'up')"],
    ),
    "constraint without bound": (
        SPACE + "constraints:\n  - macs <= many\n",
        10,
        ["'macs <= many'", "character 9: expected a number"],
    ),
    "constraint operator": (SPACE + "constraints: [macs < 3]\n", 9, ["'macs < 3'", "character 6: expected <= or >="]),
    "constraint metric": (SPACE + "constraints: [flops <= 3]\n", 9, ["unknown metric 'flops'", "macs"]),
    "constraint on a device that is not measured": (
        SPACE + "constraints: [params <= 3, latency_ms/cpu:7 <= 3]\n",
        9,
        ["constraints.1: 'latency_ms/cpu:7'"],
    ),
    "constraint as text": (SPACE + "constraints: macs <= 3\n", 9, ["constraints: expected a list"]),
    "queue outside the dimension": (
        SPACE + "enqueue:\n  - {model.channels: 8}\n  - {model.channels: 9}\n",
        11,
        ["enqueue.1.model.channels: 9 is not in the dimension"],
    ),
    "queue of an unknown dimension": (
        SPACE + "enqueue: [{model.window: 8}]\n",
        9,
        ["enqueue.0.model.window: no such dimension", "model.channels, routing.gamma"],
    ),
    "queue as settings": (SPACE + "enqueue: {model.channels: 8}\n", 9, ["enqueue: expected a list"]),
    "endless grid": (
        replaced("objectives", "  training.learning_rate: {low: 1e-4, high: 1e-2, log: true}\nobjectives")
        + "sampler: {name: grid}\n",
        8,
        ["training.learning_rate: the grid sampler needs `choices` or a `step`"],
    ),
    "not YAML": (SPACE + "sampler: {name: tpe\n", 10, ["not YAML"]),
    "a tab": (SPACE + "\tseed: 1\n", 9, ["not YAML", "cannot start any token"]),
    "an object": (SPACE + "seed: !!python/object:os.system x\n", 9, ["not YAML", "could not determine a constructor"]),
    "two documents": (SPACE + "---\nscale: 4\n", 9, ["not YAML", "another document"]),
    "an alias inside its anchor": (SPACE + "enqueue: &a [*a]\n", None, ["an alias stands inside its own anchor"]),
    "an empty file": ("", None, ["expected a mapping of settings at the top level, got NoneType"]),
    "only comments": ("# nothing\n", None, ["got NoneType"]),
    "a list": ("- scale: 4\n", None, ["expected a mapping of settings at the top level, got list"]),
    "a sentence": ("hello\n", None, ["expected a mapping of settings at the top level, got str"]),
}


class TestMistakes:
    def test_the_space_without_a_mistake_loads(self, tmp_path: Path) -> None:
        assert read(tmp_path, SPACE).scale == 4

    @pytest.mark.parametrize("mistake", MISTAKES)
    def test_names_file_line_what_is_wrong_and_what_is_allowed(self, tmp_path: Path, mistake: str) -> None:
        text, line, words = MISTAKES[mistake]
        with pytest.raises(UserError) as found:
            read(tmp_path, text)
        message = str(found.value)
        place = f"{tmp_path / 'space.yaml'}:{line}: " if line else f"{tmp_path / 'space.yaml'}: "
        assert message.startswith(place)
        for word in words:
            assert word in message
        assert "\n" not in message
        assert "valid tuple" not in message
        assert "instance of" not in message

    def test_a_file_that_cannot_be_read(self, tmp_path: Path) -> None:
        (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01")
        with pytest.raises(UserError, match=r"binary\.yaml cannot be read"):
            read_space(tmp_path / "binary.yaml")
        with pytest.raises(UserError, match="cannot be read"):
            read_space(tmp_path)

    def test_a_space_that_does_not_exist_lists_the_presets(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"no search space 'fast'.*light_x4, odi_x4, quickstart"):
            find_space("fast")


class TestOverrides:
    def test_win_over_the_file(self, tmp_path: Path) -> None:
        given = {
            "budget.networks": 3,
            "dimensions.model.channels": {"choices": [8]},
            "training.batch_size": 2,
            "seed": 4,
        }
        space = read(tmp_path, SPACE, given)
        assert space.budget.networks == 3
        assert space.dimensions["model.channels"].choices == (8,)
        assert (space.training_config().steps, space.training_config().batch_size) == (2, 2)
        assert space.seed == 4

    def test_mistakes_name_the_command_line(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"^command line: budget\.networks: expected a whole number \(got 'many'\)"):
            read(tmp_path, SPACE, {"budget.networks": "many"})
        with pytest.raises(UserError, match=r"^command line: training\.lr: unknown key; allowed: steps"):
            read(tmp_path, SPACE, {"training.lr": 1})
        with pytest.raises(UserError, match=r"--set scale\.x: scale holds no settings"):
            read(tmp_path, SPACE, {"scale.x": 1})

    def test_mistakes_elsewhere_still_name_the_line(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"space\.yaml:9: seed"):
            read(tmp_path, SPACE + "seed: -1\n", {"budget.networks": 3})


class TestDimensions:
    @pytest.mark.parametrize(
        ("dimension", "values"),
        [
            (Dimension(choices=([1], [2, 2])), ([1], [2, 2])),
            (Dimension(low=24, high=64, step=4), tuple(range(24, 65, 4))),
            (Dimension(low=1, high=3), (1, 2, 3)),
            (Dimension(low=0.0, high=1.0, step=0.25), (0.0, 0.25, 0.5, 0.75, 1.0)),
            (Dimension(low=0, high=0.3, step=0.1), (0.0, 0.1, 0.2, 0.3)),
            (Dimension(low=0.0, high=1.0), None),
            (Dimension(low=1e-4, high=1e-2, log=True), None),
        ],
    )
    def test_values(self, dimension: Dimension, values: tuple[Any, ...] | None) -> None:
        assert dimension.values() == values

    def test_steps_of_a_twentieth_are_exact(self) -> None:
        values = Dimension(low=0.0, high=1.0, step=0.05).values()
        assert values == tuple(round(index / 20, 2) for index in range(21))

    def test_contains(self) -> None:
        assert Dimension(choices=([1, 1], [2])).contains([1, 1])
        assert Dimension(choices=([1, 1], [2])).contains((2,))
        assert not Dimension(choices=([1, 1], [2])).contains([1])
        assert Dimension(low=0.0, high=1.0, step=0.05).contains(0.1 + 0.2)
        assert not Dimension(low=8, high=24, step=4).contains(10)
        assert Dimension(low=0.1, high=0.2).contains(0.15)
        assert not Dimension(low=0.1, high=0.2).contains("0.15")

    def test_exponents_without_a_dot_are_numbers(self, tmp_path: Path) -> None:
        text = replaced("objectives", "  training.learning_rate: {low: 1e-4, high: 1e-2, log: true}\nobjectives")
        assert read(tmp_path, text).dimensions["training.learning_rate"].low == 1e-4

    @pytest.mark.parametrize("choice", [[1, 1], (2, 3), {"name": "cosine"}, 0.25, 3, True, None, "fixed"])
    def test_codes_are_scalars_and_decode_to_the_choice(self, choice: Any) -> None:
        code = encode(choice)
        assert code is None or isinstance(code, bool | int | float | str)
        assert decode(Dimension(choices=("other", choice)), code) == choice
        assert decode(Dimension(choices=("other", choice)), json.loads(json.dumps(code))) == choice


class TestGrid:
    SPACE = (
        replaced("{low: 8, high: 24, step: 4}", "{choices: [8, 12]}").replace(
            "objectives",
            "  model.offsets: {choices: [true, false], when: {model.channels: [12]}}\nobjectives",
        )
        + "sampler: {name: grid}\n"
    )

    def test_holds_every_point_once_and_conditions_only_where_they_hold(self, tmp_path: Path) -> None:
        points = grid(read(tmp_path, self.SPACE))
        expected = [{"model.channels": 8, "routing.gamma": gamma} for gamma in (0.0, 0.5, 1.0)] + [
            {"model.channels": 12, "model.offsets": offsets, "routing.gamma": gamma}
            for offsets in (True, False)
            for gamma in (0.0, 0.5, 1.0)
        ]
        assert sorted(map(str, [sorted(point.items()) for point in points])) == sorted(
            map(str, [sorted(point.items()) for point in expected])
        )

    def test_order_depends_on_the_seed_alone(self, tmp_path: Path) -> None:
        assert grid(read(tmp_path, self.SPACE)) == grid(read(tmp_path, self.SPACE))
        assert grid(read(tmp_path, self.SPACE)) != grid(read(tmp_path, self.SPACE + "seed: 1\n"))

    def test_networks_are_counted_without_routing(self, tmp_path: Path) -> None:
        assert count_networks(read(tmp_path, self.SPACE)) == 3
        assert count_networks(read(tmp_path, SPACE)) == 5
        endless = replaced("objectives", "  training.learning_rate: {low: 1e-4, high: 1e-2}\nobjectives")
        assert count_networks(read(tmp_path, endless)) is None
        assert count_networks(read(tmp_path, SPACE), limit=4) is None


class TestConfigs:
    def test_dimensions_win_over_settings(self, tmp_path: Path) -> None:
        space = read(tmp_path, SPACE)
        assert space.model_config_for({"model.channels": 12}) == CAMixerSRConfig(groups=(1,), window=8, channels=12)
        assert space.training_config({"training.batch_size": 3}).batch_size == 3
        assert space.training_config().steps == 2

    def test_the_paper_recipe_takes_changes(self, tmp_path: Path) -> None:
        space = read(tmp_path, replaced("steps: 2", "recipe: paper, batch_size: 8"))
        assert space.training_config() == PAPER_RECIPE.model_copy(update={"batch_size": 8})

    def test_training_takes_the_seed_of_the_space(self, tmp_path: Path) -> None:
        assert read(tmp_path, SPACE + "seed: 7\n").training_config().seed == 7
        assert read(tmp_path, replaced("steps: 2", "recipe: paper") + "seed: 7\n").training_config().seed == 7

    def test_macs_are_counted_for_720p_unless_told(self, tmp_path: Path) -> None:
        assert read(tmp_path, SPACE).macs_input_size == (180, 320)
        assert read(tmp_path, replaced("scale: 4", "scale: 2")).macs_input_size == (360, 640)
        assert read(tmp_path, SPACE + "profile: {macs_input_size: [9, 8]}\n").macs_input_size == (9, 8)

    def test_devices_are_completed(self, tmp_path: Path) -> None:
        assert read(tmp_path, SPACE + "profile: {devices: [cpu, cuda]}\n").profile.devices == ("cpu:1", "cuda:0")

    def test_devices_carry_runtime_precision_and_size(self, tmp_path: Path) -> None:
        devices = 'profile: {devices: [cpu, "cpu:1/32x48/bf16", "cpu:2/openvino"]}\nconstraints: '
        space = read(tmp_path, SPACE + devices + '["latency_ratio/cpu:1/bf16/32x48 <= 0.5"]\n')
        assert space.profile.devices == ("cpu:1", "cpu:1/bf16/32x48", "cpu:2/openvino")
        (constraint,) = space.parsed_constraints()
        assert (constraint.metric, constraint.bound) == ("latency_ratio/cpu:1/bf16/32x48", 0.5)

    def test_measuring_in_the_process_of_the_search_is_another_study(self, tmp_path: Path) -> None:
        plain = read(tmp_path, SPACE).identity()
        assert read(tmp_path, SPACE + "profile: {process: fresh}\n").identity() == plain
        assert read(tmp_path, SPACE + "profile: {process: shared}\n").identity() != plain

    def test_objectives_take_their_natural_direction(self, tmp_path: Path) -> None:
        space = read(
            tmp_path, replaced("psnr_db, macs", "ssim, latency_ms/cpu:1, {metric: params, direction: maximize}")
        )
        assert [(objective.metric, objective.direction) for objective in space.objectives] == [
            ("ssim", "maximize"),
            ("latency_ms/cpu:1", "minimize"),
            ("params", "maximize"),
        ]

    def test_constraints_are_normalised(self, tmp_path: Path) -> None:
        space = read(tmp_path, SPACE + "constraints: ['macs<=30e9', ' psnr_db  >= 28.0 ']\n")
        assert space.constraints == ("macs <= 3e+10", "psnr_db >= 28")


class TestRoutings:
    def test_every_gamma_for_every_policy(self, tmp_path: Path) -> None:
        text = replaced("objectives", "  routing.policy: {choices: [fixed, probability]}\nobjectives")
        labels = [routing.label() for routing in read(tmp_path, text).routings()]
        assert labels == [f"{policy} γ={gamma}" for policy in ("fixed", "probability") for gamma in ("0", "0.5", "1")]

    def test_threshold_has_one(self, tmp_path: Path) -> None:
        text = replaced("objectives", "  routing.policy: {choices: [threshold, fixed]}\nobjectives")
        labels = [routing.label() for routing in read(tmp_path, text).routings()]
        assert labels == ["threshold", "fixed γ=0", "fixed γ=0.5", "fixed γ=1"]

    def test_without_dimensions_the_setting(self, tmp_path: Path) -> None:
        text = replaced("  routing.gamma: {choices: [0.0, 0.5, 1.0]}\n", "")
        assert read(tmp_path, text).routings() == (RoutingConfig(policy="fixed", gamma=0.5),)
        text += "routing: {policy: probability, gamma: 0.25}\n"
        assert read(tmp_path, text).routings() == (RoutingConfig(policy="probability", gamma=0.25),)

    def test_what_is_suggested_is_among_them(self, tmp_path: Path) -> None:
        space = read(tmp_path, replaced("{choices: [0.0, 0.5, 1.0]}", "{low: 0.0, high: 1.0, step: 0.05}"))
        listed = space.dimensions["routing.gamma"].values()
        assert listed is not None
        assert {space.routing_config({"routing.gamma": gamma}) for gamma in listed} == set(space.routings())
        assert len(space.routings()) == 21


class TestIdentity:
    @pytest.mark.parametrize(
        "change",
        [
            {"description": "other words"},
            {"budget": {"networks": 7, "seconds": 3}},
            {"sampler": {"name": "nsga2"}},
            {"enqueue": [{"model.channels": 8}]},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_does_not_change_with_what_can_be_changed_in_between(self, tmp_path: Path, change: dict[str, Any]) -> None:
        assert read(tmp_path, SPACE, change).identity() == read(tmp_path, SPACE).identity()

    @pytest.mark.parametrize(
        "change",
        [
            {"scale": 2},
            {"seed": 1},
            {"model.window": 4},
            {"training.steps": 3},
            {"data.train": "set5"},
            {"data.protocol": "large"},
            {"routing": {"policy": "probability"}},
            {"dimensions.model.channels": {"choices": [8]}},
            {"objectives": ["psnr_db"]},
            {"constraints": ["macs <= 3"]},
            {"profile": {"min_repeats": 4}},
            {"baselines": ["bicubic"]},
            {"calibrate": {}},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_changes_with_what_results_depend_on(self, tmp_path: Path, change: dict[str, Any]) -> None:
        assert read(tmp_path, SPACE, change).identity() != read(tmp_path, SPACE).identity()

    def test_does_not_depend_on_the_file(self, tmp_path: Path) -> None:
        values = yaml.safe_load(SPACE)
        shuffled = yaml.safe_dump({key: values[key] for key in sorted(values)}, sort_keys=False)
        assert read(tmp_path, "# a comment\n" + shuffled).identity() == read(tmp_path, SPACE).identity()

    @pytest.mark.parametrize("tail", ["", "calibrate: {shares: [0.1, 0.25], policy: schedule}\n"])
    def test_survives_json(self, tmp_path: Path, tail: str) -> None:
        space = read(tmp_path, SPACE + "constraints: [macs <= 3]\nenqueue: [{model.channels: 8}]\n" + tail)
        again = SearchSpace.model_validate_json(space.model_dump_json())
        assert again == space
        assert again.identity() == space.identity()

    def test_is_that_of_before_where_nothing_is_calibrated(self, tmp_path: Path) -> None:
        """Written down before spaces had `calibrate`: studies from then go on."""
        assert read(tmp_path, SPACE).identity() == "632187289142"
        assert "calibrate" not in read(tmp_path, SPACE).model_dump()
        space = read(tmp_path, SPACE + "calibrate: {}\n", {"calibrate": None})  # --set calibrate=null
        assert space.identity() == "632187289142"


class TestPresets:
    def test_are_all_there(self) -> None:
        assert {"quickstart", "light_x2", "light_x4", "large_x4", "odi_x4"} <= set(preset_names())

    @pytest.mark.parametrize("name", preset_names())
    def test_loads_and_every_queued_network_is_valid(self, name: str) -> None:
        space = read_space(find_space(name))
        assert space.description
        assert set(space.baselines) == {"bicubic", "swinir-light"}
        for entry in space.enqueue:
            space.model_config_for(entry)
            space.training_config(entry)
            assert space.routing_config(entry) in space.routings()
            assert set(encode_values(entry)) <= set(space.dimensions)

    @pytest.mark.parametrize(
        ("name", "scale", "protocol", "task"),
        [
            ("light_x2", 2, "light", "classic"),
            ("light_x4", 4, "light", "classic"),
            ("large_x4", 4, "large", "classic"),
            ("odi_x4", 4, "odi", "odi"),
        ],
    )
    def test_the_papers_spaces(self, name: str, scale: int, protocol: str, task: Task) -> None:
        space = read_space(find_space(name))
        assert (space.scale, space.data.protocol, space.task) == (scale, protocol, task)
        values = {key: dimension.values() for key, dimension in space.dimensions.items()}
        assert [tuple(groups) for groups in values["model.groups"] or ()] == [
            (6, 6),
            (4, 4, 4),
            (2, 2, 4, 4),
            (4, 4, 4, 4),
            (4, 4, 6, 6),
            (6, 6, 6, 6),
        ]
        assert values["model.channels"] == tuple(range(24, 65, 4))
        assert values["model.window"] == (8, 16, 32)
        twentieths = tuple(round(index / 20, 2) for index in range(21))
        quarters = (0.0, 0.25, 0.5, 0.75, 1.0)
        assert values["routing.gamma"] in (twentieths, quarters)
        training = space.training_config()
        assert training.is_full_recipe
        assert training == PAPER_RECIPE.model_copy(update={"seed": training.seed, "task": task})
        calibrated = None if space.calibrate is None else space.calibrate.shares
        assert calibrated == ((0.1, 0.25) if name.startswith("light") else None)
        papers = [preset_config(f"camixersr-{size}", scale) for size in "smb"]
        assert [space.model_config_for(entry) for entry in space.enqueue[:3]] == papers

    def test_quickstart_is_what_the_readme_promises(self) -> None:
        space = read_space(find_space("quickstart"))
        assert space.data.train == space.data.validation == "demo"
        assert space.training_config().steps >= 80
        assert space.budget.networks >= 8
        assert space.budget.networks * len(space.routings()) >= 24

    def test_the_family_may_be_swinir(self, tmp_path: Path) -> None:
        text = (
            replaced("{groups: [1], window: 8}", "{family: swinir, num_heads: 2}")
            .replace("model.channels", "model.embed_dim")
            .replace("  routing.gamma: {choices: [0.0, 0.5, 1.0]}\n", "")
        )
        space = read(tmp_path, text)
        assert not space.routes
        assert space.model_config_for({"model.embed_dim": 8}) == SwinIRConfig(embed_dim=8, num_heads=2)

    def test_a_preset_may_be_named_by_its_path(self) -> None:
        assert find_space(str(find_presets_dir() / "quickstart.yaml")) == find_space("quickstart")


def test_baselines_may_have_their_own_rate_but_not_their_own_data_or_steps() -> None:
    text = (find_presets_dir() / "quickstart.yaml").read_text(encoding="utf-8")
    space = load_space(parse_yaml(text, "quickstart.yaml"))
    own, shared = space.baseline_training_config(), space.training_config()
    assert own.learning_rate == 5e-4 != shared.learning_rate
    assert own.model_copy(update={"learning_rate": shared.learning_rate}) == shared
    line = text.splitlines().index(next(row for row in text.splitlines() if row.startswith("baseline_training"))) + 1
    for settings, finding in (
        ("{steps: 4}", "same steps"),
        ("{learning_rat: 1}", "unknown key; allowed: learning_rate"),
        ("{learning_rate: -1}", "greater than 0"),
    ):
        changed = text.replace("{learning_rate: 5.0e-4}", settings)
        with pytest.raises(UserError, match=rf"^space\.yaml:{line}: .*{finding}"):
            load_space(parse_yaml(changed, "space.yaml"))


def test_panoramas_are_trained_and_scored_by_latitude(tmp_path: Path) -> None:
    classic, odi = read(tmp_path, SPACE), read(tmp_path, SPACE + "task: odi\n")
    assert (classic.task, classic.data.protocol, classic.training_config().task) == ("classic", "light", "classic")
    assert (odi.task, odi.data.protocol) == ("odi", "odi")
    assert odi.training_config({"training.steps": 3}).task == "odi"
    assert odi.baseline_training_config().task == "odi"
    assert read(tmp_path, SPACE.replace("{train", "{protocol: odi, train") + "task: odi\n") == odi


def test_the_classic_task_leaves_no_trace_in_identities(tmp_path: Path) -> None:
    """Studies from before there were tasks are classic, and go on."""
    plain, said, odi = (read(tmp_path, SPACE + tail) for tail in ("", "task: classic\n", "task: odi\n"))
    assert plain.identity() == said.identity() != odi.identity()
    assert "task" not in plain.model_dump()
    assert "task" not in plain.training_config().model_dump()
    assert SearchSpace.model_validate_json(odi.model_dump_json()) == odi
