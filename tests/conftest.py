"""Fixtures shared by all tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

from harness.core import device_lock
from tests.photographs import Photographs, cut_photographs

# The same examples in every run, so that a change is judged and not its luck; HYPOTHESIS_PROFILE=random tries others.
hypothesis.settings.register_profile("fixed", derandomize=True)
hypothesis.settings.register_profile("random")
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

torch.set_num_threads(1)  # results do not depend on the machine, and two test processes do not fight over its cores


@pytest.fixture(scope="session", autouse=True)
def locks_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A test process waits for no other, nor for whatever is measured on the machine: no test judges a time."""
    with pytest.MonkeyPatch.context() as patch:
        locks = tmp_path_factory.mktemp("locks")
        patch.setattr(device_lock, "lock_dir", locks)
        patch.setenv("HARNESS_LOCKS", str(locks))  # of commands in processes of their own
        yield


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder with reference images, weights and golden vectors; it lies outside the project."""
    folder = os.environ.get("HARNESS_REFERENCE")
    if not folder:
        pytest.skip("HARNESS_REFERENCE is not set: no reference images, weights and golden vectors to compare with")
    path = Path(folder)
    if not path.is_dir():
        pytest.fail(f"HARNESS_REFERENCE={folder} is not a folder")
    return path


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Photographs:
    """Tiny real photographs to train and validate on; read-only."""
    return cut_photographs(tmp_path_factory.mktemp("photographs"))
