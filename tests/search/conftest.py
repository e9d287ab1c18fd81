"""What the tests of the search share: a study that is run in this process, again and again."""

import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import pytest

from harness.core.records import TrialRecord
from harness.core.study_folder import StudyFolder
from harness.data import PairedDataset, open_dataset
from harness.metrics import get_protocol
from harness.search import SearchOutcome, SearchSpace, read_space, run_search, study_record
from harness.training import TrainingProgress
from harness.trial import Silent, TrialSetup
from tests.photographs import Photographs
from tests.spaces import tiny_space, write_space


@dataclass
class Study:
    """One study's folder, its space and its images."""

    folder: StudyFolder
    space_file: Path
    train: PairedDataset
    validation: PairedDataset
    seen: list[str] = field(default_factory=list)

    def setup(self, space: SearchSpace) -> TrialSetup:
        """What trials of the study share."""
        return TrialSetup(
            study=self.folder.path.name,
            folder=self.folder,
            data=space.data_config,
            train=self.train,
            validation=self.validation,
            protocol=get_protocol(space.data.protocol),
            constraints=space.parsed_constraints(),
            devices=space.profile.devices,
            latency_input_size=space.profile.latency_input_size,
            macs_input_size=space.macs_input_size,
            reference=None,
            reference_name=None,
            latency_repeats=space.profile.min_repeats,
            latency_seconds=space.profile.min_seconds,
            latency_process=space.profile.process,
            calibration=space.calibrate,
            stopping=space.stopping,
        )

    def run(self, overrides: dict[str, Any] | None = None, **arguments: Any) -> SearchOutcome:
        """Search with the space as its file is now."""
        space = read_space(self.space_file, overrides)
        setup = self.setup(space)
        record = study_record(setup.study, space, self.space_file.read_text(encoding="utf-8"), setup)
        arguments.setdefault("on_record", lambda finished: self.seen.append(finished.record_id))
        return run_search(space, setup, record, **arguments)

    @property
    def records(self) -> list[TrialRecord]:
        """All trials' records, without baselines."""
        return [record for record in self.folder.read_trials() if record.kind == "trial"]

    @property
    def trained(self) -> list[TrialRecord]:
        """The records of trained networks."""
        return [record for record in self.records if record.state == "complete"]

    def states(self) -> Counter[str]:
        """How many trials ended in which state."""
        return Counter(record.state for record in self.records)

    def database(self, url: str | None = None) -> optuna.Study:
        """Open the Optuna study."""
        url = url or f"sqlite:///{self.folder.database}"
        storage = optuna.storages.RDBStorage(url, skip_compatibility_check=True, skip_table_creation=True)
        return optuna.load_study(study_name=self.folder.path.name, storage=storage)

    def trials(self, state: str | None = None, url: str | None = None) -> list[optuna.trial.FrozenTrial]:
        """Return the Optuna trials (of a state such as 'COMPLETE')."""
        found = self.database(url).get_trials()
        return [trial for trial in found if state in (None, trial.state.name)]

    def told_points(self) -> Counter[tuple[Any, ...]]:
        """How often each point of each network was told to the sampler, repeats that were answered left aside."""
        answered = {record.record_id for record in self.records if record.state == "answered"}
        return Counter(
            (trial.user_attrs["network"], trial.params.get("routing.gamma"), trial.params.get("routing.policy"))
            for trial in self.trials("COMPLETE")
            if trial.user_attrs["record_id"] not in answered
        )


MakeStudy = Callable[..., Study]


class Killed(BaseException):
    """The process is gone: nothing after this runs."""


class KillAtStep(Silent):
    """Ends the process, as it were, after a training step of the n-th training."""

    def __init__(self, training: int, step: int):
        self.trainings = 0
        self.target = (training, step)

    def training(self, progress: TrainingProgress) -> None:
        """Count the trainings that begin, and end in the one that was meant."""
        self.trainings += progress.step == 1
        if (self.trainings, progress.step) == self.target:
            raise Killed


def wait_for(
    condition: Callable[[], Any], process: "subprocess.Popen[str] | None" = None, *, patience_s: float = 120
) -> None:
    """Wait until the condition holds, while the process runs if there is one."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert process is None or process.poll() is None, f"the search ended first: {process.communicate()}"
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture(scope="session")
def datasets(photographs: Photographs, tmp_path_factory: pytest.TempPathFactory) -> tuple[PairedDataset, PairedDataset]:
    cache = tmp_path_factory.mktemp("cache")
    train = open_dataset(str(photographs.train), scale=4, split="train", data_dir=None, cache_dir=cache)
    validation = open_dataset(str(photographs.validation), scale=4, split="validation", data_dir=None, cache_dir=cache)
    return train, validation


@pytest.fixture
def make_study(tmp_path: Path, photographs: Photographs, datasets: tuple[PairedDataset, PairedDataset]) -> MakeStudy:
    """Make a study of a tiny space; arguments replace sections of it."""

    def make(name: str = "tiny", **changes: Any) -> Study:
        changes.setdefault("baselines", [])
        space = write_space(tmp_path / f"{name}.yaml", tiny_space(photographs, **changes))
        return Study(StudyFolder(tmp_path / "results" / name), space, *datasets)

    return make
