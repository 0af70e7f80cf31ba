"""The learning rate over a run, as a pure function of the step and of what was measured before it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from resnext.training.sections import Schedule

if TYPE_CHECKING:
    from resnext.training.recipe import Recipe

ONE_CYCLE_START = 1 / 25
STEPS_OF_ERROR = 100  # the running training error is an average over about so many steps


@dataclass
class History:
    """What was measured until now, as far as a schedule may depend on it; errors in 0…1.

    `validation_errors` holds one number for each epoch. `training_error` is a running mean that starts at 1, so that a
    lucky first batch decides nothing; `warmed_up_at` is the first step after a warm-up by training error.
    """

    validation_errors: list[float] = field(default_factory=list)
    training_error: float = 1.0
    warmed_up_at: int | None = None

    def waits_for_error(self, schedule: Schedule) -> bool:
        """Whether the schedule needs the training error of the next step."""
        return schedule.warmup_until_error is not None and self.warmed_up_at is None

    def add_training_error(self, error: float, step: int, schedule: Schedule) -> None:
        """Take in the training error of a step, and end the warm-up where the running mean is low enough."""
        assert schedule.warmup_until_error is not None
        self.training_error += (error - self.training_error) / STEPS_OF_ERROR
        if self.training_error < schedule.warmup_until_error:
            self.warmed_up_at = step + 1


def rate_of(recipe: Recipe, step: int, steps_per_epoch: int, history: History, factor: float = 1.0) -> float:
    """Return the learning rate of one step of a run, times `factor`.

    In the epochs of the classifier alone it falls from their own rate to 0 by a cosine; the schedule has the others.
    """
    alone = recipe.transfer.head_epochs * steps_per_epoch
    if step < alone:
        return recipe.transfer.head_rate * factor * _cosine(1.0, 0.0, step / alone)
    peak, epochs = recipe.optimizer.learning_rate * factor, recipe.epochs - recipe.transfer.head_epochs
    return learning_rate(recipe.schedule, peak, step - alone, steps_per_epoch, epochs, history)


def learning_rate(
    schedule: Schedule, peak: float, step: int, steps_per_epoch: int, epochs: int, history: History
) -> float:
    """Return the learning rate of one step.

    `one-cycle` rises by a cosine from peak/25 over the warm-up (30 % of the run where none is given) and falls by
    a cosine to `final`·peak (L. N. Smith, arXiv:1708.07120, without its momentum cycle). The others rise linearly
    over `warmup_epochs` first, or stay at `warmup_rate`·peak for these or until the training error is low enough
    (arXiv:1512.03385 section 4.2). Then `cosine` falls over the rest of the run (arXiv:1608.03983, no restarts);
    `step` multiplies by `factor` at each milestone, `exponential` after every `every` epochs (arXiv:1512.00567
    section 8), both counted from the run's beginning; `plateau` does so when the validation error stands still;
    `constant` stays.
    """
    total = steps_per_epoch * epochs
    warmup = _warmup_steps(schedule, steps_per_epoch, history)
    if schedule.name == "one-cycle":
        warmup = warmup or 0.3 * total
        if step < warmup:
            return peak * _cosine(ONE_CYCLE_START, 1.0, step / warmup)
        return peak * _cosine(1.0, schedule.final, (step - warmup) / max(1.0, total - warmup))
    if step < warmup:
        constant = schedule.warmup_rate
        return peak * (step + 1) / (warmup + 1) if constant is None else peak * constant
    if schedule.name == "cosine":
        return peak * _cosine(1.0, schedule.final, (step - warmup) / max(1.0, total - warmup))
    return peak * schedule.factor ** _drops(schedule, step, steps_per_epoch, history)


def _warmup_steps(schedule: Schedule, steps_per_epoch: int, history: History) -> float:
    if schedule.warmup_until_error is None:
        return schedule.warmup_epochs * steps_per_epoch
    return math.inf if history.warmed_up_at is None else history.warmed_up_at


def _drops(schedule: Schedule, step: int, steps_per_epoch: int, history: History) -> int:
    """Return how often the rate was multiplied by `factor` until this step."""
    if schedule.name == "step":
        return sum(step >= milestone * steps_per_epoch for milestone in schedule.milestones)
    if schedule.name == "exponential":
        assert schedule.every is not None
        return int(step // (schedule.every * steps_per_epoch))
    if schedule.name == "plateau":
        return plateaus(history.validation_errors, schedule.patience, schedule.threshold)
    return 0


def plateaus(errors: Sequence[float], patience: int, threshold: float) -> int:
    """Return how often the least error was not improved by more than `threshold` for `patience` epochs running."""
    least, waited, count = math.inf, 0, 0
    for error in errors:
        waited += 1
        if error < least - threshold:
            least, waited = error, 0
        elif waited == patience:
            count, waited = count + 1, 0
    return count


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, share))) / 2
