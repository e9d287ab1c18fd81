"""Real processes that compute, measure and are killed; told by order and counts, never by absolute times."""

import math
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.core import device_lock
from harness.core.device_lock import computing, lock_name, measuring
from harness.core.errors import UserError
from harness.core.files import lock_holders

TIMEOUT = 60


class Peer:
    """A process that runs a script line by line with us: `wait(word)` reads until it says so, `tell` lets it go on."""

    def __init__(self, script: str, folder: Path):
        head = f"""
            import sys, time
            from pathlib import Path
            from harness.core.device_lock import computing, measuring
            folder = Path({str(folder)!r})
            def say(word): print(word, flush=True)
        """
        source = textwrap.dedent(head) + textwrap.dedent(script)
        self.process = subprocess.Popen(
            [sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def wait(self, word: str) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip() == word

    def tell(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def is_silent(self, seconds: float = 0.3) -> bool:
        """Whether the process neither ends nor has said anything after a while."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return True
        return False

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


Start = Callable[[str], Peer]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    peers: list[Peer] = []

    def run(script: str) -> Peer:
        peers.append(Peer(script, tmp_path / "locks"))
        return peers[-1]

    yield run
    for peer in peers:
        peer.end()


HOLD = """
    with {what}(folder=folder):
        say("in")
        sys.stdin.readline()
    say("out")
"""


def test_computing_goes_on_side_by_side(start: Start, tmp_path: Path) -> None:
    peer = start(HOLD.format(what="computing"))
    peer.wait("in")
    with computing(folder=tmp_path / "locks"):
        pass


@pytest.mark.parametrize(("first", "second"), [("measuring", "computing"), ("measuring", "measuring")])
def test_whoever_comes_second_waits_for_a_measurement(start: Start, first: str, second: str) -> None:
    holder = start(HOLD.format(what=first))
    holder.wait("in")
    waiting = start(f'say("ready")\nwith {second}(folder=folder):\n    pass\n')
    waiting.wait("ready")
    assert waiting.is_silent()
    holder.tell()
    assert waiting.process.wait(TIMEOUT) == 0


def test_a_long_wait_is_told(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    holder = start(HOLD.format(what="computing"))
    holder.wait("in")
    told: list[str] = []

    def tell(text: str) -> None:
        told.append(text)
        holder.tell()  # which lets the measurement begin

    monkeypatch.setattr(device_lock, "_PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(device_lock, "_announced_at", -math.inf)
    waited = device_lock.waited_seconds()
    monkeypatch.setattr(device_lock, "announce", tell)
    with measuring(folder=tmp_path / "locks"):
        assert len(told) == 1
        whom = f"process {holder.process.pid}" if lock_holders(tmp_path / "locks" / "cpu.room") else "another process"
        assert f"waiting for {whom} of harness, which measures or computes on cpu: 0 s so far" in told[0]
        assert device_lock.waited_seconds() >= waited + 0.1
    waited = device_lock.waited_seconds()
    with measuring(folder=tmp_path / "locks"):
        assert len(told) == 1  # nobody was waited for
    holder = start(HOLD.format(what="computing"))
    holder.wait("in")
    threading.Timer(0.3, holder.tell).start()
    with measuring(folder=tmp_path / "locks"):
        assert len(told) == 1  # it was said just now
        assert device_lock.waited_seconds() > waited


def test_a_killed_measurement_lets_others_go_on(start: Start, tmp_path: Path) -> None:
    holder = start(HOLD.format(what="measuring"))
    holder.wait("in")
    holder.process.send_signal(signal.SIGKILL)
    with measuring(folder=tmp_path / "locks"):
        pass
    assert holder.process.wait(TIMEOUT) == -signal.SIGKILL


def test_a_killed_step_lets_a_measurement_begin(start: Start, tmp_path: Path) -> None:
    holder = start(HOLD.format(what="computing"))
    holder.wait("in")
    waiting = start('say("ready")\nwith measuring(folder=folder):\n    pass\n')
    waiting.wait("ready")
    assert waiting.is_silent()
    holder.process.send_signal(signal.SIGKILL)
    assert waiting.process.wait(TIMEOUT) == 0


TRAINING = """
    journal = (folder.parent / "journal").open("a")
    say("ready")
    sys.stdin.readline()
    while not (folder.parent / "done").exists():
        with computing(folder=folder):
            journal.write("begin\\n"), journal.flush()
            time.sleep(0.02)
            journal.write("end\\n"), journal.flush()
"""


def test_training_pauses_for_a_measurement_and_cannot_keep_it_waiting(start: Start, tmp_path: Path) -> None:
    """Two processes train without a break; a measurement gets in all the same, and has the device to itself."""
    trainers = [start(TRAINING) for _ in range(2)]
    for trainer in trainers:
        trainer.wait("ready")
        trainer.tell()
    journal = tmp_path / "journal"
    while not journal.exists() or journal.read_text().count("begin") < 4:
        pass
    for _ in range(5):
        with measuring(folder=tmp_path / "locks"):
            before = journal.read_text()
            assert before.count("begin") == before.count("end")  # whoever had begun has ended
            assert trainers[0].is_silent(0.1)
            assert journal.read_text() == before
        resumed = before
        while resumed == before:
            resumed = journal.read_text()
    (tmp_path / "done").touch()
    assert [trainer.process.wait(TIMEOUT) for trainer in trainers] == [0, 0]


def test_devices_are_apart_but_gpu_work_computes_on_the_cpu(start: Start) -> None:
    gpu = start('with measuring("cuda-1", folder=folder):\n    say("in")\n    sys.stdin.readline()\n')
    gpu.wait("in")
    other = start('with measuring("cuda-2", folder=folder):\n    pass\nwith computing(folder=folder):\n    pass\n')
    assert other.process.wait(TIMEOUT) == 0
    cpu = start('say("ready")\nwith measuring("cpu", folder=folder):\n    pass\n')
    cpu.wait("ready")
    assert cpu.is_silent()
    gpu.tell()
    assert cpu.process.wait(TIMEOUT) == 0


def test_computing_on_several_devices_keeps_measurements_off_all_of_them(start: Start) -> None:
    holder = start('with computing("cuda-1", "cuda-2", folder=folder):\n    say("in")\n    sys.stdin.readline()\n')
    holder.wait("in")
    peers = [start(f'say("ready")\nwith measuring("cuda-{index}", folder=folder):\n    pass\n') for index in (1, 2, 3)]
    for peer in peers:
        peer.wait("ready")
    assert peers[2].process.wait(TIMEOUT) == 0
    assert all(peer.is_silent() and peer.process.poll() is None for peer in peers[:2])
    holder.tell()
    assert [peer.process.wait(TIMEOUT) for peer in peers[:2]] == [0, 0]


def test_blocks_within_blocks_of_a_thread(tmp_path: Path) -> None:
    with measuring(folder=tmp_path), measuring(folder=tmp_path) as waited, computing(folder=tmp_path):
        assert waited == 0
    with computing(folder=tmp_path), computing(folder=tmp_path):
        pass
    with computing(folder=tmp_path), pytest.raises(AssertionError, match="wait for itself"):
        measuring(folder=tmp_path).__enter__()


def test_files_are_for_all_users_and_trouble_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "locks"
    with measuring(folder=folder):
        pass
    assert folder.stat().st_mode & 0o7777 == 0o1777
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o666}
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"lock file .* cannot be opened"):
        measuring(folder=tmp_path / "file").__enter__()


def test_names_are_safe_in_paths() -> None:
    assert lock_name("cpu") == "cpu"
    assert lock_name("cuda", "GPU-1/2 a") == "cuda-GPU-1-2-a"
