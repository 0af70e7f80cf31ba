"""The training loop: epochs of steps, each epoch followed by validation of every image and a checkpoint."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from resnext.data.loader import Batch, Loader
from resnext.errors import UserError
from resnext.evaluation.metrics import Scores
from resnext.training import divergence, microbatch, stopping
from resnext.training.divergence import Diverged
from resnext.training.journal import Observer
from resnext.training.position import Position
from resnext.training.recipe import Recipe
from resnext.training.schedule import rate_of
from resnext.training.state import Checkpoints
from resnext.training.step import Outcome, TrainingStep
from resnext.training.stopping import Interrupted
from resnext.training.unreadable import refuse_too_many_unreadable

STEPS_BEFORE_ESTIMATE = 10
STEPS_TO_WARM_UP = 3


@dataclass(frozen=True)
class Actions:
    """What the loop asks of its run: measure, keep the best, save and go back, tell."""

    validate: Callable[[], Scores]
    keep_best: Callable[[Scores], None]
    checkpoints: Checkpoints
    tell: Observer


class Loop:
    """Train from a position to the recipe's last epoch."""

    def __init__(
        self,
        step: TrainingStep,
        loader: Loader,
        recipe: Recipe,
        position: Position,
        actions: Actions,
        vectors: Loader | None = None,
    ) -> None:
        self.step = step
        self.loader = loader
        self.vectors = vectors
        self.recipe = recipe
        self.position = position
        self.actions = actions
        self.steps_per_epoch = loader.steps
        self.seconds: list[float] = []
        self.named_unreadable: set[int] = set()

    @property
    def number(self) -> int:
        """The number of the next step, counted from the run's beginning."""
        return self.position.step(self.steps_per_epoch)

    def run(self) -> None:
        """Run to the end; raises Interrupted, with everything saved, when a signal asked for it."""
        with stopping.requests() as requested:
            if self.number == 0:
                self._save()
            while self.position.epoch < self.recipe.epochs:
                started = time.perf_counter()
                try:
                    self._train_epoch(requested)
                except Diverged:
                    self._return()
                    continue
                trained = time.perf_counter() - started
                if self._asked(requested):
                    self.actions.tell({"event": "stopping"})
                scores = self.actions.validate()
                self._finish_epoch(scores, trained, time.perf_counter() - started - trained)
                if self._asked(requested):
                    self._stop(requested)
        self.actions.checkpoints.background.wait()
        if self.position.best is None:
            raise UserError(
                "After every epoch what the network puts out on validation images was not finite; nothing was kept.\n"
                "Start again with another --out and a lower --learning-rate, more --epochs, or --precision fp32."
            )

    def _asked(self, requested: list[int]) -> bool:
        """Whether a process of the run was asked to stop."""
        return self.step.group.sums([bool(requested)])[0] > 0

    def _stop(self, requested: list[int]) -> None:
        self.actions.checkpoints.background.wait()
        raise Interrupted(requested[0] if requested else signal.SIGTERM)

    def _train_epoch(self, requested: list[int]) -> None:
        position, saved, self.images_now = self.position, time.monotonic(), 0
        alone = self.vectors is not None and self.step.freezing.is_head_only(position.epoch)
        self.step.begin_epoch(position.epoch, vectors=alone)
        loader = self.vectors if alone and self.vectors is not None else self.loader
        waiting = time.perf_counter()
        for batch in loader.epoch(position.epoch, position.step_in_epoch):
            data_seconds = time.perf_counter() - waiting
            self._name_unreadable()
            position.step_in_epoch = batch.step
            outcome = self._one_step(batch, data_seconds, stopping=bool(requested))
            position.step_in_epoch += 1
            asked = bool(requested) if self.step.group.size == 1 else outcome.stopping
            if asked and position.step_in_epoch < self.steps_per_epoch:
                self.actions.tell({"event": "stopping"})
                self._save()
                self._stop(requested)
            due = time.monotonic() - saved > 60 * self.recipe.machine.checkpoint_every
            # The end of an epoch has a save of its own, under the same number, once its account is told.
            if due and position.step_in_epoch < self.steps_per_epoch and not position.skipped_in_row:
                self._save()
                saved = time.monotonic()
            waiting = time.perf_counter()
        self._name_unreadable()
        self._name_those_of_others()

    def _save(self) -> None:
        waited = self.actions.checkpoints.save(self.number, self.position)
        self.actions.tell({"event": "checkpoint", "at_step": self.number, "waited_seconds": round(waited, 6)})

    def _return(self) -> None:
        """Go back to the last checkpoint before the weights went wrong, with a lower rate."""
        at, rate = self.number, self.recipe.optimizer.learning_rate * self.position.rate_factor
        restored = self.actions.checkpoints.restore(calm=True)
        if restored is None or self.position.returns >= divergence.RETURNS:
            raise divergence.give_up(at, rate, self.step.precision)
        divergence.back(self.position, restored.position)
        self.actions.tell(divergence.returned(at, self.number, self.position))

    def _one_step(self, batch: Batch, data_seconds: float, *, stopping: bool) -> Outcome:
        position, recipe, history = self.position, self.recipe, self.position.history
        step, at_once = self.number, self.step.micro_batch
        rate = rate_of(recipe, step, self.steps_per_epoch, history, position.rate_factor)
        waits = history.waits_for_error(recipe.schedule)
        outcome = self.step(batch, position.epoch, step, rate, count_errors=waits, stopping=stopping)
        if self.step.micro_batch != at_once:
            text = microbatch.said(self.step.micro_batch or 0, len(batch.indices))
            self.actions.tell({"event": "micro-batch", "step": step, "images": self.step.micro_batch, "text": text})
        if outcome.skipped:
            self.actions.tell(divergence.event(position, outcome, step, rate, batch, self.loader.split))
            divergence.note_skipped(position, outcome)
            return outcome
        position.skipped_in_row = 0
        if outcome.errors is not None:
            history.add_training_error(outcome.errors / outcome.images, step, recipe.schedule)
        position.loss_sum += outcome.loss * outcome.images
        position.images += outcome.images
        self.images_now += outcome.images
        self._tell_step(outcome, step, rate, data_seconds)
        return outcome

    def _tell_step(self, outcome: Outcome, step: int, rate: float, data_seconds: float) -> None:
        counted = {} if outcome.errors is None else {"errors": outcome.errors}
        self.actions.tell(
            {
                "event": "step",
                "epoch": self.position.epoch,
                "step": step,
                "images": outcome.images,
                "loss": outcome.loss,
                **counted,
                "learning_rate": rate,
                "data_seconds": round(data_seconds, 6),
                "compute_seconds": round(outcome.compute_seconds, 6),
                "update_seconds": round(outcome.update_seconds, 6),
            }
        )
        if len(self.seconds) == STEPS_BEFORE_ESTIMATE or self.step.takes_vectors:
            return
        self.seconds.append(data_seconds + outcome.compute_seconds + outcome.update_seconds)
        if len(self.seconds) == STEPS_BEFORE_ESTIMATE:
            steady = sorted(self.seconds[STEPS_TO_WARM_UP:])
            seconds = self._relative_cost_left(step) * steady[len(steady) // 2]
            left = self.steps_per_epoch * self.recipe.epochs - step - 1
            self.actions.tell({"event": "estimate", "seconds": round(seconds, 1), "steps": left})
            self._warn_of_grace(steady[len(steady) // 2])

    def _warn_of_grace(self, seconds: float) -> None:
        """Say, once, where a step of so many seconds and a save may be too long for who ends this process."""
        together = seconds + self.actions.checkpoints.seconds
        if together > stopping.TIGHT:
            text = (
                f"A step and a save take {together:.0f} s here. On SIGTERM a run finishes both, but torchrun kills it "
                f"{stopping.GRACE:.0f} s later. Give it more: torchrun --shutdown-timeout {4 * together:.0f}."
            )
            self.actions.tell({"event": "note", "text": text})

    def _relative_cost_left(self, step: int) -> float:
        """Return what the steps left cost, in steps like this one; smaller early inputs cost by their area."""
        epoch, done = divmod(step, self.steps_per_epoch)
        areas = [self.recipe.data.size_in(each) ** 2 for each in range(epoch, self.recipe.epochs)]
        return self.steps_per_epoch * sum(areas) / areas[0] - done

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
        if not position.skipped_in_row:
            self._save()

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

    def _name_those_of_others(self) -> None:
        """Tell of the images that other processes could not read in this epoch."""
        group = self.step.group
        if group.size == 1:
            return
        mine = {str(index): reason for index, reason in self.loader.unreadable.items()}
        for told in group.gather(json.dumps(mine).encode()):
            for index, reason in json.loads(told).items():
                self.loader.unreadable.setdefault(int(index), reason)
        self._name_unreadable()
