"""A bundle scored on labelled data, by the same line that predicts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from resnext import machine
from resnext.data.loader import Files, Loader
from resnext.data.manifest import scan
from resnext.errors import UserError
from resnext.evaluation import metrics
from resnext.evaluation.metrics import Scores
from resnext.inference.files import load


def evaluate(
    bundle: str | Path,
    data: str | Path,
    *,
    device: str = "auto",
    precision: str = "fp32",
    max_unreadable: float = 0.01,
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Score a bundle, or a run's, on the test split of labelled data, every image exactly once.

    Labels are matched by class name. Images that cannot be read are counted and named in `Scores.skipped`; more
    than the share `max_unreadable` of them raises UserError, as does a class that the bundle does not know.
    """
    classifier = load(bundle, device=device, precision=precision)
    split = scan(data, purpose="evaluate", classes=classifier.classes).split("test")
    loader = Loader(
        Files(split, classifier.preprocessing),
        split,
        classifier.preprocessing,
        augmentation=None,
        batch_size=classifier.engine.batch_size,
        workers=machine.cores(),
        seed=0,
    )
    scores = metrics.evaluate(classifier.engine, loader, progress)
    if len(scores.skipped) > max_unreadable * len(split):
        path, why = scores.skipped[0]
        raise UserError(
            f"{len(scores.skipped)} of {len(split)} images cannot be read, more than the share {max_unreadable:g} "
            f"that is allowed; for example {path}: {why}.\nMend or remove them, or allow more with --max-unreadable."
        )
    return scores
