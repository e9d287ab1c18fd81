"""`harness profile --sweep gamma` and `--breakdown`."""

import json
from pathlib import Path

import pytest
import yaml

from harness.core.configs import CAMixerSRConfig, RoutingConfig
from harness.core.records import ProfileRecord
from harness.models.components import COMPONENTS
from harness.profiling import canonical_macs
from tests.cli.conftest import Call

QUICK = ("--repeats", "3", "--seconds", "0", "--no-tracking")
PNG = b"\x89PNG"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.yaml"
    path.write_text(yaml.safe_dump({"family": "camixersr", "channels": 12, "groups": [1, 1], "window": 8}))
    return path


def test_every_gamma_and_training_mode_in_percent_of_full_attention(call: Call, model: Path) -> None:
    command = ("profile", model, "--sweep", "gamma", "--gammas", "0,0.5", "--input-size", "32", "32", *QUICK)
    document = call(*command, "--reference", "bicubic", "--json").document
    rows = document["sweep"]
    assert [(row["mode"], row["gamma"]) for row in rows] == [
        ("training", None),
        ("inference", 1.0),
        ("inference", 0.5),
        ("inference", 0.0),
    ]
    training, full, half, none = rows
    assert training["macs"] == full["macs"]  # as the paper writes it, both paths in every window
    assert training["latency_percent"] > 0
    assert 0 < training["attention_share"] < 1  # of the noise of training
    for row in (full, half, none):
        config = CAMixerSRConfig(channels=12, groups=(1, 1), window=8, routing=RoutingConfig(gamma=row["gamma"]))
        assert row["attention_share"] == row["gamma"]
        assert row["macs"] == canonical_macs(config, (32, 32))
        assert row["macs_percent"] == pytest.approx(100 * row["macs"] / full["macs"])
        assert row["latency_percent_interval"][0] <= row["latency_percent_interval"][1]
        assert row["latency_percent"] == pytest.approx(100 * row["latency_ms"] / full["latency_ms"])
    assert full["latency_percent_interval"] == [100, 100]
    assert Path(document["plot"]).read_bytes().startswith(PNG)

    profiles = [ProfileRecord.model_validate_json(Path(path).read_text()) for path in document["record_files"]]
    assert [profile.rows[0].mode for profile in profiles] == [row["mode"] for row in rows]
    assert {profile.rows[0].process for profile in profiles} == {"fresh"}
    # All of them stand in `compare`, but the pass of training is not the same measurement.
    refusal = call("compare", "--profiles").mistake
    assert "--mix" in refusal
    assert "training mode" in refusal
    assert len(call("compare", "--profiles", "--at", "cpu:1/32x32", "--json").document["rows"]) == 3
    assert len(call("compare", "--profiles", "--at", "cpu:1/32x32/training", "--json").document["rows"]) == 1
    assert len(call("compare", "--profiles", "--mix", "--json").document["rows"]) == 4


@pytest.mark.slow
def test_the_time_of_a_pass_by_component(call: Call, model: Path) -> None:
    document = call(
        "profile", model, "--breakdown", "--gamma", "1", "--input-size", "48", "48", *QUICK, "--no-reference", "--json"
    ).document
    breakdown = document["breakdown"]
    assert tuple(breakdown["component_ms"]) == COMPONENTS
    assert sum(breakdown["shares"].values()) == pytest.approx(1)
    assert min(breakdown["component_ms"].values()) > 0
    record = json.loads(Path(document["record_file"]).read_text())
    assert record["breakdown"]["component_ms"] == breakdown["component_ms"]


@pytest.mark.slow
def test_tables_and_pictures(call: Call, model: Path) -> None:
    common = ("--input-size", "32", "32", *QUICK, "--no-reference")
    swept = call("profile", model, "--sweep", "gamma", "--gammas", "0.25", *common)
    assert swept.code == 0, swept.err
    assert all(word in swept.out for word in ("training", "0.25", "% of"))
    divided = call("profile", model, "--breakdown", *common, "--output", "elsewhere")
    assert divided.code == 0, divided.err
    assert all(component in divided.out for component in COMPONENTS)
    (picture,) = Path("elsewhere").glob("*.png")
    assert picture.read_bytes().startswith(PNG)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--sweep", "width"], "--sweep width: expected gamma"),
        (["--sweep", "gamma", "--gamma", "0.5"], "--gammas"),
        (["--sweep", "gamma", "--gammas", "1,2"], "expected numbers from 0 to 1"),
        (["--sweep", "gamma", "--gammas", "half"], "expected numbers from 0 to 1"),
        (["--sweep", "gamma", "--input-sizes", "16x16,32x32"], "one size and batch: got 2"),
        (["--sweep", "gamma", "--breakdown"], "give one of them"),
        (["--sweep", "gamma", "--routing", "threshold"], "policy threshold does not go by γ"),
        (["--sweep", "gamma", "--tree"], "--tree"),
        (["--breakdown", "--runtime", "compile"], "eager alone"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes(call: Call, model: Path, options: list[str], words: str) -> None:
    assert words in call("profile", model, *options, *QUICK).mistake
    assert not Path("results/profiles").exists()


@pytest.mark.parametrize("option", [["--sweep", "gamma"], ["--breakdown"]])
def test_networks_without_gamma_or_known_components_are_refused(call: Call, option: list[str]) -> None:
    name = "swinir-light" if option == ["--sweep", "gamma"] else "bicubic"
    assert "expected a CAMixerSR" in call("profile", name, *option, "--input-size", "16", "16", *QUICK).mistake
