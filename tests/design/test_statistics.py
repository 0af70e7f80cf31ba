"""Means, paired differences and corrections, against scipy and against trying all signs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from resnext.design import statistics

SHARES = st.lists(st.floats(0, 1), min_size=2, max_size=9)


@given(SHARES)
def test_an_interval_is_scipy_s(values: list[float]) -> None:
    found = statistics.mean(values)
    assert found.mean == pytest.approx(np.mean(values))
    if found.deviation and found.deviation > 1e-9:
        low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
        assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_one_value_has_no_interval() -> None:
    assert statistics.mean([0.5]) == statistics.Mean(0.5, None, None, None, 1)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 9), st.floats(-0.05, 0.05))
def test_differences_are_tested_as_scipy_does_and_by_all_signs(seed: int, count: int, shift: float) -> None:
    generator = np.random.default_rng(seed)
    reference = generator.uniform(0.7, 0.9, count)
    ours = reference + shift + generator.normal(0, 0.02, count)
    found = statistics.difference(dict(enumerate(ours.tolist())), dict(enumerate(reference.tolist())))
    assert found is not None
    assert found.t_p == pytest.approx(stats.ttest_rel(ours, reference).pvalue)
    gaps = ours - reference
    means = [abs(np.mean(gaps * signs)) for signs in itertools.product((1, -1), repeat=count)]
    assert found.flip_p == pytest.approx(np.mean(np.array(means) >= abs(np.mean(gaps)) - 1e-12))
    assert found.least_p == 2 / 2**count
    assert found.flip_p is not None
    assert found.flip_p >= found.least_p - 1e-12
    assert found.is_testable == (count >= 6)


def test_only_seeds_that_both_have_are_paired() -> None:
    found = statistics.difference({0: 0.5, 1: 0.6, 7: 0.1}, {0: 0.4, 1: 0.4, 2: 0.9})
    assert found is not None
    assert found.mean.count == 2
    assert found.mean.mean == pytest.approx(0.15)
    assert statistics.difference({0: 0.5}, {1: 0.5}) is None
    same = statistics.difference({0: 0.5, 1: 0.5}, {0: 0.25, 1: 0.25})
    assert same is not None
    assert (same.t_p, same.flip_p) == (None, None)


def test_what_could_have_been_shown_is_shown_four_times_of_five() -> None:
    generator = np.random.default_rng(3)
    found = statistics.difference(dict(enumerate(generator.normal(0, 0.01, 6).tolist())), dict.fromkeys(range(6), 0.0))
    assert found is not None
    assert found.detectable is not None
    assert found.mean.deviation is not None
    draws = generator.normal(found.detectable, found.mean.deviation, (4000, 6))
    shown = np.mean([stats.ttest_1samp(row, 0).pvalue < 0.05 for row in draws])
    assert 0.74 < shown < 0.86


def test_p_values_are_corrected_for_their_number() -> None:
    # S. Holm 1979: the smallest times 3, the next times 2, never less than the one before it.
    corrected = statistics.holm({"a": 0.01, "b": 0.04, "c": 0.03})
    assert corrected == {"a": pytest.approx(0.03), "c": pytest.approx(0.06), "b": pytest.approx(0.06)}
    assert statistics.holm({"a": 0.7, "b": 0.9}) == {"a": 1.0, "b": 1.0}
