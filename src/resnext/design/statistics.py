"""What seeds say: means with intervals, paired differences with tests, and what so few could have shown.

Trials of one seed have the same first weights' seed, order and augmentation, so that candidates are compared seed by
seed. Tests and distributions are scipy's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
LEVEL = 1 - CONFIDENCE
POWER = 0.8
EXACT = 16
"""Up to so many pairs all signs are tried, and so many draws of them beyond."""

DRAWS = 9_999


@dataclass(frozen=True)
class Mean:
    """A mean over seeds; `low` and `high` are its 95 % Student interval, None for a single seed."""

    mean: float
    low: float | None
    high: float | None
    deviation: float | None
    count: int


@dataclass(frozen=True)
class Difference:
    """A candidate less the reference, over the seeds that both have.

    `t_p` is the p-value of the paired t-test, `flip_p` that of the sign-flip permutation test, both two-sided; None
    where nothing varies or one pair is all. `least_p` is the smallest that the second could have been. `detectable` is
    the difference that a study of this spread and size would have found four times of five.
    """

    mean: Mean
    t_p: float | None
    flip_p: float | None
    least_p: float
    detectable: float | None

    @property
    def is_testable(self) -> bool:
        """Whether there are pairs enough for the permutation test to say anything at the level of 0.05."""
        return self.least_p <= LEVEL


def mean(values: Sequence[float]) -> Mean:
    """Return the mean of values with its interval."""
    from scipy import stats

    count = len(values)
    average = float(np.mean(values))
    if count < 2:
        return Mean(average, None, None, None, count)
    deviation = float(np.std(values, ddof=1))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * deviation / math.sqrt(count)
    return Mean(average, average - half, average + half, deviation, count)


def difference(values: Mapping[int, float], reference: Mapping[int, float]) -> Difference | None:
    """Return the paired difference of values from the reference's, by seed; None where they share no seed."""
    from scipy import stats

    seeds = sorted(values.keys() & reference.keys())
    if not seeds:
        return None
    pairs = np.array([[values[seed], reference[seed]] for seed in seeds])
    gaps = pairs[:, 0] - pairs[:, 1]
    count, found = len(seeds), mean([float(gap) for gap in gaps])
    least = min(1.0, 2 / 2**count)
    if count < 2 or found.deviation == 0:
        return Difference(found, None, None, least, None)
    flips = stats.permutation_test(
        (pairs[:, 0], pairs[:, 1]),
        lambda ours, theirs, axis: np.mean(ours - theirs, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf if count <= EXACT else DRAWS,
        rng=np.random.default_rng(0),
    )
    assert found.deviation is not None
    needed = stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) + stats.t.ppf(POWER, count - 1)
    detectable = float(needed) * found.deviation / math.sqrt(count)
    t_p = float(stats.ttest_rel(pairs[:, 0], pairs[:, 1]).pvalue)
    return Difference(found, t_p, float(flips.pvalue), least, detectable)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return p-values corrected for how many they are (S. Holm 1979): each may be compared with the level as it is."""
    corrected: dict[str, float] = {}
    largest = 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p))
        corrected[name] = largest
    return corrected
