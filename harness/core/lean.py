"""Records without their bulk, so that tens of thousands of them fit into memory for a report.

Left out is what is kept for those who measure again: samples, scores of single images, all but the best point of a
rung, other curves than the loss. What many records have in common is held once. Whoever needs all of a record reads its
file.
"""

from collections.abc import Hashable
from typing import Any, TypeVar

from pydantic import BaseModel

from harness.core.configs import CustomConfig
from harness.core.records import (
    EvaluationRecord,
    LatencyRecord,
    PointRecord,
    RungRecord,
    TrainingRecord,
    TrialRecord,
)

LOSSES = ("l1_loss", "ws_l1_loss", "loss")  # the first of them that a training has is the curve that reports draw
_MOST_CURVE_POINTS = 200
_NO_FIELDS: frozenset[str] = frozenset()
_NOTHING: dict[str, Any] = {}
_MOST_ALIKE = 32  # of values that can only be looked for one by one
_T = TypeVar("_T")
_HashableT = TypeVar("_HashableT", bound=Hashable)
_ModelT = TypeVar("_ModelT", bound=BaseModel | None)


class LeanReader:
    """Takes records one after the other; what is equal in them becomes the same object."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Any] = {}
        self._listed: dict[str, list[Any]] = {}
        self._conditions: set[tuple[object, ...]] = set()

    def lean(self, record: TrialRecord) -> TrialRecord:
        """Take the bulk out of a record that was just read, which nobody else may hold, and return it.

        Of each condition of latency the first record keeps its samples, which says how many runs there were.
        """
        _replace(
            record,
            training=self._share_model(record.training),
            data=self._share_model(record.data),
            model=self._share_model(record.model),
            environment=self._share_listed("environment", record.environment),
            suggestion=_NOTHING,
            seconds=_NOTHING,
            macs_check=None,
            untrained=None,
            early_latency=record.early_latency if record.state == "stopped" else (),
        )
        for early in record.early_latency:
            _replace(early, routing=self._share_model(early.routing))
            for latency in early.latency:
                self._lean_latency(latency)
        if record.training_result is not None:
            self._lean_training(record.training_result)
        if record.compression is not None:
            _replace(record.compression, model=self._share_model(record.compression.model), tuning=())
            for stage in record.compression.stages:
                for latency in stage.latency:
                    self._lean_latency(latency)
        for rung in record.rungs:
            self._lean_rung(rung)
        for point in record.points:
            self._lean_point(point)
        return record

    def _lean_rung(self, rung: RungRecord) -> None:
        best = rung.best
        _replace(best, routing=self._share_model(best.routing))
        _replace(rung, points=(best,))

    def _lean_point(self, point: PointRecord) -> None:
        _replace(point, routing=self._share_model(point.routing))
        _lean_evaluation(point.evaluation)
        for latency in point.latency:
            self._lean_latency(latency)

    def _lean_latency(self, latency: LatencyRecord) -> None:
        changes: dict[str, Any] = {
            "reference_samples": (),
            "interval": None,
            "ratio_interval": None,
            "sensors": _NOTHING,
            "images": self._share(latency.images),
            "input_size": self._share(latency.input_size),
            "fingerprint": self._share_model(latency.fingerprint),
        }
        conditions = (latency.device, latency.runtime, latency.precision, latency.input_size, latency.batch_size)
        if conditions in self._conditions:
            changes["samples"] = ()
        else:
            self._conditions.add(conditions)
        _replace(latency, **changes)

    def _lean_training(self, result: TrainingRecord) -> None:
        name = next((name for name in LOSSES if name in result.curves), None)
        if name is None:
            _replace(result, curves=_NOTHING, curve_steps=())
            return
        stride = max(1, len(result.curve_steps) // _MOST_CURVE_POINTS)
        steps = self._share(result.curve_steps[::stride])
        _replace(result, curves={name: result.curves[name][::stride]}, curve_steps=steps)

    def _share(self, value: _HashableT) -> _HashableT:
        known: _HashableT = self._known.setdefault(value, value)
        return known

    def _share_model(self, value: _ModelT) -> _ModelT:
        """Share a frozen model by its type and values, whose comparison is much faster than that of models."""
        if value is None or isinstance(value, CustomConfig):  # whose settings cannot be a key
            return value
        key = (type(value), *vars(value).values())
        known: _ModelT = self._known.setdefault(key, value)
        return known

    def _share_listed(self, kind: str, value: _T) -> _T:
        listed = self._listed.setdefault(kind, [])
        for known in listed:
            if known == value:
                same: _T = known
                return same
        if len(listed) < _MOST_ALIKE:
            listed.append(value)
        return value


def _lean_evaluation(evaluation: EvaluationRecord) -> None:
    _replace(evaluation, images=(), attention_share_per_block=None)


def _replace(record: BaseModel, **values: Any) -> None:
    """Change a frozen record in place; a copy would take as long again as reading it."""
    vars(record).update(values)
    object.__setattr__(record, "__pydantic_fields_set__", _NO_FIELDS)
