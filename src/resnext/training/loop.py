"""The training loop: epochs of steps, each epoch followed by validation of every image and a checkpoint."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from types import FrameType
from typing import Any

from resnext.data.loader import Batch, Loader
from resnext.errors import UserError
from resnext.evaluation.metrics import Scores
from resnext.training.journal import Observer
from resnext.training.recipe import Recipe
from resnext.training.schedule import History, learning_rate
from resnext.training.step import Outcome, TrainingStep

STEPS_BEFORE_ESTIMATE = 10
STEPS_TO_WARM_UP = 3
STOPPING = ("SIGINT", "SIGTERM", "SIGUSR1")
"""The signals that ask a run to stop. Slurm and others send the last one some time before they end a job."""


class Interrupted(Exception):
    """The user or the system asked the run to stop; its state was saved.

    `exit_code` is 130 for SIGINT (Ctrl-C), and 143 for SIGTERM and SIGUSR1, by which batch systems announce an end.
    """

    def __init__(self, signal_number: int, message: str = "") -> None:
        super().__init__(message or signal.Signals(signal_number).name)
        self.signal_number = signal_number
        self.exit_code = 128 + (signal.SIGINT if signal_number == signal.SIGINT else signal.SIGTERM)


@dataclass
class Position:
    """Where a run stands: the next step, the epoch's sums so far, the best validation, and the schedule's history."""

    epoch: int = 0
    step_in_epoch: int = 0
    loss_sum: float = 0.0
    images: int = 0
    best: dict[str, Any] | None = None
    history: History = field(default_factory=History)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Position:
        """Return the position that `to_dict` gave; what an older version did not record is as at the beginning."""
        return cls(**{**raw, "history": History(**raw.get("history", {}))})

    def to_dict(self) -> dict[str, Any]:
        """Return the position as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Actions:
    """What the loop asks of its run: measure, keep the best, save, tell."""

    validate: Callable[[], Scores]
    keep_best: Callable[[Scores], None]
    save: Callable[[], None]
    tell: Observer


