"""Learning rates against the closed forms of their papers."""

from __future__ import annotations

import math

import pytest

from resnext.training.schedule import learning_rate
from resnext.training.sections import Schedule

STEPS, EPOCHS, PEAK = 10, 20, 0.4


def rates(**fields: object) -> list[float]:
    schedule = Schedule.model_validate(fields)
    return [learning_rate(schedule, PEAK, step, STEPS, EPOCHS) for step in range(STEPS * EPOCHS)]


def test_one_cycle_agrees_with_torch() -> None:
    import torch

    ours = rates(name="one-cycle", warmup_epochs=6)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    # torch counts both ends of a phase as steps, so its phases of 61 and 140 points are ours of 60 and 140.
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK, total_steps=201, pct_start=61 / 201, cycle_momentum=False, final_div_factor=1e12
    )
    for step, rate in enumerate(ours):
        assert rate == pytest.approx(theirs.get_last_lr()[0], abs=1e-9), step
        optimizer.step()
        theirs.step()


def test_cosine_falls_over_the_run() -> None:
    ours = rates(name="cosine")
    assert ours == pytest.approx([PEAK * (1 + math.cos(math.pi * s / 200)) / 2 for s in range(200)])


def test_step_drops_at_its_milestones() -> None:
    ours = rates(name="step", milestones=[5, 15], factor=0.1)
    assert ours == pytest.approx([PEAK] * 50 + [PEAK / 10] * 100 + [PEAK / 100] * 50)


def test_warm_up_rises_linearly_and_never_starts_at_zero() -> None:
    ours = rates(name="constant", warmup_epochs=2)
    assert ours[:20] == pytest.approx([PEAK * (s + 1) / 21 for s in range(20)])
    assert ours[20:] == [PEAK] * 180
