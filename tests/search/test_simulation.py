"""Studies replayed on a table: a synthetic one whose answers are known, and one that the harness has recorded."""

import csv
import io
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.core.configs import StoppingConfig
from harness.core.errors import UserError
from harness.search import SearchSpace, read_space
from harness.search.simulation import Table, compare_searches, replay
from harness.search.table import COLUMNS, network_name, plan_table, read_rows, record_table, whole, write_table
from tests.search.conftest import MakeStudy
from tests.spaces import write_space

GAMMAS = (0.0, 0.5, 1.0)
STEPS = (10, 30, 90)
STOPPING = StoppingConfig(grace_steps=10, factor=3)


SETTINGS: dict[str, Any] = {
    "scale": 4,
    "training": {"steps": 90, "batch_size": 1, "hr_patch_size": 32},
    "dimensions": {
        "model.groups": {"choices": [[1], [1, 1], [2, 2], [3, 3]]},
        "model.channels": {"low": 8, "high": 40, "step": 4},
        "routing.gamma": {"choices": list(GAMMAS)},
    },
    "objectives": ["psnr_db", "macs"],
    "sampler": {"name": "tpe", "startup_networks": 3},
    "baselines": [],
}


@pytest.fixture
def space(tmp_path: Path) -> SearchSpace:
    """Thirty-six networks."""
    return read_space(write_space(tmp_path / "space.yaml", SETTINGS))


def rows(noise: float) -> list[dict[str, str]]:
    """A table in which wide networks are good, deep ones dear and no better; rungs foretell the end but for noise."""
    drawn = np.random.default_rng(0)
    found = []
    for groups, channels, seed in itertools.product([[1], [1, 1], [2, 2], [3, 3]], range(8, 41, 4), (0, 1)):
        network = network_name({"model.groups": groups, "model.channels": channels})
        for step, gamma in itertools.product(STEPS, GAMMAS):
            psnr = 28 + 0.02 * channels + 0.1 * gamma + step / 90 + drawn.normal() * noise * (step < 90)
            macs = channels**2 * sum(groups) * (1 + gamma)
            values = [network, seed, channels, step, gamma, psnr, 0.9, macs, 1.0, 1.0]
            found.append(dict(zip(COLUMNS, map(str, values), strict=True)))
    return found


def test_a_study_without_rungs_spends_whole_trainings(space: SearchSpace) -> None:
    table = Table(rows(0.0), ("psnr_db", "macs"))
    run = replay(space, table, stopping=None, max_steps=900)
    assert [one.steps for one in run] == [90 * (index + 1) for index in range(10)]
    assert [len(one.points) for one in run] == [3 * (index + 1) for index in range(10)]
    assert run[-1].begun == 10


def test_rungs_spend_what_they_are_come_to(space: SearchSpace) -> None:
    table = Table(rows(0.0), ("psnr_db", "macs"))
    run = replay(space, table, stopping=STOPPING, max_steps=900)
    trained, begun = len(run), run[-1].begun
    assert begun > trained
    # Whoever is stopped was so at 10 or at 30 steps.
    assert 90 * trained + 10 * (begun - trained) <= run[-1].steps <= 90 * trained + 30 * (begun - trained)


def test_a_space_that_is_known_ends_the_study(space: SearchSpace) -> None:
    table = Table(rows(0.0), ("psnr_db", "macs"))
    run = replay(space, table, stopping=None, max_steps=10**9)
    assert run[-1].begun <= 36


def test_replays_repeat(space: SearchSpace) -> None:
    table = Table(rows(0.1), ("psnr_db", "macs"))
    one, other = (replay(space, table, stopping=STOPPING, max_steps=900) for _ in range(2))
    assert [(a.steps, a.points.tolist()) for a in one] == [(b.steps, b.points.tolist()) for b in other]


