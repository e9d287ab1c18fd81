"""The teachers that networks learn from: bundles, each known by what is in it rather than by where it lies."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from harness.core.configs import DistillationConfig, TrainingConfig
from harness.core.errors import OutageError, UserError
from harness.export import bundle_identity, is_bundle, load_network, read_bundle_config
from harness.models import SRNetwork


def find_teachers(places: Iterable[str], scale: int) -> dict[str, str]:
    """Return the identity of the bundle at each place; `UserError` where there is none, or one of another scale."""
    found = {}
    for place in places:
        if not is_bundle(Path(place)):
            raise UserError(
                f"teacher {place} is no bundle: expected a folder with config.json and model.safetensors on this "
                "machine; `harness export` makes one"
            )
        model = read_bundle_config(Path(place)).model
        if model.family == "bicubic":
            raise UserError(f"teacher {place} is bicubic, which has learnt nothing; give a trained network")
        if model.scale != scale:
            raise UserError(
                f"teacher {place} is of scale {model.scale}, but the networks that learn from it are of scale {scale}; "
                "give a teacher of that scale"
            )
        found[place] = bundle_identity(Path(place))
    return found


def with_teacher(training: TrainingConfig, teachers: Mapping[str, str]) -> TrainingConfig:
    """Return a training that says which teacher is meant, by the identities of `find_teachers`.

    `UserError` where it already says another one.
    """
    distillation = training.distillation
    if distillation is None:
        return training
    known = teachers[distillation.teacher]
    _refuse_other(distillation, known)
    return training.model_copy(update={"distillation": distillation.model_copy(update={"teacher_id": known})})


def load_teacher(training: TrainingConfig | None) -> SRNetwork | None:
    """Load the teacher of a training; None without one.

    `OutageError` where it is gone or another one has taken its place: the same training goes on once it is back.
    """
    distillation = training.distillation if training else None
    if distillation is None:
        return None
    place = Path(distillation.teacher)
    try:
        network, found = load_network(place), bundle_identity(place)
    except UserError as error:
        raise OutageError(f"the teacher cannot be loaded: {error}") from None
    _refuse_other(distillation, found, OutageError)
    return network


def _refuse_other(distillation: DistillationConfig, found: str, kind: type[UserError] = UserError) -> None:
    if distillation.teacher_id not in (None, found):
        raise kind(
            f"teacher {distillation.teacher} is {found} by its config and weights, expected "
            f"{distillation.teacher_id}; put that one back, or begin a new run or study with this one"
        )
