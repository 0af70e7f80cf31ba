"""The arithmetic of measurements: medians, spreads, percentiles, ratios."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from resnext.benchmarking.contenders import Contender

LEAST_LIKENESS = {"fp32": 0.9999, "bf16": 0.95, "int8": 0.8}
"""Below this correlation with the reference a contender computes another function; rounding alone stays above."""


@dataclass(frozen=True)
class Figures:
    """What was measured of one contender; where it did not run, `failure` says why, and nothing else is there.

    `rates` are images a second, one a round; `latencies` milliseconds, one for each single image; `memory_mib` the
    most that its process ever held; `settings` those it was fastest with. `agreement` and `likeness` compare its
    logits with the fp32 reference's: the share of images with the same best class, and `likeness()`.
    """

    contender: Contender
    rates: tuple[float, ...] = ()
    latencies: tuple[float, ...] = ()
    memory_mib: float = 0.0
    agreement: float = 0.0
    likeness: float = 0.0
    settings: dict[str, Any] | None = None
    tried: tuple[dict[str, Any], ...] = ()
    failure: str = ""

    @property
    def rate(self) -> float:
        """The median of the images a second."""
        return statistics.median(self.rates)

    @property
    def spread(self) -> tuple[float, float]:
        """The slowest and the fastest round, in images a second."""
        return min(self.rates), max(self.rates)

    @property
    def same_function(self) -> bool:
        """Whether its logits are the reference's, but for what its precision rounds."""
        return self.likeness >= LEAST_LIKENESS[self.contender.precision]

    def latency(self, share: float) -> float | None:
        """Return the milliseconds that this share of single images took at most; None where none was timed."""
        return percentile(self.latencies, share) if self.latencies else None


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which a share (0…1) of `values` lies, linear between the two nearest."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def ratio(ours: Figures | None, peer: Figures) -> float | None:
    """Return how many times as fast ours is, by medians; None where either did not run."""
    if ours is None or ours.failure or peer.failure:
        return None
    return ours.rate / peer.rate


def likeness(reference: np.ndarray, candidate: np.ndarray) -> float:
    """Return the correlation of two functions' logits N×K over the same images; 0 where one is not finite.

    The mean of each class over the images is taken off first: what a network answers whatever it is shown says
    nothing of whether two compute the same.
    """
    if not (np.isfinite(reference).all() and np.isfinite(candidate).all()):
        return 0.0
    first, second = (
        logits.astype(np.float64) - logits.mean(axis=0, dtype=np.float64) for logits in (reference, candidate)
    )
    lengths = np.sqrt((first**2).sum() * (second**2).sum())
    return float((first * second).sum() / lengths) if lengths else 0.0


def agreement(reference: np.ndarray, candidate: np.ndarray) -> float:
    """Return the share of images to which two functions' logits N×K give the same best class."""
    return float((reference.argmax(axis=1) == candidate.argmax(axis=1)).mean())
