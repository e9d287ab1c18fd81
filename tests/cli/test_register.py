"""`harness export`: what it prints of a bundle, and `--register` in the store of the results."""

from pathlib import Path

import pytest
from safetensors.torch import save_file

from tests.cli.conftest import Call
from tests.export.test_bundle import SMALL, random_network


@pytest.fixture
def export(tmp_path: Path) -> list[str]:
    """A network that was trained elsewhere."""
    (tmp_path / "model.json").write_text(SMALL.model_dump_json(), encoding="utf-8")
    save_file(random_network(SMALL).state_dict(), tmp_path / "w.safetensors")
    return ["export", "model.json", "--weights", "w.safetensors", "--results", "results"]


@pytest.mark.slow
def test_versions_of_a_name_and_where_they_are_found(call: Call, export: list[str]) -> None:
    done = call(*export, "--out", "a", "--register", "cam", "--licence", "cc-by-4.0")
    assert done.code == 0, done.err
    assert "models:/cam@champion, version 1 of cam in sqlite:///" in done.out
    assert Path("results/mlflow.db").is_file()
    assert Path("results/mlartifacts").is_dir()
    assert "CC-BY-4.0" in Path("a/LICENCE").read_text(encoding="utf-8")
    assert "models:/cam@challenger, version 2" in call(*export, "--out", "b", "--register", "cam").out
    replaced = call(*export, "--out", "b", "--overwrite", "--register", "cam", "--alias", "champion")
    assert "models:/cam@champion, version 3" in replaced.out


def test_the_example_is_printed_as_it_stands_in_the_bundle(call: Call, export: list[str]) -> None:
    pytest.importorskip("onnxruntime")
    done = call(*export, "--out", "bundle")
    assert done.out.endswith(Path("bundle/example.py").read_text(encoding="utf-8"))


def test_a_registry_that_is_away_leaves_the_bundle_and_says_so_in_a_line(call: Call, export: list[str]) -> None:
    done = call(*export, "--out", "bundle", "--register", "cam", "--tracking-uri", "http://me:secret@127.0.0.1:1")
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert "harness: error: --register cam: MLflow tracking to http://…@127.0.0.1:1 failed" in done.err
    assert "the bundle bundle is whole" in done.err
    assert call("verify", "bundle", "--images", "0", "--no-latency").code == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--register", "a/b"), "expected a name without '/' and ':'"),
        (("--register", "cam", "--tracking-uri", "nonsense"), "is no MLflow store"),
        (("--alias", "champion"), "give --register NAME, too"),
        (("--licence", "Apache2"), "expected an SPDX expression"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(
    call: Call, export: list[str], options: tuple[str, ...], words: str
) -> None:
    assert words in call(*export, "--out", "bundle", *options).mistake
    assert not Path("bundle").exists()