def test_stopping_saves_steps_where_rungs_foretell_the_end(space: SearchSpace) -> None:
    table = Table(rows(0.0), ("psnr_db", "macs"))
    bench = compare_searches(space, table, [("random", None), ("random", STOPPING)], source="", seeds=6, max_steps=1800)
    plain, without, with_rungs = bench.curves
    assert (plain.sampler, plain.stopping) == ("tpe", None)
    assert bench.target == plain.median[-1]
    assert plain.steps_to_target is not None
    assert with_rungs.begun > without.begun
    assert with_rungs.networks < without.networks
    for curve in bench.curves:
        assert all(a <= b for a, b in itertools.pairwise(curve.median))
        assert all(
            low <= middle <= high for low, middle, high in zip(curve.lower, curve.median, curve.upper, strict=True)
        )
        assert 0 < curve.median[-1] <= 1


def test_the_whole_table_has_the_whole_hypervolume(space: SearchSpace) -> None:
    table = Table(rows(0.0), ("psnr_db", "macs"))
    bench = compare_searches(space, table, [], source="", seeds=2, max_steps=10**5)
    assert bench.target == pytest.approx(1.0, abs=0.02)


def test_reliability_is_that_of_the_numbers() -> None:
    exact, noisy = (Table(rows(noise), ("psnr_db", "macs")).reliability(np.array([-1.0, 1.0])) for noise in (0.0, 0.5))
    assert [one.step for one in exact] == list(STEPS)
    assert exact[-1].rank_correlation == pytest.approx(1.0)
    assert exact[0].beyond_cost == pytest.approx(1.0)
    assert noisy[0].beyond_cost < 0.5
    assert exact[0].seed_spread == pytest.approx(0.0, abs=1e-9)
    assert noisy[0].rank_correlation < 0.9
    assert noisy[0].seed_spread == pytest.approx(0.5 * 0.75, rel=0.35)  # of the best of three


