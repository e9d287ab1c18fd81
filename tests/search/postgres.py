"""A real PostgreSQL server, to be killed, and a way to it on which acknowledgements are lost."""

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest

PATIENCE_S = 120
STRANGER = "stranger"  # who is asked for a password, and has none


class Server:
    """A server in a folder of its own, started as another user where this one is root."""

    def __init__(self, folder: Path, programs: Path):
        self.folder = folder
        self.programs = programs
        self.port = free_port()
        self.url = f"postgresql+psycopg://nas@127.0.0.1:{self.port}/postgres"
        self._user = _other_user() if os.geteuid() == 0 else None
        self._process: subprocess.Popen[bytes] | None = None
        if self._user is not None:
            os.chown(folder, self._user.pw_uid, self._user.pw_gid)

    @property
    def is_running(self) -> bool:
        """Whether it was started and not killed."""
        return self._process is not None

    def _start(self, program: str, *arguments: str) -> "subprocess.Popen[bytes]":
        identity = {}
        if self._user is not None:
            identity = {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}
        with (self.folder / f"{program}.log").open("ab") as log:
            started: subprocess.Popen[bytes] = subprocess.Popen(
                [self.programs / program, *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                start_new_session=True,
                **identity,  # type: ignore[call-overload]
            )
        return started

    def create(self) -> None:
        """Make an empty database; nobody but this machine reaches it."""
        options = ["--auth=trust", "--username=nas", "--encoding=UTF8", "--no-sync", "--no-locale"]
        made = self._start("initdb", "-D", str(self.folder / "data"), *options)
        if made.wait(PATIENCE_S) != 0:
            raise OSError((self.folder / "initdb.log").read_text(encoding="utf-8"))
        rules = self.folder / "data" / "pg_hba.conf"  # the first that fits counts
        password = f"host all {STRANGER} 127.0.0.1/32 scram-sha-256\n"
        rules.write_text(password + rules.read_text(encoding="utf-8"), encoding="utf-8")

    def start(self) -> None:
        """Start the server and wait until it listens."""
        arguments = ["-D", str(self.folder / "data"), "-p", str(self.port), "-k", str(self.folder)]
        self._process = self._start("postgres", *arguments, "-c", "fsync=off", "-c", "listen_addresses=127.0.0.1")
        deadline = time.monotonic() + PATIENCE_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise OSError((self.folder / "postgres.log").read_text(encoding="utf-8"))
            time.sleep(0.1)

    def _answers(self) -> bool:
        command = [str(self.programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(command, check=False).returncode == 0

    def kill(self) -> None:
        """Kill all processes of the server at once."""
        if self._process is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            master = psutil.Process(self._process.pid)
            master.suspend()  # so that it starts no others meanwhile
            for process in [*master.children(recursive=True), master]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self._process.wait()
        self._process = None


def make_server() -> Server:
    """Make and start a server; the test is skipped where that is not possible."""
    programs = _programs()
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    server = None
    try:
        server = Server(folder, programs)
        server.create()
        server.start()
    except (OSError, KeyError, subprocess.SubprocessError) as error:
        if server is not None:
            server.kill()
        shutil.rmtree(folder, ignore_errors=True)
        pytest.skip(f"PostgreSQL cannot be started here: {error}")
    return server


def _programs() -> Path:
    folders = [Path(folder) for folder in os.environ["PATH"].split(os.pathsep)]
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in folders:
        if all((folder / program).is_file() for program in ("postgres", "initdb", "pg_isready")):
            return folder.resolve()
    pytest.skip("PostgreSQL is not installed: postgres, initdb and pg_isready were not found")


def _other_user() -> pwd.struct_passwd:
    with contextlib.suppress(KeyError):
        return pwd.getpwnam("postgres")
    return pwd.getpwnam("nobody")


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Unacknowledged:
    """A way to a server on which it is not heard that trials were changed: from the `first` time on, at every 7th."""

    def __init__(self, port: int, first: int):
        self.first = first
        self.commits = 0
        self.lost = 0
        self._port = port
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"postgresql+psycopg://nas@127.0.0.1:{self._listener.getsockname()[1]}/postgres"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Let nobody in any more."""
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        server = socket.create_connection(("127.0.0.1", self._port))
        is_lost = threading.Event()

        def answer() -> None:
            with contextlib.suppress(OSError):
                while (said := server.recv(1 << 16)) and not is_lost.is_set():
                    client.sendall(said)
            for one in (client, server):
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
                one.close()

        threading.Thread(target=answer, daemon=True).start()
        with contextlib.suppress(OSError):
            has_written = False
            while asked := client.recv(1 << 16):
                has_written |= b"INSERT INTO trial" in asked or b"UPDATE trial" in asked
                if b"COMMIT" in asked and has_written:
                    has_written = False
                    with self._lock:
                        self.commits += 1
                        if self.commits >= self.first and (self.commits - self.first) % 7 == 0:
                            self.lost += 1
                            is_lost.set()
                server.sendall(asked)
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
