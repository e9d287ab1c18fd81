"""Where a study keeps its checkpoints, where that is not its folder: one place that all its workers reach.

The study's storage knows the mark that the place carries: by it a worker tells that it sees the same place, and not one
of its own under the same path or URL.
"""

import optuna

from harness.core.checkpoints import GivenPlace, parse_place
from harness.core.errors import UserError
from harness.core.study_folder import StudyFolder

_ATTRIBUTE = "checkpoints"  # of the study: the place, and the mark that it carries


def claim_place(folder: StudyFolder, study: optuna.Study, place: GivenPlace) -> StudyFolder:
    """Return the study's folder with its checkpoints at `place`, which carries the study's mark from now on.

    `UserError` where the study keeps them there already, but another place is seen under that path or URL.
    """
    kept = folder.keep_checkpoints(place, study.study_name)
    assert kept.place is not None
    known = study.user_attrs.get(_ATTRIBUTE)
    if known is not None and known["place"] == str(place):
        kept.place.check(known["token"])
    else:
        token = kept.place.claim()  # first: where this is killed in between, the place is claimed again
        study.set_user_attr(_ATTRIBUTE, {"place": str(place), "token": token})
    return kept


def join_place(folder: StudyFolder, study: optuna.Study, given: str | None) -> StudyFolder:
    """Return the study's folder with its checkpoints where the study keeps them; `given` says how to come there.

    `UserError` where that is not what is seen from here, or where it cannot be written to.
    """
    known = study.user_attrs.get(_ATTRIBUTE)
    if known is None:
        if given is not None:
            raise UserError(
                f"--checkpoints {str(parse_place(given))!r}: study {study.study_name!r} keeps its checkpoints in its "
                "folder; leave --checkpoints and HARNESS_CHECKPOINTS out, or give the search the same"
            )
        return folder
    kept = folder.keep_checkpoints(parse_place(given or known["place"]), study.study_name)
    assert kept.place is not None
    kept.place.check(known["token"])
    return kept


def check_place(folder: StudyFolder, study: optuna.Study) -> None:
    """Raise `UserError` where a process of its own cannot reach the place, or sees another one."""
    if folder.place is not None:
        folder.place.check(study.user_attrs[_ATTRIBUTE]["token"])
