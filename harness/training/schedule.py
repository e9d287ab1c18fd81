"""The learning rate as a pure function of the step, so that a resumed run needs no scheduler state."""

import math

from harness.core.configs import TrainingConfig


def learning_rate_at(config: TrainingConfig, step: int) -> float:
    """Return the learning rate of step 0 … steps − 1; see `ScheduleConfig` for the shapes."""
    schedule = config.schedule
    if step < schedule.warmup_steps:
        return config.learning_rate * (step + 1) / schedule.warmup_steps
    if schedule.name == "multistep":
        passed = sum(step >= round(milestone * config.steps) for milestone in schedule.milestones)
        return config.learning_rate * schedule.factor**passed
    if schedule.name == "cosine":
        done = (step - schedule.warmup_steps) / max(config.steps - schedule.warmup_steps, 1)
        share = 0.5 * (1 + math.cos(math.pi * done))
        return config.learning_rate * (schedule.final_fraction + (1 - schedule.final_fraction) * share)
    return config.learning_rate