class Loop:
    """Train from a position to the recipe's last epoch."""

    def __init__(
        self, step: TrainingStep, loader: Loader, recipe: Recipe, position: Position, actions: Actions
    ) -> None:
        self.step = step
        self.loader = loader
        self.recipe = recipe
        self.position = position
        self.actions = actions
        self.steps_per_epoch = loader.steps
        self.seconds: list[float] = []
        self.named_unreadable: set[int] = set()

    def run(self) -> None:
        """Run to the end; raises Interrupted, with everything saved, when a signal asked for it."""
        with _stop_requests() as requested:
            while self.position.epoch < self.recipe.epochs:
                started = time.perf_counter()
                self._train_epoch(requested)
                trained = time.perf_counter() - started
                if requested:
                    self.actions.tell({"event": "stopping"})
                scores = self.actions.validate()
                self._finish_epoch(scores, trained, time.perf_counter() - started - trained)
                if requested:
                    raise Interrupted(requested[0])
        if self.position.best is None:
            raise UserError(
                "After every epoch what the network puts out on validation images was not finite; nothing was kept.\n"
                "Start again with another --out and a lower --learning-rate, more --epochs, or --precision fp32."
            )

    def _train_epoch(self, requested: list[int]) -> None:
        position, saved, self.images_now = self.position, time.monotonic(), 0
        self.step.network.train()
        waiting = time.perf_counter()
        for batch in self.loader.epoch(position.epoch, position.step_in_epoch):
            data_seconds = time.perf_counter() - waiting
            self._name_unreadable()
            position.step_in_epoch = batch.step
            self._one_step(batch, data_seconds)
            position.step_in_epoch += 1
            if requested and position.step_in_epoch < self.steps_per_epoch:
                self.actions.tell({"event": "stopping"})
                self.actions.save()
                raise Interrupted(requested[0])
            if time.monotonic() - saved > 60 * self.recipe.machine.checkpoint_every:
                self.actions.save()
                saved = time.monotonic()
            waiting = time.perf_counter()
        self._name_unreadable()

    def _one_step(self, batch: Batch, data_seconds: float) -> None:
        position, recipe, history = self.position, self.recipe, self.position.history
        step = position.epoch * self.steps_per_epoch + position.step_in_epoch
        peak = recipe.optimizer.learning_rate
        rate = learning_rate(recipe.schedule, peak, step, self.steps_per_epoch, recipe.epochs, history)
        waits = history.waits_for_error(recipe.schedule)
        outcome = self.step(batch, position.epoch, step, rate, count_errors=waits)
        if outcome.errors is not None:
            history.add_training_error(outcome.errors / len(batch.labels), step, recipe.schedule)
        position.loss_sum += outcome.loss * len(batch.labels)
        position.images += len(batch.labels)
        self.images_now += len(batch.labels)
        self._tell_step(outcome, step, rate, len(batch.labels), data_seconds)

    def _tell_step(self, outcome: Outcome, step: int, rate: float, images: int, data_seconds: float) -> None:
        counted = {} if outcome.errors is None else {"errors": outcome.errors}
        self.actions.tell(
            {
                "event": "step",
                "epoch": self.position.epoch,
                "step": step,
                "images": images,
                "loss": outcome.loss,
                **counted,
                "learning_rate": rate,
                "data_seconds": round(data_seconds, 6),
                "compute_seconds": round(outcome.compute_seconds, 6),
                "update_seconds": round(outcome.update_seconds, 6),
            }
        )
        if len(self.seconds) == STEPS_BEFORE_ESTIMATE:
            return
        self.seconds.append(data_seconds + outcome.compute_seconds + outcome.update_seconds)
        if len(self.seconds) == STEPS_BEFORE_ESTIMATE:
            steady = sorted(self.seconds[STEPS_TO_WARM_UP:])
            seconds = self._relative_cost_left(step) * steady[len(steady) // 2]
            left = self.steps_per_epoch * self.recipe.epochs - step - 1
            self.actions.tell({"event": "estimate", "seconds": round(seconds, 1), "steps": left})

    def _relative_cost_left(self, step: int) -> float:
        """Return what the steps left cost, in steps like this one; smaller early inputs cost by their area."""
        data, all_steps = self.recipe.data, self.steps_per_epoch * self.recipe.epochs
        early_end = min(all_steps, data.early_epochs * self.steps_per_epoch) if data.early_size else 0
        early = max(0, early_end - step)
        ratio = (data.image_size / data.early_size) ** 2 if data.early_size and early else 1.0
        return early + ratio * (all_steps - step - early)

    def _finish_epoch(self, scores: Scores, train_seconds: float, validate_seconds: float) -> None:
        position = self.position
        # Running statistics of a few steps may let a deep network overflow: such an epoch is never the best one.
        finite = math.isfinite(scores.loss)
        best = finite and (
            position.best is None or (scores.top1, -scores.loss) > (position.best["top1"], -position.best["loss"])
        )
        event = {
            "event": "epoch",
            "epoch": position.epoch,
            "step": (position.epoch + 1) * self.steps_per_epoch - 1,
            "train_loss": position.loss_sum / max(1, position.images),
            "images": position.images,
            "top1": scores.top1,
            "loss": scores.loss if finite else None,
            "best": best,
            "images_a_second": round(self.images_now / train_seconds, 1),  # of this process, should it have resumed
            "train_seconds": round(train_seconds, 3),
            "validate_seconds": round(validate_seconds, 3),
        }
        if best:
            position.best = {"epoch": position.epoch, "top1": scores.top1, "loss": scores.loss}
            self.actions.keep_best(scores)
        position.history.validation_errors.append(1 - scores.top1)
        position.epoch += 1
        position.step_in_epoch, position.loss_sum, position.images = 0, 0.0, 0
        self.actions.tell(event)
        self.actions.save()

    def _name_unreadable(self) -> None:
        new = self.loader.unreadable.keys() - self.named_unreadable
        for index in sorted(new):
            self.actions.tell(
                {
                    "event": "unreadable",
                    "path": str(self.loader.split.path(index)),
                    "error": self.loader.unreadable[index],
                }
            )
        self.named_unreadable |= new
        if new:
            refuse_too_many_unreadable(self.loader, self.recipe.data.max_unreadable)


def refuse_too_many_unreadable(loader: Loader, share: float) -> None:
    """Raise UserError where more than this share of a split's images turned out to be unreadable."""
    unreadable, count = loader.unreadable, len(loader.split)
    if len(unreadable) > share * count:
        index, reason = next(iter(unreadable.items()))
        raise UserError(
            f"{len(unreadable)} of {count} images cannot be read, more than the share {share:g} that is allowed; "
            f"for example {loader.split.path(index)}: {reason}.\n"
            "Mend or remove them, or allow more with --max-unreadable."
        )


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Collect requests to stop instead of dying in the middle of a step; a second signal acts at once."""
    requested: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield requested
        return
    numbers = [getattr(signal, name) for name in STOPPING if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}

    def request(number: int, frame: FrameType | None) -> None:
        requested.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in numbers:
        signal.signal(number, request)
    try:
        yield requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
