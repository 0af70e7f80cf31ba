"""Whether a classifier is as right as it is sure: calibration error, a temperature, a threshold for abstaining."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 15
"""Of equal width, as C. Guo and others, "On Calibration of Modern Neural Networks", arXiv:1706.04599 section 2."""

COLDEST, HOTTEST = 0.05, 20.0
"""Between these a temperature is sought."""

ROWS = 4096
"""Computed in float64 at once."""

COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Bin:
    """Images of about one confidence: how many, their mean confidence, the share of right ones."""

    low: float
    high: float
    images: int
    confidence: float | None
    accuracy: float | None


def bins(labels: Labels, probabilities: NDArray[np.floating[Any]]) -> list[Bin]:
    """Return the reliability diagram: the best class's probability against how often it is right, in 15 bins."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    edges = np.linspace(0, 1, BINS + 1)
    place = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    found = []
    for index in range(BINS):
        here = place == index
        count = int(here.sum())
        shares = (float(confidence[here].mean()), float(right[here].mean())) if count else (None, None)
        found.append(Bin(float(edges[index]), float(edges[index + 1]), count, *shares))
    return found


def expected_error(labels: Labels, probabilities: NDArray[np.floating[Any]]) -> float:
    """Return the expected calibration error: how far confidence is from accuracy, over the bins, by their images."""
    total = 0.0
    for each in bins(labels, probabilities):
        if each.confidence is not None and each.accuracy is not None:
            total += each.images * abs(each.confidence - each.accuracy)
    return total / len(labels)


def softmax(logits: NDArray[np.floating[Any]], temperature: float = 1.0) -> NDArray[np.float32]:
    """Return probabilities N×K of logits N×K, flatter the higher the temperature; the order stays, but for ties.

    Computed in float64, some rows at a time, so that memory is that of the result.
    """
    shares = np.empty(logits.shape, np.float32)
    for start in range(0, len(logits), ROWS):
        exact = logits[start : start + ROWS].astype(np.float64) / temperature
        exact -= exact.max(axis=1, keepdims=True)
        np.exp(exact, out=exact)
        shares[start : start + ROWS] = exact / exact.sum(axis=1, keepdims=True)
    return shares


def fit_temperature(logits: NDArray[np.floating[Any]], labels: Labels) -> float:
    """Return the temperature whose probabilities have the least cross-entropy (arXiv:1706.04599 section 4.2).

    Fit it on images that the network was not trained on. It changes no label.
    """
    from scipy.optimize import minimize_scalar

    largest = logits.max(axis=1, keepdims=True)
    own = (logits[np.arange(len(labels)), labels] - largest[:, 0]).astype(np.float64)

    def loss(log_temperature: float) -> float:
        inverse, total = np.exp(-log_temperature), 0.0
        for start in range(0, len(logits), ROWS):
            exact = (logits[start : start + ROWS] - largest[start : start + ROWS]).astype(np.float64)
            total += float(np.log(np.exp(exact * inverse).sum(axis=1)).sum())
        return total / len(logits) - float(np.mean(own)) * float(inverse)

    found = minimize_scalar(loss, bounds=(np.log(COLDEST), np.log(HOTTEST)), method="bounded")
    return float(np.exp(found.x))


def at_coverage(labels: Labels, probabilities: NDArray[np.floating[Any]]) -> list[dict[str, float]]:
    """Return the accuracy where only the surest images are answered, for shares of them from all to half."""
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    order = np.argsort(-confidence, kind="stable")
    told = []
    for share in COVERAGES:
        kept = order[: max(1, round(share * len(labels)))]
        told.append(
            {"coverage": share, "accuracy": float(right[kept].mean()), "threshold": float(confidence[kept].min())}
        )
    return told


def threshold_for(
    labels: Labels, probabilities: NDArray[np.floating[Any]], precision: float
) -> dict[str, float] | None:
    """Return the lowest probability from which on answers are right as often as wanted, and the share answered.

    None where not even the surest answers are. Chosen on these images, it is a promise only for images like them.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = (probabilities.argmax(axis=1) == labels).astype(np.float64)
    order = np.argsort(-confidence, kind="stable")
    shares = np.cumsum(right[order]) / np.arange(1, len(labels) + 1)
    ends = np.append(np.diff(confidence[order]) < 0, True)  # answers of one confidence are given together, or not
    good = np.flatnonzero(ends & (shares >= precision))
    if not len(good):
        return None
    last = int(good[-1])
    return {
        "threshold": float(confidence[order[last]]),
        "coverage": (last + 1) / len(labels),
        "precision": float(shares[last]),
    }
