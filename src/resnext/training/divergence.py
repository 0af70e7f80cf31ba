"""What a run does where a loss or a gradient is not finite: leave the step out, and after a few of them go back.

A single bad step, of a broken image or an unlucky batch, changes nothing and is counted. Several in a row mean that
the weights themselves have gone wrong: the run returns to the last checkpoint before them and goes on with half the
learning rate, as the same steps at the same rate would end in the same place. All of it is a function of the run's
state, so that a run which is killed in between comes to the same end.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from resnext.data.loader import Batch
from resnext.data.manifest import Split
from resnext.errors import UserError
from resnext.training.journal import Event
from resnext.training.position import Position
from resnext.training.step import Outcome

IN_A_ROW = 5
RETURNS = 3
FACTOR = 0.5
PATHS = 8

REASONS = {
    "loss": "the loss was not finite",
    "gradient": "a gradient was not finite",
    "images": "fewer than two of its images could be read",
}


class Diverged(Exception):
    """So many steps in a row were not finite that the weights are given up."""


def note_skipped(position: Position, outcome: Outcome) -> None:
    """Count a step that was left out; raises Diverged where it is one too many in a row."""
    if outcome.skipped == "images":
        return
    position.skipped += 1
    position.skipped_in_row += 1
    if position.skipped_in_row >= IN_A_ROW:
        raise Diverged


def event(position: Position, outcome: Outcome, step: int, rate: float, batch: Batch, split: Split) -> Event:
    """Return what the journal says of a step that was left out: why, at which rate, and some of its images."""
    paths = [str(split.path(index)) for index in batch.indices[:PATHS].tolist()]
    return {
        "event": "skipped",
        "epoch": position.epoch,
        "step": step,
        "why": outcome.skipped,
        "loss": outcome.loss,
        "learning_rate": rate,
        "images": outcome.images,
        "paths": paths,
        "text": f"Step {step} was left out: {REASONS[outcome.skipped]} (loss {outcome.loss:.4g}, learning rate "
        f"{rate:.3g}). Its images begin with {Path(paths[0]).name if paths else 'none'}.",
    }


def returned(at: int, to: int, position: Position) -> Event:
    """Return what the journal says of a return: the report of how it came to that."""
    return {
        "event": "return",
        "at_step": at,
        "to_step": to,
        "rate_factor": position.rate_factor,
        "returns": position.returns,
        "text": f"{IN_A_ROW} steps in a row, up to step {at}, were not finite: back to the checkpoint of step {to}, "
        f"and on from there with {position.rate_factor:g} of the learning rate.",
    }


def give_up(step: int, learning_rate: float, precision: str) -> UserError:
    """Return the error for a run that diverged again after every return."""
    tries = [f"a lower --learning-rate (now {learning_rate:.3g}; try {learning_rate / 4:.2g})"]
    if precision != "fp32":
        tries.append(f"--precision fp32 (now {precision})")
    return UserError(
        f"At step {step} losses or gradients were not finite {IN_A_ROW} times in a row, for all of {RETURNS} returns "
        f"to a checkpoint with {FACTOR:g} of the learning rate each.\n"
        f"Start again with another --out and {' or '.join(tries)}; the last checkpoint is kept."
    )


def back(position: Position, restored: Position) -> None:
    """Make `position` what was restored, at a lower rate than before the return."""
    returns, factor = position.returns + 1, position.rate_factor * FACTOR
    values: dict[str, Any] = vars(restored)
    for name, value in values.items():
        setattr(position, name, value)
    position.returns, position.rate_factor = returns, factor
