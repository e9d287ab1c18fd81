"""What the records of a study say: which networks are trained, were stopped or have failed, and for how many steps."""

from collections import Counter
from collections.abc import Callable

from harness.core.records import TrialRecord
from harness.core.study_folder import StudyFolder

MAX_RETRIES = 2  # of a network that failed for a reason that need not come again
_FINAL = frozenset({"TrialFailedError", "UserError"})  # what a network fails of again


class Ledger:
    """A study's records, each looked at once; `on_record` is told of those that are finished here.

    `trained` and `stopped` are records by network, `failures` counts those of a network; `steps` of training are those
    of all records, once for a network that two have trained.
    """

    def __init__(self, folder: StudyFolder, on_record: Callable[[TrialRecord], None]) -> None:
        self._folder = folder
        self._on_record = on_record
        self.records: dict[str, TrialRecord] = {}
        self.trained: dict[str, TrialRecord] = {}
        self.stopped: dict[str, TrialRecord] = {}
        self.failures: Counter[str] = Counter()
        self.steps = 0

    def read(self, *, tell: bool = False) -> None:
        """Take note of records that others have written, and `tell` whoever waits for them."""
        for record in self._folder.read_trials(but=self.records.keys()):
            self._note(record)
            if tell:
                self._on_record(record)

    def finish(self, record: TrialRecord) -> None:
        """Take note of a record of ours, and tell whoever waits for it."""
        self._note(record)
        self._on_record(record)

    def is_known(self, network: str) -> bool:
        """Whether a network was trained, to the end or until it was stopped."""
        return network in self.trained or network in self.stopped

    def may_pass(self, record: TrialRecord) -> bool:
        """Whether a network failed for a reason that need not come again, and not too often."""
        may_pass = record.error_type is not None and record.error_type not in _FINAL
        return may_pass and not self.is_given_up(record.network_id)

    def is_given_up(self, network: str) -> bool:
        """Whether a network has failed too often, or of what it fails of again."""
        return self.failures[network] > MAX_RETRIES

    def _note(self, record: TrialRecord) -> None:
        if record.record_id in self.records:
            return
        self.records[record.record_id] = record
        if record.kind != "trial":
            return
        is_twice = record.state == "complete" and record.network_id in self.trained
        if record.state == "complete":
            self.trained[record.network_id] = record
        elif record.state == "stopped":
            self.stopped[record.network_id] = record
        elif record.state == "failed":
            self.failures[record.network_id] += 1 if record.error_type not in _FINAL else MAX_RETRIES + 1
        if is_twice:
            return
        if record.state == "complete" and record.training is not None:
            if record.compression is None or "training" in record.seconds:  # else it was an earlier trial's
                self.steps += record.training.steps
            if record.compression is not None:
                self.steps += sum(one.steps for one in record.compression.tuning)
        elif record.rungs:
            self.steps += record.rungs[-1].step
