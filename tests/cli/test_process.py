"""What only a process of its own shows: imports, exit codes, where output goes."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

import harness
from harness.cli.app import app
from harness.cli.output import command
from tests.cli.conftest import Call, run_harness
from tests.photographs import Photographs
from tests.spaces import tiny_space

PRINT_LOADED = "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
HEAVY = ("torch", "mlflow", "optuna", "pandas", "matplotlib", "plotly", "sqlalchemy", "numpy")
COMMANDS = sorted(str(command.name) for command in app.registered_commands)


def loaded_by(code: str) -> set[str]:
    """Return which heavy modules are loaded after the code ran in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", PRINT_LOADED + code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    loaded = done.stderr.split()
    assert "harness" in loaded
    return set(HEAVY).intersection(loaded)


@pytest.mark.parametrize(
    "code",
    ["import harness", "import harness.cli", "import harness.cli as c; sys.argv = ['harness', '--help']; c.main()"],
    ids=["import", "import of the commands", "--help"],
)
def test_starts_without_heavy_imports(code: str) -> None:
    assert loaded_by(code) == set()


def test_help_of_every_command(call: Call) -> None:
    assert {"search", "train", "evaluate", "profile", "compare", "report", "export", "upscale"} <= set(COMMANDS)
    overview = call("--help")
    assert (overview.code, overview.err) == (0, "")
    assert call().out == overview.out
    for name in COMMANDS:
        assert name in overview.out
        shown = call(name, "--help")
        assert (shown.code, shown.err) == (0, "")
        assert f"harness {name}" in shown.out
        assert call(name, "-h").out == shown.out
    words = " ".join(call("evaluate", "--help").out.replace("│", " ").split())
    assert "[default: all cores]" in words
    assert "[default: the protocol's]" in words


def test_a_mistake_is_one_line_and_writes_nothing(tmp_path: Path, photographs: Photographs) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(yaml.safe_dump(tiny_space(photographs, objectives=["psnr"])), encoding="utf-8")
    message = run_harness("search", "space.yaml", cwd=tmp_path).mistake
    assert re.match(r"space\.yaml:\d+: objectives: unknown metric 'psnr'; expected one of: .*psnr_db", message)
    assert list(tmp_path.iterdir()) == [space]


def test_the_module_and_the_script_are_one(call: Call) -> None:
    script = Path(sys.executable).with_name("harness")
    done = subprocess.run([script, "--help"], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0
    assert done.stdout.split() == call("--help").out.split()


@pytest.mark.parametrize("started", ["harness", "-m harness"])
def test_commands_to_type_next_are_those_of_this_installation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, started: str
) -> None:
    """By name where the shell finds the same script, by its path elsewhere, however the search was started."""
    script = Path(sys.executable).with_name("harness")
    package = Path(harness.__file__).with_name("__main__.py")
    monkeypatch.setattr(sys, "argv", [str(package if started == "-m harness" else script)])
    monkeypatch.setenv("PATH", str(script.parent))
    assert command() == "harness"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert command() == str(script)


def test_ctrl_c_ends_with_a_word_and_leaves_no_process(tmp_path: Path) -> None:
    """In the middle of a measurement: its processes end, and nothing is half written."""
    command = [sys.executable, "-m", "harness", "profile", "camixersr-s", "--input-size", "32", "32", "--no-tracking"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    workers: list[psutil.Process] = []
    while len(workers) < 2:  # the network's and the reference's
        assert process.poll() is None
        workers = psutil.Process(process.pid).children()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "harness: interrupted\n")
    assert psutil.wait_procs(workers, timeout=30)[1] == []
    assert not list(tmp_path.rglob("*.json"))
