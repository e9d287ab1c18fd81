"""Who runs a trial, written beside it in the study's storage, so that others see whether they are gone."""

import os
import platform
import secrets
from typing import Any

import psutil


class Mark:
    """Who runs a trial: host, process and worker. One process may hold several workers, one after the other."""

    _here: set[str] = set()  # workers of this process

    def __init__(self) -> None:
        self.token = secrets.token_hex(8)
        self.values: dict[str, Any] = {
            "host": platform.node(),
            "pid": os.getpid(),
            "since": psutil.Process().create_time(),
            "token": self.token,
        }

    def __enter__(self) -> "Mark":
        self._here.add(self.token)
        return self

    def __exit__(self, *_: object) -> None:
        self._here.discard(self.token)

    @classmethod
    def is_gone(cls, values: dict[str, Any] | None) -> bool:
        """Whether a worker is known to be gone. Of other hosts nothing is known but what their heartbeats say."""
        if values is None:
            return True  # of a version without marks, or killed before it could mark the trial
        if values["host"] != platform.node():
            return False
        if values["pid"] == os.getpid():
            return values["token"] not in cls._here
        try:
            return bool(abs(psutil.Process(values["pid"]).create_time() - values["since"]) > 1)
        except psutil.NoSuchProcess:
            return True
