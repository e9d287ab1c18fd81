"""`harness verify` as a user runs it: exit codes, its document, and a searched network measured once more."""

import json
import shutil
import subprocess
from pathlib import Path

from tests.cli.conftest import Call, FinishedStudy
from tests.export.test_bundle import write


def test_exit_codes(call: Call, tmp_path: Path) -> None:
    write(tmp_path / "bundle")
    options = ("--images", "0", "--no-latency", "--threads", "1")
    whole = call("verify", "bundle", *options)
    assert whole.code == 0, whole.err
    assert "no check failed" in whole.out
    document = call("verify", "bundle", *options, "--json").document
    assert document["is_whole"]
    assert {check["status"] for check in document["checks"]} == {"ok", "not checked"}
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=tmp_path / "bundle", check=True)
    card = tmp_path / "bundle" / "README.md"
    card.write_text(card.read_text(encoding="utf-8").replace("27.432", "37.432"), encoding="utf-8")
    damaged = call("verify", "bundle", *options, "--json")
    assert damaged.code == 1
    assert json.loads(damaged.out)["checks"][0]["values"] == {"changed": ["README.md"], "missing": []}
    (tmp_path / "bundle" / "config.json").unlink()
    assert call("verify", "bundle", *options).code == 1
    (tmp_path / "empty").mkdir()
    for path in ("empty", "nowhere"):
        assert "is no bundle" in call("verify", path).mistake
    write(tmp_path / "other")
    assert "no folder 'nowhere'" in call("verify", "other", "--data", "nowhere").mistake


def test_a_searched_network_is_found_again(call: Call, study: FinishedStudy, tmp_path: Path) -> None:
    """Scores to the bit on the same machine, and the latency by the recorded protocol, beside the recorded one."""
    shutil.copytree(study.folder / "bundles" / "knee", tmp_path / "bundle")
    done = call("verify", "bundle", "--results", study.results, "--threads", "1", "--json")
    assert done.code == 0, done.out + done.err
    checks = {check["name"]: check for check in json.loads(done.out)["checks"]}
    assert checks["PSNR"]["status"] == "ok"
    assert checks["PSNR"]["values"]["largest_difference_db"] < 1e-9
    (latency,) = (check for name, check in checks.items() if name.startswith("latency "))
    assert latency["status"] == "ok"
    assert latency["values"]["now"]["ratio"] > 0
    assert "the same device, versions and settings" in latency["detail"]
