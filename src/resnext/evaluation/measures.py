"""How good a classifier is, in the numbers that people ask for, from labels and probabilities. Scikit-learn's, mostly.

A measure that cannot be had (ROC-AUC of a class that has no image, or that all have) is None, and left out of means.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnext.evaluation import calibration
from resnext.evaluation.metrics import CONFIDENCE, wilson_interval

DRAWS = 2_000
"""Bootstrap samples of the images."""

MOST_CLASSES = 200
"""With more, intervals of means over classes are not drawn: a sample of a confusion matrix is then too large."""

Probabilities = NDArray[np.float32]
Labels = NDArray[np.int64]


def measure(labels: Labels, probabilities: Probabilities, classes: Sequence[str]) -> dict[str, Any]:
    """Return all measures of one label an image, ready for JSON; labels N, probabilities N×K.

    Raises AssertionError for no image: whoever scores refuses that before.
    """
    from sklearn import metrics

    assert len(labels), "there are images"
    count = len(classes)
    predicted = np.argmax(probabilities, axis=1)
    # Scikit-learn's confusion_matrix warns where a single class is present.
    confusion = np.bincount(labels * count + predicted, minlength=count * count).reshape(count, count)
    right = int(np.trace(confusion))
    present = np.unique(labels)
    averages = {
        name: _averages(metrics, labels, predicted, present, average)
        for name, average in (("macro", "macro"), ("weighted", "weighted"))
    }
    one_against_rest = one_vs_rest(labels, probabilities)
    return {
        "images": len(labels),
        "top1": right / len(labels),
        "top1_interval": list(wilson_interval(right, len(labels))),
        "balanced_accuracy": float(np.mean(np.diag(confusion)[present] / confusion[present].sum(axis=1))),
        "intervals": bootstrapped(confusion),
        **averages,
        "log_loss": log_loss(labels, probabilities),
        "brier": brier(labels, probabilities),
        "expected_calibration_error": calibration.expected_error(labels, probabilities),
        "roc_auc": _mean(one_against_rest["roc_auc"]),
        "average_precision": _mean(one_against_rest["average_precision"]),
        "coverage": calibration.at_coverage(labels, probabilities),
        "confusion": confusion.tolist(),
        "per_class": _per_class(metrics, labels, predicted, classes, one_against_rest),
    }


def _averages(metrics: Any, labels: Labels, predicted: Labels, present: Labels, average: str) -> dict[str, float]:
    """Return precision, recall and F1 over the classes that have images."""
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(
        labels, predicted, labels=present, average=average, zero_division=0.0
    )
    return {"precision": float(precision), "recall": float(recall), "f1": float(f1)}


def _per_class(
    metrics: Any, labels: Labels, predicted: Labels, classes: Sequence[str], others: dict[str, list[float | None]]
) -> dict[str, dict[str, Any]]:
    columns = metrics.precision_recall_fscore_support(
        labels, predicted, labels=range(len(classes)), average=None, zero_division=0.0
    )
    told = {}
    for index, (name, precision, recall, f1, support) in enumerate(zip(classes, *columns, strict=True)):
        told[name] = {
            "precision": float(precision),
            "recall": float(recall) if support else None,
            "f1": float(f1) if support else None,
            "support": int(support),
            "roc_auc": others["roc_auc"][index],
            "average_precision": others["average_precision"][index],
        }
    return told


def one_vs_rest(labels: Labels, probabilities: Probabilities) -> dict[str, list[float | None]]:
    """Return ROC-AUC and average precision of each class against all others; None where one side has no image."""
    from sklearn import metrics

    areas: list[float | None] = []
    precisions: list[float | None] = []
    for index in range(probabilities.shape[1]):
        is_it = labels == index
        both = 0 < is_it.sum() < len(labels)
        areas.append(float(metrics.roc_auc_score(is_it, probabilities[:, index])) if both else None)
        precisions.append(float(metrics.average_precision_score(is_it, probabilities[:, index])) if both else None)
    return {"roc_auc": areas, "average_precision": precisions}


def log_loss(labels: Labels, probabilities: Probabilities) -> float:
    """Return the mean of −log of the true class's probability, in nats; 0 counts as 10⁻¹⁵, as scikit-learn has it.

    Scikit-learn's own takes several times the memory of the probabilities.
    """
    own = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.mean(np.log(np.clip(own, 1e-15, 1))))


def brier(labels: Labels, probabilities: Probabilities) -> float:
    """Return the mean squared distance of probabilities from the truth, from 0 to 2 (G. W. Brier 1950)."""
    own = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    squares = np.einsum("nk,nk->n", probabilities, probabilities, dtype=np.float64)
    return float(np.mean(squares - 2 * own + 1))


def bootstrapped(confusion: NDArray[np.int64]) -> dict[str, list[float] | None]:
    """Return 95 % bootstrap intervals of top-1, balanced accuracy and macro F1: images drawn anew, 2,000 times.

    To draw images with replacement is to draw the counts of a confusion matrix, multinomially.
    """
    images, count = int(confusion.sum()), len(confusion)
    generator = np.random.default_rng(0)
    top1 = generator.binomial(images, np.trace(confusion) / images, DRAWS) / images
    found: dict[str, list[float] | None] = {"top1": _interval(top1), "balanced_accuracy": None, "macro_f1": None}
    if count > MOST_CLASSES:
        return found
    cells = np.flatnonzero(confusion)
    rows, columns = np.divmod(cells, count)
    drawn = generator.multinomial(images, confusion.ravel()[cells] / images, DRAWS)
    hits, actual, guessed = (
        _sums(drawn, which, count) for which in (np.where(rows == columns, rows, -1), rows, columns)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        recalls, scores = hits / actual, 2 * hits / (actual + guessed)
    present = confusion.sum(axis=1) > 0
    found["balanced_accuracy"] = _interval(np.nanmean(recalls[:, present], axis=1))
    found["macro_f1"] = _interval(np.nanmean(scores[:, present], axis=1))
    return found


def _sums(drawn: NDArray[np.int64], group: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """Add up columns by their groups 0…count−1: D×M → D×count; group −1 is left out."""
    sums = np.zeros((len(drawn), count))
    for index in range(count):
        sums[:, index] = drawn[:, group == index].sum(axis=1)
    return sums


def _interval(values: NDArray[np.float64]) -> list[float]:
    edges = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
    return [float(value) for value in np.quantile(values, edges)]


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None
