"""Scores against scikit-learn and published formulas, on ordinary and degenerate inputs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, log_loss, top_k_accuracy_score

from resnext.engine import probabilities
from resnext.evaluation import metrics
from resnext.evaluation.metrics import Scores


def scores(logits: np.ndarray, labels: np.ndarray, classes: int) -> Scores:
    columns = metrics.score_batch(logits, labels)
    names = tuple(f"class {number}" for number in range(classes))
    return Scores(names, tuple(map(str, range(len(labels)))), *columns)


@pytest.mark.parametrize("classes", [2, 5, 6, 20])
def test_against_scikit_learn(classes: int) -> None:
    generator = np.random.default_rng(classes)
    logits = generator.normal(0, 2, (400, classes)).astype(np.float32)
    labels = generator.integers(0, classes, 400)
    ours, shares, known = scores(logits, labels, classes), probabilities(logits), np.arange(classes)
    assert ours.top1 == pytest.approx(accuracy_score(labels, logits.argmax(1)))
    assert ours.loss == pytest.approx(log_loss(labels, shares, labels=known), rel=1e-6)
    if classes < 6:
        assert ours.top5 is None
    else:
        assert ours.top5 == pytest.approx(top_k_accuracy_score(labels, shares, k=5, labels=known))
    for number, row in enumerate(ours.per_class().values()):
        mine = labels == number
        assert row["images"] == mine.sum()
        assert row["top1"] == pytest.approx(np.mean(logits.argmax(1)[mine] == number))


@pytest.mark.parametrize(("successes", "trials"), [(88, 100), (0, 10), (10, 10), (1, 1), (0, 1), (7075, 10_000)])
def test_wilson_interval_is_scipy_s(successes: int, trials: int) -> None:
    expected = binomtest(successes, trials).proportion_ci(confidence_level=0.95, method="wilson")
    found = metrics.wilson_interval(successes, trials)
    assert found == pytest.approx((expected.low, expected.high), rel=1e-9, abs=1e-12)
    assert 0 <= found[0] <= successes / trials <= found[1] <= 1


def test_constant_and_extreme_logits() -> None:
    ties = scores(np.zeros((4, 3), np.float32), np.array([0, 1, 2, 0]), 3)
    assert ties.top1 == 0.5  # ties go to the first class
    assert ties.loss == pytest.approx(math.log(3))
    sure = scores(np.array([[1e4, -1e4]], np.float32), np.array([1]), 2)
    assert sure.loss == pytest.approx(2e4)
    assert sure.per_class()["class 0"] == {"images": 0, "correct": 0, "top1": None}