def written(path: Path, table: list[dict[str, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(table)
    return path


def test_what_is_no_table_is_refused(space: SearchSpace, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"expected a table with the columns network, seed.*got a, b; make one with"):
        Table.read(path, space)
    with pytest.raises(UserError, match="make one with `harness bench table`"):
        Table.read(tmp_path / "none.csv", space)
    path.write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="got nothing"):
        Table.read(path, space)
    path.write_bytes(written(path, rows(0.0)).read_text(encoding="utf-8").encode("utf-16"))
    with pytest.raises(UserError, match="byte 0 is no UTF-8"):
        Table.read(path, space)
    lines = written(path, rows(0.0)).read_text(encoding="utf-8").splitlines()
    for change, says in ((lines[1] + ",5", "11 cells"), (lines[1].rpartition(",")[0], "9 cells")):
        path.write_text("\n".join([lines[0], change, *lines[2:]]), encoding="utf-8")
        with pytest.raises(UserError, match=f"table.csv, line 2: {says}; expected 10"):
            Table.read(path, space)
    path.write_text("\n".join(f"{line},5" for line in lines), encoding="utf-8")
    with pytest.raises(UserError, match="expected a table with the columns"):
        Table.read(path, space)


@pytest.mark.parametrize(
    ("column", "cell", "says"),
    [
        ("seed", "", "seed is ''; expected a whole number"),
        ("seed", "x", "seed is 'x'; expected a whole number"),
        ("step", "1e1", "step is '1e1'; expected a whole number"),
        ("psnr_db", "nan", "psnr_db is 'nan'; expected a number"),
        ("network", "{}", "'{}' is none of the space's 36 networks"),
        ("gamma", "0.75", r"gamma is '0.75'; expected one of the space's \(0, 0.5, 1\)"),
        ("gamma", "", "gamma is ''; expected one of the space's"),
        ("step", "20", r"scored at step 20; expected the space's rungs and end \(10, 30, 90\)"),
        ("step", "270", r"scored at step 270; expected"),
    ],
)
def test_rows_that_are_none_of_the_space_are_refused(
    space: SearchSpace, tmp_path: Path, column: str, cell: str, says: str
) -> None:
    table = rows(0.0)
    table[2][column] = cell
    path = written(tmp_path / "table.csv", table)
    with pytest.raises(UserError, match=f"table.csv, line 4: {says}") as caught:
        read_rows(path, space.model_copy(update={"stopping": STOPPING}))
    assert "\n" not in str(caught.value)


def test_a_network_is_known_with_all_its_rows(space: SearchSpace, tmp_path: Path) -> None:
    space = space.model_copy(update={"stopping": STOPPING})
    table = rows(0.0)
    path = written(tmp_path / "table.csv", table)
    everything = whole(read_rows(path, space), space)
    assert len(everything) == 72
    assert len(Table.read(path, space).entries) == 36
    for left_out in (3, 7, 8):  # a row of a rung, and two of the end
        cut = table[:left_out] + table[left_out + 1 :]
        written(path, cut)
        assert everything - whole(read_rows(path, space), space) == {(table[0]["network"], 0)}
        with pytest.raises(UserError, match=r"1 of 9 rows are missing of network .* with seed 0; expected .* --known"):
            Table.read(path, space)
    written(path, table[18:])
    with pytest.raises(UserError, match="9 of 9 rows are missing"):
        Table.read(path, space)
    written(path, [])
    with pytest.raises(UserError, match="3 of 3 rows are missing"):
        Table.read(path, space)


def test_a_space_that_tables_know_nothing_of_is_refused(space: SearchSpace, tmp_path: Path) -> None:
    path = written(tmp_path / "table.csv", rows(0.0))
    dimensions = {name: one for name, one in space.dimensions.items() if name != "routing.gamma"}
    with pytest.raises(UserError, match=r"no dimension routing\.gamma"):
        Table.read(path, space.model_copy(update={"dimensions": dimensions}))
    peak = space.objectives[0].model_copy(update={"metric": "peak_memory_bytes"})
    with pytest.raises(UserError, match="objective peak_memory_bytes: a table has psnr_db, ssim"):
        Table.read(path, space.model_copy(update={"objectives": (peak,)}))


@pytest.mark.slow
def test_a_table_is_recorded_and_goes_on(make_study: MakeStudy) -> None:
    """Stopped after one network, the second run trains the others and no network twice."""
    dimensions = {"model.channels": {"choices": [8, 12]}, "routing.gamma": {"choices": [0.0, 1.0]}}
    training = {"steps": 4, "batch_size": 1, "hr_patch_size": 32, "checkpoint_interval": 1}
    study = make_study(dimensions=dimensions, training=training, stopping={"factor": 2, "grace_steps": 2})
    space = read_space(study.space_file)
    setup = study.setup(space)
    tasks = plan_table(space, seeds=2, repeated=1)
    assert len(tasks) == 3
    seen: list[str] = []
    stopped = record_table(
        space,
        setup,
        tasks,
        workers=1,
        on_record=lambda record: seen.append(record.record_id),
        should_stop=lambda: bool(seen),
    )
    assert not stopped
    assert len(seen) == 1
    assert record_table(space, setup, tasks, workers=2, on_record=lambda record: seen.append(record.record_id))
    assert sorted(seen) == sorted(task.record_id for task in tasks)
    text = write_table(study.folder.read_trials())
    table = list(csv.DictReader(io.StringIO(text)))
    assert len(table) == 3 * 2 * 2
    assert {int(row["step"]) for row in table} == {2, 4}
    assert {json.loads(row["network"])["model.channels"] for row in table} == {8, 12}
    known = Table(table, ("psnr_db", "macs"))
    assert len(known.entries) == 2
    assert sorted(len(same) for same in known.repeated.values()) == [1, 2]
    objectives = tuple(one.metric for one in space.objectives)
    recorded = Table(table, objectives)
    assert replay(space, recorded, stopping=None, max_steps=20)[-1].begun == 2
    assert replay(space, recorded, stopping=space.stopping, max_steps=20)


def test_rungs_that_a_table_does_not_have(space: SearchSpace) -> None:
    table = Table(rows(0.0), ("psnr_db", "macs"))
    ways = [("random", StoppingConfig(grace_steps=7, factor=3))]
    with pytest.raises(UserError, match=r"rungs at 7, 21, 63 steps: the table was scored at 10, 30, 90"):
        compare_searches(space, table, ways, source="x", seeds=2, max_steps=200)
    with pytest.raises(UserError, match=r"from step 90 on: .* trained for 90 steps, so that none would be stopped"):
        table.require(StoppingConfig(grace_steps=90, factor=3))
