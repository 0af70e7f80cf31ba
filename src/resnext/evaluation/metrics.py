"""Scores of an engine on a labelled split: every image exactly once, unreadable ones counted and named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np

from resnext.data.loader import Loader
from resnext.engine import Engine, rank
from resnext.errors import UserError
from resnext.evaluation.views import CENTRE, Views, outputs

CLASSES_FOR_TOP5 = 6
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Scores:
    """One row an image that could be read, in the split's order, and the images that could not be.

    `labels`, `predicted`: class indices; `probability`: of the predicted class; `place`: how many classes were
    ranked above the true one; `losses`: −log probability of the true class, in nats. `notes` say what to know
    of the data, and `views` which views of each image were scored. `logits` N×K are kept where they are asked for.
    """

    classes: tuple[str, ...]
    paths: tuple[str, ...]
    labels: np.ndarray
    predicted: np.ndarray
    probability: np.ndarray
    place: np.ndarray
    losses: np.ndarray
    skipped: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    views: Views = CENTRE
    logits: np.ndarray | None = None

    @property
    def images(self) -> int:
        """How many images were scored."""
        return len(self.labels)

    @property
    def top1(self) -> float:
        """Share of images whose best-ranked class is the true one."""
        return float(np.mean(self.place == 0))

    @property
    def top5(self) -> float | None:
        """Share of images whose true class is among the best five; None below six classes."""
        return float(np.mean(self.place < 5)) if len(self.classes) >= CLASSES_FOR_TOP5 else None

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats."""
        return float(np.mean(self.losses))

    @property
    def top1_interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of top-1."""
        return wilson_interval(int(np.sum(self.place == 0)), self.images)

    def per_class(self) -> dict[str, dict[str, Any]]:
        """Images, correct ones and their share by class name; the share is None where a class has no image."""
        count = len(self.classes)
        images = np.bincount(self.labels, minlength=count)
        correct = np.bincount(self.labels[self.place == 0], minlength=count)
        return {
            name: {"images": int(n), "correct": int(k), "top1": float(k / n) if n else None}
            for name, n, k in zip(self.classes, images, correct, strict=True)
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as `evaluate --json` prints them."""
        return {
            "images": self.images,
            "top1": self.top1,
            "top5": self.top5,
            "top1_interval": list(self.top1_interval),
            "loss": self.loss,
            "views": self.views.to_dict(),
            "per_class": self.per_class(),
            "skipped": [{"path": path, "error": error} for path, error in self.skipped],
            "notes": list(self.notes),
        }


def evaluate(
    engine: Engine,
    loader: Loader,
    progress: Callable[[int, int], None] | None = None,
    *,
    views: Views = CENTRE,
    keep_logits: bool = False,
) -> Scores:
    """Score an engine on a loader's split, read in order, on the centre crops or other views.

    `progress(done, total)` is called after every batch. `keep_logits` keeps what the engine put out. Views at `scales`
    need an engine that takes images of any size, a `DenseEngine`. Raises UserError where no image could be read.
    """
    split, rows, kept = loader.split, [], list[np.ndarray]()
    for indices, logits in outputs(engine, loader, views):
        rows.append((indices, *score_batch(logits, loader.labels[indices])))
        if keep_logits:
            kept.append(logits.astype(np.float32))
        if progress is not None:
            progress(int(indices[-1]) + 1, len(split))
    if not rows:
        raise no_image_read(loader)
    indices, labels, predicted, probability, place, losses = map(np.concatenate, zip(*rows, strict=True))
    return Scores(
        classes=tuple(split.classes),
        paths=tuple(str(split.path(int(index))) for index in indices),
        labels=labels,
        predicted=predicted,
        probability=probability,
        place=place,
        losses=losses,
        skipped=tuple((str(split.path(index)), why) for index, why in sorted(loader.unreadable.items())),
        views=views,
        logits=np.concatenate(kept) if keep_logits else None,
    )


def score_batch(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return labels, predicted classes, their probabilities, the true classes' places and losses; each of length N.

    Takes logits N×K and labels N. Ranking is `engine.rank`, so that ties fall as they do in `predict`.
    """
    ranked, probability = rank(logits)
    place = np.argmax(ranked == labels[:, None], axis=1)
    exact = logits.astype(np.float64)
    exact -= exact.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(exact).sum(axis=1))
    losses = log_sum - np.take_along_axis(exact, labels[:, None], axis=1)[:, 0]
    return labels, ranked[:, 0], probability[:, 0], place, losses


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a share (Wilson 1927), as scipy's binomtest gives it.

    It is written out since importing scipy.stats takes half a second, which a short evaluation would notice.
    """
    from statistics import NormalDist

    quantile = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    share, spread = successes / trials, quantile**2 / trials
    half = sqrt(spread * (share * (1 - share) + spread / 4))
    low, high = ((share + spread / 2 + side) / (1 + spread) for side in (-half, half))
    return (0.0 if successes == 0 else low), (1.0 if successes == trials else high)


def no_image_read(loader: Loader) -> UserError:
    """Return the error for a split of which not one image could be read."""
    path, why = next(((loader.split.path(index), why) for index, why in loader.unreadable.items()), ("", "empty"))
    return UserError(f"Not one of {len(loader.split)} images could be read; the first: {path}: {why}. Check the files.")
