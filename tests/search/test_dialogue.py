"""What a study's trials say together is what looking at every one of them says, however they came and ended."""

import random

import optuna
import pytest
from optuna.trial import FrozenTrial, Trial, TrialState

from harness.search.dialogue import Overview


def expected(trials: list[FrozenTrial]) -> tuple[int, int, set[object], dict[object, list[int]]]:
    networks: dict[object, list[int]] = {}
    for trial in trials:
        networks.setdefault(trial.user_attrs.get("network"), []).append(trial.number)
    return (
        sum("again" not in trial.user_attrs for trial in trials),
        max((trial._trial_id for trial in trials), default=-1),
        {trial.user_attrs.get("record_id") for trial in trials},
        networks,
    )


@pytest.mark.parametrize("seed", range(5))
def test_an_overview_read_again_and_again_misses_nothing(seed: int) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study()
    generator = random.Random(seed)
    overview, running = Overview(), list[Trial]()
    for step in range(60):
        if generator.random() < 0.2:
            study.enqueue_trial({"x": generator.random()})
        if not running or generator.random() < 0.5:
            running.append(study.ask())
            if generator.random() < 0.8:
                running[-1].set_user_attr("record_id", f"trial-{running[-1].number:05d}")
                running[-1].set_user_attr("network", f"network {generator.randrange(4)}")
        else:
            trial = running.pop(generator.randrange(len(running)))
            if generator.random() < 0.3:
                trial.set_user_attr("again", True)
            if generator.random() < 0.5:
                study.tell(trial, 1.0)
            else:
                study.tell(trial, state=generator.choice((TrialState.FAIL, TrialState.PRUNED)))
        if step % 3:
            continue
        trials = study.get_trials(deepcopy=False)
        overview.read(trials)
        places, newest, record_ids, networks = expected(trials)
        assert (overview.places, overview.newest) == (places, newest)
        for number in range(len(trials) + 1):
            assert overview.has(f"trial-{number:05d}") == (f"trial-{number:05d}" in record_ids)
        for index in range(4):
            found = [trial.number for trial in overview.of_network(f"network {index}")]
            assert found == networks.get(f"network {index}", [])
        open_ones = [trial.number for trial in trials if not trial.state.is_finished()]
        assert [trial.number for trial in overview.rest if not trial.state.is_finished()] == open_ones
