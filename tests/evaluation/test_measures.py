"""Measures of labels and probabilities, against scikit-learn's and by hand, on random and on degenerate ones."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from resnext.evaluation import calibration, measures


def drawn(seed: int, images: int, classes: int, *, sharp: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, images)
    logits = generator.normal(0, 1, (images, classes))
    logits[np.arange(images), labels] += generator.uniform(-1, sharp, images)
    return labels, calibration.softmax(logits).astype(np.float32)


def names(count: int) -> list[str]:
    return [f"class {index}" for index in range(count)]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 80), st.integers(2, 7))
def test_measures_are_scikit_learn_s(seed: int, images: int, classes: int) -> None:
    labels, shares = drawn(seed, images, classes)
    told = measures.measure(labels, shares, names(classes))
    predicted = shares.argmax(axis=1)
    present = np.unique(labels)
    assert told["top1"] == pytest.approx(metrics.accuracy_score(labels, predicted))
    assert told["balanced_accuracy"] == pytest.approx(
        metrics.recall_score(labels, predicted, labels=present, average="macro")
    )
    assert told["macro"]["f1"] == pytest.approx(
        metrics.f1_score(labels, predicted, labels=present, average="macro", zero_division=0.0)
    )
    assert told["brier"] == pytest.approx(
        metrics.brier_score_loss(labels, shares, labels=range(classes), scale_by_half=False), abs=1e-6
    )
    assert told["log_loss"] == pytest.approx(metrics.log_loss(labels, shares, labels=range(classes)), abs=1e-5)
    assert np.array(told["confusion"]).sum() == images
    for index, row in enumerate(told["per_class"].values()):
        is_it = labels == index
        assert row["support"] == is_it.sum()
        if 0 < is_it.sum() < images:
            assert row["roc_auc"] == pytest.approx(metrics.roc_auc_score(is_it, shares[:, index]))
        else:
            assert row["roc_auc"] is None
    json.dumps(told, allow_nan=False)


DEGENERATE: dict[str, tuple[Any, Any]] = {
    "one class present": ([1, 1, 1], [[0.2, 0.8], [0.6, 0.4], [0.5, 0.5]]),
    "perfect": ([0, 1, 2], np.eye(3)),
    "constant": ([0, 1, 1, 0], [[0.7, 0.3]] * 4),
    "ties": ([0, 1, 2], [[1 / 3] * 3] * 3),
    "always wrong": ([0, 1], [[0.0, 1.0], [1.0, 0.0]]),
    "one image": ([0], [[0.1, 0.9]]),
    "one class": ([0, 0], [[1.0], [1.0]]),
}


@pytest.mark.parametrize("kind", DEGENERATE)
@pytest.mark.filterwarnings("error")
def test_degenerate_images_have_measures_or_none_and_no_warning(kind: str) -> None:
    labels, shares = (np.array(each) for each in DEGENERATE[kind])
    told = measures.measure(labels, shares.astype(np.float32), names(shares.shape[1]))
    json.dumps(told, allow_nan=False)
    assert told["top1"] == np.mean(shares.argmax(axis=1) == labels)
    if kind == "perfect":
        assert (told["roc_auc"], told["brier"], told["expected_calibration_error"]) == (1.0, 0.0, 0.0)
        assert told["macro"] == {"precision": 1.0, "recall": 1.0, "f1": 1.0}
    if kind == "always wrong":
        assert (told["top1"], told["brier"], told["expected_calibration_error"]) == (0.0, 2.0, 1.0)
    if kind in ("one class present", "one class"):
        assert told["roc_auc"] is None
        assert told["balanced_accuracy"] == told["top1"]
    if kind == "constant":
        assert told["roc_auc"] == 0.5


def test_bootstrap_intervals_are_those_of_drawing_images() -> None:
    labels, shares = drawn(5, 120, 4)
    predicted = shares.argmax(axis=1)
    told = measures.measure(labels, shares, names(4))["intervals"]
    generator = np.random.default_rng(1)
    drawn_rows = generator.integers(0, 120, (2_000, 120))
    balanced = [
        metrics.recall_score(labels[rows], predicted[rows], average="macro", zero_division=0.0) for rows in drawn_rows
    ]
    assert told["balanced_accuracy"] == pytest.approx(np.quantile(balanced, (0.025, 0.975)), abs=0.01)
    right = (labels == predicted)[drawn_rows].mean(axis=1)
    assert told["top1"] == pytest.approx(np.quantile(right, (0.025, 0.975)), abs=0.01)


def test_calibration_error_is_the_definition() -> None:
    labels = np.array([0, 0, 1, 1, 0])
    shares = np.array([[0.95, 0.05], [0.95, 0.05], [0.9, 0.1], [0.3, 0.7], [0.35, 0.65]])
    # bins of a fifteenth: 0.95 twice in one, right; 0.9, wrong; 0.7, right; 0.65, wrong
    expected = (2 * abs(0.95 - 1) + abs(0.9 - 0) + abs(0.7 - 1) + abs(0.65 - 0)) / 5
    assert calibration.expected_error(labels, shares) == pytest.approx(expected)
    assert sum(each.images for each in calibration.bins(labels, shares)) == 5


def test_a_temperature_mends_an_over_confident_network_and_changes_no_label() -> None:
    generator = np.random.default_rng(2)
    labels = generator.integers(0, 5, 4_000)
    logits = generator.normal(0, 1, (4_000, 5))
    logits[np.arange(4_000), labels] += 1.0
    sure = 6 * logits
    temperature = calibration.fit_temperature(sure[:2_000], labels[:2_000])
    held_out, truth = sure[2_000:], labels[2_000:]
    before, after = calibration.softmax(held_out), calibration.softmax(held_out, temperature)
    assert 4 < temperature < 9
    assert calibration.expected_error(truth, after) < 0.2 * calibration.expected_error(truth, before)
    assert np.array_equal(before.argmax(axis=1), after.argmax(axis=1))
    assert calibration.fit_temperature(sure / temperature, labels) == pytest.approx(1, abs=0.05)


def test_a_temperature_stays_within_bounds_where_nothing_else_limits_it() -> None:
    labels = np.array([0, 1])
    perfect = np.array([[3.0, 0.0], [0.0, 3.0]])
    assert calibration.COLDEST <= calibration.fit_temperature(perfect, labels) < 0.2
    assert 15 < calibration.fit_temperature(-perfect, labels) <= calibration.HOTTEST


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 60), st.floats(0.3, 1.0))
def test_a_threshold_keeps_its_promise_and_is_the_lowest_that_does(seed: int, images: int, precision: float) -> None:
    labels, shares = drawn(seed, images, 3)
    confidence, right = shares.max(axis=1).astype(np.float64), shares.argmax(axis=1) == labels
    keeps = [
        threshold for threshold in np.unique(confidence) if right[confidence >= threshold].mean() >= precision - 1e-12
    ]
    found = calibration.threshold_for(labels, shares, precision)
    if not keeps:
        assert found is None
        return
    assert found is not None
    assert found["threshold"] == min(keeps)
    answered = confidence >= found["threshold"]
    assert found["coverage"] == pytest.approx(answered.mean())
    assert found["precision"] == pytest.approx(right[answered].mean())


def test_surer_answers_are_righter() -> None:
    labels, shares = drawn(7, 5_000, 4, sharp=5.0)
    told = calibration.at_coverage(labels, shares)
    accuracies = [each["accuracy"] for each in told]
    assert accuracies == sorted(accuracies)
    assert told[0] == {
        "coverage": 1.0,
        "accuracy": np.mean(shares.argmax(1) == labels),
        "threshold": shares.max(1).min(),
    }


def test_answers_that_are_equally_sure_are_given_together_or_not() -> None:
    labels, shares = np.array([0, 1, 0]), np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4]])
    assert calibration.threshold_for(labels, shares, 0.9) is None
    found = calibration.threshold_for(labels, shares, 0.6)
    assert found == {"threshold": 0.6, "coverage": 1.0, "precision": pytest.approx(2 / 3)}
