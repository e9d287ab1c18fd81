"""What objectives hang on: studies in which that is known."""

import math
import random
from collections.abc import Callable
from typing import Any

import pytest

from harness.core.configs import CAMixerSRConfig, RoutingConfig
from harness.core.importance import INTERACTIONS
from harness.core.records import StudyRecord, TrialRecord
from harness.search.importance import FEWEST_POINTS, MOST_POINTS, explain_objectives
from tests.records import PSNR_MACS, SHORT, point, study_record, trial

GROUPS = ((1, 1), (2, 2), (4, 4), (2, 2, 4, 4))
GAMMAS = (0.0, 0.25, 0.5, 0.75, 1.0)
SPACE = """
scale: 4
training: {steps: 100, batch_size: 8, hr_patch_size: 128}
dimensions:
  model.groups: {choices: [[1, 1], [2, 2], [4, 4], [2, 2, 4, 4]]}
  model.channels: {low: 16, high: 64, step: 4}
  model.offsets: {choices: [true, false]}
  model.window: {choices: [8, 16], when: {model.offsets: [true]}}
  training.learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}
  routing.gamma: {low: 0.0, high: 1.0, step: 0.25}
objectives: [psnr_db, macs]
"""

Score = Callable[[dict[str, Any], float], float]


def made(score: Score, cost: Score = lambda found, gamma: 1e9 * (1 + gamma), networks: int = 60) -> list[TrialRecord]:
    """Trials of random networks, whose points score and cost what is said of their settings and γ."""
    generator = random.Random(5)
    trials = []
    for number in range(networks):
        offsets = generator.random() < 0.5
        found: dict[str, Any] = {
            "groups": generator.choice(GROUPS),
            "channels": generator.choice(range(16, 65, 4)),
            "offsets": offsets,
            "window": generator.choice((8, 16)) if offsets else 16,
        }
        rate = 1e-4 * 100 ** generator.random()
        points = [
            point(
                score({**found, "learning_rate": rate}, gamma),
                round(cost(found, gamma)),
                routing=RoutingConfig(gamma=gamma),
            )
            for gamma in GAMMAS
        ]
        training = SHORT.model_copy(update={"learning_rate": rate})
        trials.append(trial(number, points, model=CAMixerSRConfig(**found), training=training))
    return trials


def study(**changes: Any) -> StudyRecord:
    return study_record(**{"space": SPACE, "objectives": PSNR_MACS, **changes})


@pytest.mark.parametrize(
    ("decides", "score"),
    [
        ("model.groups", lambda found, gamma: 26 + sum(found["groups"]) / 12),
        ("model.channels", lambda found, gamma: 26 + math.log2(found["channels"])),
        ("model.offsets", lambda found, gamma: 26 + found["offsets"]),
        ("training.learning_rate", lambda found, gamma: 26 - abs(math.log10(found["learning_rate"]) + 3)),
        ("routing.gamma", lambda found, gamma: 26 + gamma**2),
    ],
)
def test_a_dimension_that_decides_alone_has_nearly_all(decides: str, score: Score) -> None:
    psnr, macs = explain_objectives(study(), made(score))
    for importance, first in ((psnr, decides), (macs, "routing.gamma")):
        assert next(iter(importance.shares)) == first
        assert importance.shares[first] > 0.8
        assert sum(importance.shares.values()) == pytest.approx(1)
        assert min(importance.shares.values()) >= 0
        assert (importance.points, importance.networks, importance.reason) == (300, 60, None)
    assert set(psnr.shares) == {
        *("model.groups", "model.channels", "model.offsets", "model.window"),
        *("training.learning_rate", "routing.gamma", INTERACTIONS),
    }


def test_what_two_dimensions_do_together_is_interaction() -> None:
    psnr, _ = explain_objectives(study(), made(lambda found, gamma: 26 + (found["offsets"] != (gamma > 0.5))))
    assert psnr.shares[INTERACTIONS] > 0.8


def test_the_same_records_give_the_same_numbers() -> None:
    trials = made(lambda found, gamma: 26 + found["channels"] / 64 + gamma / 4)
    assert explain_objectives(study(), trials) == explain_objectives(study(), trials)


@pytest.mark.slow
def test_of_many_points_some_are_drawn_and_every_gamma_is_among_them() -> None:
    trials = made(lambda found, gamma: 26 + gamma, networks=MOST_POINTS)
    psnr, _ = explain_objectives(study(), trials)
    assert psnr.points == MOST_POINTS
    assert psnr.networks > MOST_POINTS / 2
    assert psnr.shares["routing.gamma"] > 0.8


def test_what_is_counted() -> None:
    """Complete trials, each network once, at the routings of the space alone."""
    trials = made(lambda found, gamma: 26 + gamma, networks=12)
    calibrated = point(27.0, 10, routing=RoutingConfig(policy="schedule", schedule=(0.5, 0.0)))
    usual = explain_objectives(study(), trials)
    changed = [
        trials[0].model_copy(update={"points": (*trials[0].points, calibrated)}),
        *trials[1:],
        trials[3].model_copy(update={"record_id": "trial-00099", "number": 99}),
        trial(98, state="failed", reason="loss is not finite"),
    ]
    assert explain_objectives(study(), changed) == usual
    assert usual[0].points == 60


def test_where_nothing_can_be_said_the_reason_is() -> None:
    few = explain_objectives(study(), made(lambda found, gamma: 26 + gamma, networks=1))
    assert {one.reason for one in few} == {f"5 points so far; it takes {FEWEST_POINTS}"}
    assert all(one.shares == {} for one in few)
    assert [one.points for one in explain_objectives(study(), ())] == [0, 0]
    psnr, macs = explain_objectives(study(), made(lambda found, gamma: 26.0))
    assert psnr.reason == "all 300 points have the same value"
    assert macs.shares["routing.gamma"] > 0.8
    unread, _ = explain_objectives(study(space="name: quickstart\n"), made(lambda found, gamma: 26.0))
    assert unread.reason is not None
    assert "the space of study 'quickstart'" in unread.reason
    twins = [trial(number, made(lambda found, gamma: 26 + gamma, networks=1)[0].points) for number in range(3)]
    same = [
        twin.model_copy(update={"model": CAMixerSRConfig(groups=(1, 1)), "network_id": f"{number:012x}"})
        for number, twin in enumerate(twins)
    ]
    psnr, _ = explain_objectives(study(), same)
    assert psnr.left_out["model.channels"] == "a single value among the points"
    assert set(psnr.shares) == {"routing.gamma", INTERACTIONS}
