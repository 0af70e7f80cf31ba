"""Validation after each epoch, and the bundle of the best one: measured by all processes, written by the first."""

from __future__ import annotations

import copy
import io
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from resnext import body, bundle
from resnext.bundle import Bundle
from resnext.data.loader import Loader
from resnext.engine import Engine, TorchEngine
from resnext.evaluation import calibration
from resnext.evaluation.metrics import Scores, evaluate
from resnext.training.background import Background
from resnext.training.contents import bundle_contents
from resnext.training.features import EndingEngine
from resnext.training.journal import Observer
from resnext.training.unreadable import refuse_too_many_unreadable

if TYPE_CHECKING:
    from resnext.training.plan import Plan
    from resnext.training.step import TrainingStep

GOLDEN_IMAGES = 8
IMAGES_TO_CALIBRATE, MISTAKES_TO_CALIBRATE = 100, 10
PRECISIONS = (0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
"""Wanted ones, for which thresholds are kept."""

COLUMNS = ("labels", "predicted", "probability", "place", "losses")


class Validation:
    """Score a run's network on its validation images, and keep the bundle of the best."""

    def __init__(self, planned: Plan, step: TrainingStep, loader: Loader, background: Background) -> None:
        self.planned = planned
        self.step = step
        self.loader = loader
        self.background = background
        self.vectors: Loader | None = None
        self.evaluated: nn.Module = step.network
        if step.average is not None:
            self.evaluated = copy.deepcopy(step.network)

    def validate(self, tell: Observer) -> Scores:
        """Score the present weights, or their moving average, each process on its part of the images."""
        group, recipe = self.step.group, self.planned.recipe
        vectors = self.vectors if self.step.takes_vectors else None
        loader = self.loader if vectors is None else vectors
        mine = loader.for_process(group.rank, group.size) if group.size > 1 else loader

        def progress(done: int, total: int) -> None:
            tell({"event": "progress", "of": "validation", "done": done, "total": total})

        # Only the first process's running statistics count, as data-parallel training has it.
        group.broadcast(self.step.evaluated_weights().values())
        if self.step.average is not None:
            self.evaluated.load_state_dict(self.step.average.values)
        scores = evaluate(self._whole(recipe.batch_size) if vectors is None else self._ending(), mine, progress)
        if group.size > 1 and len(self.loader.split) >= 2 * group.size:
            scores = _joined(scores, group.gather(_packed(scores)))
        refuse_too_many_unreadable(self.loader, recipe.data.max_unreadable, len(scores.skipped))
        return scores

    def _whole(self, batch_size: int) -> Engine:
        """Return the evaluated network as an engine, in batches of one size."""
        part = -(-min(batch_size, len(self.loader.split)) // self.step.group.size)
        return TorchEngine(
            self.evaluated,
            self.step.preprocessing,
            device=self.step.device.type,
            precision=self.step.precision,
            batch_shapes=(part,),
        )

    def _ending(self) -> Engine:
        """Return the classifier alone, from vectors, as an engine."""
        return EndingEngine(body.ending(self.evaluated), self.step.device)

    def keep_best(self, scores: Scores, epoch: int) -> None:
        """Write the bundle of the present weights, beside the training that goes on."""
        if not self.step.group.leads:
            return
        weights = {
            name: value.detach().to("cpu", copy=True).contiguous().numpy()
            for name, value in self.step.evaluated_weights().items()
            if not name.startswith("auxiliary.")
        }
        results = self._results(scores, self.step.precision, epoch)
        contents = bundle_contents(self.planned, self.step.preprocessing, results)
        self.background.submit(lambda: bundle.write(self.planned.model, contents, weights))

    def measure_best(self, epoch: int) -> dict[str, Any]:
        """Score the kept bundle on validation in fp32, through its own engine, and record that in it."""
        kept = Bundle.open(self.planned.model)
        engine = TorchEngine(kept.build(), kept.contents.preprocessing, device=self.planned.recipe.machine.device)
        scores = evaluate(engine, self.loader, keep_logits=True)
        results = self._results(scores, "fp32", epoch)
        contents = bundle_contents(self.planned, self.step.preprocessing, results)
        bundle.write(
            self.planned.model,
            replace(contents, calibration=calibrated(scores)),
            kept.read(bundle.WEIGHTS),
            self._golden(engine),
        )
        return results

    def _results(self, scores: Scores, precision: str, epoch: int) -> dict[str, Any]:
        return {
            **scores.to_dict(),
            "data": "the validation images of this run, on which the best epoch was chosen",
            "precision": precision,
            "epoch": epoch,
        }

    def _golden(self, engine: TorchEngine) -> tuple[Any, Any]:
        for batch in self.loader.sequential():
            if len(batch.labels):
                pixels = batch.pixels[:GOLDEN_IMAGES]
                return pixels, engine(pixels)
        raise AssertionError("validation was scored, so it has images")


def calibrated(scores: Scores) -> dict[str, Any]:
    """Return a temperature and thresholds fitted on validation images, or nothing where these are too few to tell.

    A network without mistakes gives no measure of how sure it may be.
    """
    assert scores.logits is not None
    if scores.images < IMAGES_TO_CALIBRATE or int((scores.place != 0).sum()) < MISTAKES_TO_CALIBRATE:
        return {}
    temperature = calibration.fit_temperature(scores.logits, scores.labels)
    shares = calibration.softmax(scores.logits, temperature)
    thresholds = {
        f"{wanted:g}": found
        for wanted in PRECISIONS
        if (found := calibration.threshold_for(scores.labels, shares, wanted)) is not None
    }
    return {
        "temperature": temperature,
        "thresholds": thresholds,
        "images": scores.images,
        "data": "the validation images of its run",
    }


def _packed(scores: Scores) -> bytes:
    """Return the rows of a process's scores as bytes: arrays without pickle, then texts."""
    arrays = io.BytesIO()
    texts = np.frombuffer(json.dumps([scores.paths, scores.skipped]).encode(), np.uint8)
    np.savez(arrays, texts=texts, **{name: getattr(scores, name) for name in COLUMNS})
    return arrays.getvalue()


def _joined(scores: Scores, packed: list[bytes]) -> Scores:
    """Return the scores of all processes as one, rows in the split's order."""
    parts = [np.load(io.BytesIO(each), allow_pickle=False) for each in packed]
    texts = [json.loads(part["texts"].tobytes()) for part in parts]
    columns: dict[str, Any] = {name: np.concatenate([part[name] for part in parts]) for name in COLUMNS}
    return replace(
        scores,
        paths=tuple(path for paths, _ in texts for path in paths),
        skipped=tuple((path, why) for _, skipped in texts for path, why in skipped),
        **columns,
    )
