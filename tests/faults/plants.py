"""Bugs that the proof must notice: each is planted in a process, by the name it has here."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Plant:
    """A bug: what it does wrong, and `seen_by`, words of the difference by which it must be noticed."""

    plant: Callable[[], None]
    seen_by: str


def skip_fsync() -> None:
    """Nothing is synced."""
    os.fsync = lambda descriptor: None


def rotate_before_verifying() -> None:
    """Older checkpoints go, whether or not the new one reads back as it was written."""
    from resnext.training import checkpoint

    checkpoint._is_whole = lambda place: True


def journal_not_truncated() -> None:
    """What an interrupted run wrote after its last checkpoint stays in the journal."""
    from resnext.training.journal import Journal

    Journal._drop_from = lambda self, step: None


def average_not_restored() -> None:
    """The moving average begins anew, from the weights."""
    _restoring(lambda tensors: {**tensors, **_averages_from_weights(tensors)})


def _averages_from_weights(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: tensors[name.replace("average/", "network/", 1)] for name in tensors if name.startswith("average/")}


def momentum_not_restored() -> None:
    """The optimiser begins anew."""
    _restoring(lambda tensors: {name: value for name, value in tensors.items() if not name.startswith("optimizer/")})


def _restoring(change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    from resnext.training.step import TrainingStep

    real = TrainingStep.restore
    TrainingStep.restore = lambda self, tensors, updates: real(self, change(tensors), updates)


def step_not_restored() -> None:
    """A resumed epoch begins with its first step."""
    from resnext.training.position import Position

    _position_becomes(lambda told: Position(**{**vars(told), "step_in_epoch": 0}))


def history_not_restored() -> None:
    """The schedule forgets the errors that it waits for, and the run its best."""
    from resnext.training.position import Position
    from resnext.training.schedule import History

    _position_becomes(lambda told: Position(**{**vars(told), "history": History(), "best": None}))


def _position_becomes(change: Callable[[Any], Any]) -> None:
    from resnext.training.position import Position

    real = Position.from_dict.__func__
    Position.from_dict = classmethod(lambda cls, raw: change(real(cls, raw)))


def order_reseeded() -> None:
    """The order of images depends on the process."""
    from resnext.data import order

    real = order.permutation
    order.permutation = lambda seed, *more: real(seed + os.getpid(), *more)


def hash_not_checked() -> None:
    """A checkpoint is taken as it is."""
    from resnext.training import checkpoint

    checkpoint._read = lambda place: [(place / name).read_bytes() for name in (checkpoint.TENSORS, checkpoint.STATE)]


PLANTED = {
    "skip fsync": Plant(skip_fsync, "what was saved is lost"),
    "rotate before verifying": Plant(rotate_before_verifying, "what was saved is lost"),
    "journal not truncated at resume": Plant(journal_not_truncated, "journal: a step stands there twice"),
    "EMA not restored": Plant(average_not_restored, "average of the last checkpoint"),
    "momentum not restored": Plant(momentum_not_restored, "optimizer of the last checkpoint"),
    "history not restored": Plant(history_not_restored, "history"),
    "step not restored": Plant(step_not_restored, "journal"),
    "order reseeded": Plant(order_reseeded, "journal's steps and epochs"),
    "hash not checked": Plant(hash_not_checked, "network of the last checkpoint"),
}
