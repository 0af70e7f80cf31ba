"""Planted label errors are found, and two classifiers are told apart only where they differ enough."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from resnext.evaluation import agreement, calibration, label_errors


@pytest.mark.parametrize("seed", range(5))
def test_planted_errors_come_first(seed: int) -> None:
    generator = np.random.default_rng(seed)
    images, classes = 5_000, 10
    truth = generator.integers(0, classes, images)
    logits = generator.normal(0, 1, (images, classes))
    logits[np.arange(images), truth] += 4.0
    labels = truth.copy()
    wrong = generator.choice(images, images // 50, replace=False)
    labels[wrong] = (truth[wrong] + generator.integers(1, classes, len(wrong))) % classes
    first = label_errors.ranking(labels, calibration.softmax(logits))
    assert sorted(first) == list(range(images))
    top = set(first[: images // 20].tolist())
    assert len(top & set(wrong.tolist())) / len(wrong) >= 0.8
    found = label_errors.suspects(labels, calibration.softmax(logits))
    rather = {each.row: each.rather for each in found}
    hits = [row for row in wrong.tolist() if row in rather]
    assert np.mean([rather[row] == truth[row] for row in hits]) > 0.95


def test_where_nothing_is_wrong_nobody_is_suspect() -> None:
    labels = np.arange(3).repeat(4)
    assert label_errors.suspects(labels, np.eye(3)[labels] * 0.9 + 0.03) == []
    lonely = label_errors.suspects(np.zeros(3, np.int64), np.full((3, 2), 0.5))
    assert lonely == []


def test_a_difference_is_mcnemar_s() -> None:
    labels = np.zeros(20, np.int64)
    first, second = np.zeros(20, np.int64), np.zeros(20, np.int64)
    second[:9] = 1
    first[9] = 1
    told = agreement.compare(labels, first, second)
    assert (told.both, told.first_alone, told.second_alone, told.neither) == (10, 9, 1, 0)
    assert told.agree == 0.5
    assert told.p_value == pytest.approx(2 * binom.cdf(1, 10, 0.5))
    assert agreement.compare(labels, first, first).p_value is None
