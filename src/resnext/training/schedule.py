"""The learning rate over a run, as a pure function of the step."""

from __future__ import annotations

import math

from resnext.training.sections import Schedule

ONE_CYCLE_START = 1 / 25


def learning_rate(schedule: Schedule, peak: float, step: int, steps_per_epoch: int, epochs: int) -> float:
    """Return the learning rate of one step.

    `one-cycle` rises by a cosine from peak/25 over the warm-up (30 % of the run where none is given) and falls by
    a cosine to `final`·peak (L. N. Smith, arXiv:1708.07120, without its momentum cycle); `cosine` falls over the
    whole run (arXiv:1608.03983, no restarts); `step` multiplies by `factor` at each milestone; `constant` stays.
    The last three rise linearly over `warmup_epochs` first.
    """
    total = steps_per_epoch * epochs
    warmup = schedule.warmup_epochs * steps_per_epoch
    if schedule.name == "one-cycle":
        warmup = warmup or 0.3 * total
        if step < warmup:
            return peak * _cosine(ONE_CYCLE_START, 1.0, step / warmup)
        return peak * _cosine(1.0, schedule.final, (step - warmup) / max(1.0, total - warmup))
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if schedule.name == "cosine":
        return peak * _cosine(1.0, schedule.final, (step - warmup) / max(1.0, total - warmup))
    if schedule.name == "step":
        passed = sum(step >= milestone * steps_per_epoch for milestone in schedule.milestones)
        return peak * schedule.factor**passed
    return peak


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, share))) / 2
