"""Learning rates against the closed forms of their papers, and against torch's schedulers."""

from __future__ import annotations

import math

import pytest
import torch

from resnext.training.schedule import History, learning_rate, plateaus
from resnext.training.sections import Schedule

STEPS, EPOCHS, PEAK = 10, 20, 0.4


def rates(history: History | None = None, **fields: object) -> list[float]:
    schedule, known = Schedule.model_validate(fields), history or History()
    return [learning_rate(schedule, PEAK, step, STEPS, EPOCHS, known) for step in range(STEPS * EPOCHS)]


def test_one_cycle_agrees_with_torch() -> None:
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


def test_exponential_drops_in_stairs_as_the_inception_papers_do() -> None:
    ours = rates(name="exponential", factor=0.94, every=2)
    assert ours == pytest.approx([PEAK * 0.94 ** (step // 20) for step in range(200)])


def test_exponential_drops_within_an_epoch_too() -> None:
    ours = rates(name="exponential", factor=0.94, every=4 / 3)
    assert ours == pytest.approx([PEAK * 0.94 ** (3 * step // 40) for step in range(200)])


def test_constant_warm_up_is_a_share_of_the_peak() -> None:
    ours = rates(name="step", milestones=[5], warmup_epochs=2, warmup_rate=0.1)
    assert ours == pytest.approx([PEAK / 10] * 20 + [PEAK] * 30 + [PEAK / 10] * 150)


@pytest.mark.parametrize("name", ["step", "cosine"])
def test_warm_up_until_the_training_error_ends_when_it_ended(name: str) -> None:
    fields = {"name": name, "milestones": [5], "warmup_rate": 0.1, "warmup_until_error": 0.8}
    assert rates(**fields) == pytest.approx([PEAK / 10] * 200)
    ours = rates(History(warmed_up_at=37), **fields)
    assert ours[:37] == pytest.approx([PEAK / 10] * 37)
    after = {
        "step": [PEAK] * 13 + [PEAK / 10] * 150,
        "cosine": [PEAK * (1 + math.cos(math.pi * step / 163)) / 2 for step in range(163)],
    }
    assert ours[37:] == pytest.approx(after[name])


def test_the_running_training_error_ends_the_warm_up_once() -> None:
    schedule = Schedule(name="constant", warmup_rate=0.1, warmup_until_error=0.8)
    history, step = History(), 0
    history.add_training_error(0.0, step, schedule)
    assert history.waits_for_error(schedule)  # one lucky batch is not enough
    while history.waits_for_error(schedule):
        step += 1
        history.add_training_error(0.5, step, schedule)
    # The recursion e ← 0.99·e + 0.01·0.5 from 0.99, solved: e(n) = 0.5 + 0.49·0.99^n < 0.8.
    assert step == math.ceil(math.log(0.3 / 0.49) / math.log(0.99))
    assert history.warmed_up_at == step + 1
    assert not History().waits_for_error(Schedule(name="constant"))


@pytest.mark.parametrize(("patience", "threshold"), [(1, 0.0), (2, 0.0), (3, 0.05), (5, 0.01)])
def test_plateaus_are_those_of_torch(patience: int, threshold: float) -> None:
    errors = [0.9, 0.8, 0.81, 0.79, 0.79, 0.795, 0.6, 0.62, 0.58, 0.6, 0.61, 0.6, 0.57, 0.57, 0.57, 0.57, 0.57, 0.1]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=PEAK)
    # torch waits until more than its patience of epochs were bad.
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, patience=patience - 1, threshold=threshold, threshold_mode="abs", factor=0.1, eps=0
    )
    schedule = Schedule(name="plateau", patience=patience, threshold=threshold, factor=0.1)
    for epoch, error in enumerate(errors, 1):
        theirs.step(error)
        rate = learning_rate(schedule, PEAK, epoch * STEPS, STEPS, EPOCHS, History(errors[:epoch]))
        assert rate == pytest.approx(theirs.get_last_lr()[0], rel=1e-9), epoch
    assert plateaus(errors, patience, threshold) > 0
    assert rates(name="plateau", warmup_epochs=2)[:20] == rates(name="constant", warmup_epochs=2)[:20]
