"""Real servers that checkpoints are kept at: one of Amazon's S3 protocol, and one of FTP whose files outlast it."""

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

_PATIENCE_S = 60
_FTP = """
import sys
from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import FTPHandler
from pyftpdlib.servers import ThreadedFTPServer

FTPHandler.authorizer = DummyAuthorizer()
FTPHandler.authorizer.add_user("someone", "secret", sys.argv[1], perm="elradfmwMT")
FTPHandler.banner = "ready"
ThreadedFTPServer(("127.0.0.1", int(sys.argv[2])), FTPHandler).serve_forever()
"""


class Server:
    """A server in a process of its own, to be killed, stopped and started again."""

    def __init__(self, *command: str):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._command = [sys.executable, *(word.replace("PORT", str(self.port)) for word in command)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server and wait until it listens."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            assert self._process.poll() is None, "the server ended"
            assert time.monotonic() < deadline
            time.sleep(0.05)

    @property
    def is_running(self) -> bool:
        """Whether it was started and not killed."""
        return self._process is not None

    def kill(self) -> None:
        """Kill the server."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Let the server answer no more, and close nothing."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)


@contextlib.contextmanager
def s3_server() -> Iterator[Server]:
    """Start a server of S3 with the bucket `bucket`, which the environment leads to."""
    for package in ("moto", "s3fs"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    server = Server("-m", "moto.server", "-H", "127.0.0.1", "-p", "PORT")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
        patched.setenv("AWS_ACCESS_KEY_ID", "key")
        patched.setenv("AWS_SECRET_ACCESS_KEY", "password")
        patched.setenv("AWS_DEFAULT_REGION", "us-east-1")
        server.start()
        try:
            fsspec.filesystem("s3", skip_instance_cache=True).mkdir("bucket")
            yield server
        finally:
            server.kill()


class FtpServer(Server):
    """A server of FTP for a folder, which `someone` logs into by the password `secret`."""

    def __init__(self, folder: Path):
        if importlib.util.find_spec("pyftpdlib") is None:
            pytest.skip("pyftpdlib is not installed")
        folder.mkdir(parents=True)
        super().__init__("-c", _FTP, str(folder), "PORT")
        self.folder = folder

    @property
    def url(self) -> str:
        """Where checkpoints are to be kept."""
        return f"ftp://someone:secret@127.0.0.1:{self.port}/kept"

    def __enter__(self) -> "FtpServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
