"""Two functions on the same real images: how far apart their logits are, and whether that is near enough.

`compare` measures a candidate against its reference, `judge` holds what was measured against the gate of the
candidate's precision. NumPy alone, so that a stored certificate can be read where nothing else is loaded.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from resnext.errors import UserError

Function = Callable[[np.ndarray], np.ndarray]
"""Pixels uint8 N×S×S×C → float logits N×K, rows independent of each other."""

Precision = Literal["fp32", "bf16", "fp16", "int8"]

CLOSE = 0.02
"""A call is close where the reference's best class leads the second by less than this in probability."""

LISTED = 20
"""How many disagreements are listed one by one."""

RELATIVE = 1e-3
"""fp32: the largest logit difference, as a share of the reference's largest logit, may be this."""

AGREEMENT = {"bf16": 0.99, "fp16": 0.99, "int8": 0.98}
"""Share of all images that must keep their best class."""

DROP = 0.5
"""int8: so many points of accuracy may be lost."""

IMAGES_FOR_AGREEMENT = 500
IMAGES_FOR_ACCURACY = 2_000

_Z = 1.959963984540054  # the normal distribution's 97.5 % point: intervals of 95 %


@dataclass(frozen=True)
class Disagreement:
    """An image whose best class changed although the reference's was clear; `image` counts from 0 as they came."""

    image: int
    margin: float
    reference: int
    candidate: int


@dataclass(frozen=True)
class Certificate:
    """What was measured on real images. Counts are of images.

    `largest_difference` and `mean_difference` are of single logits, in their own units, and `largest_logit` is the
    reference's largest absolute one, over the images on which both functions are finite. `broken`: the candidate
    has NaN or Inf and the reference has none; `unusable`: the reference has. Both count as disagreements, and as
    wrong where that function is not finite. `disagreements`: the best class differs (of equal logits the first
    class is best, as `engine.rank` has it). `close`: images on which the reference's best class leads the second
    by less than `CLOSE` in probability, and `close_calls` those disagreements that are among them;
    `clear_disagreements` lists others, at most `LISTED`, those with the largest margin first. Of the `labelled`
    images, `reference_correct` and `candidate_correct` were right, `lost` by the reference alone and `gained` by
    the candidate alone.
    """

    images: int
    largest_difference: float
    mean_difference: float
    largest_logit: float
    broken: int
    unusable: int
    disagreements: int
    close: int
    close_calls: int
    clear_disagreements: tuple[Disagreement, ...] = ()
    labelled: int = 0
    reference_correct: int = 0
    candidate_correct: int = 0
    lost: int = 0
    gained: int = 0

    @property
    def relative_difference(self) -> float:
        """`largest_difference` / `largest_logit`, both over all images and classes; 0 where nothing differs."""
        return self.largest_difference / max(self.largest_logit, float(np.finfo(np.float32).tiny))

    @property
    def agreement(self) -> float:
        """Share of all images whose best class is the same."""
        return (self.images - self.disagreements) / self.images

    @property
    def clear_agreement(self) -> float:
        """The same share among the images that are not close; 1 where all are."""
        clear = self.images - self.close
        return (clear - self.disagreements + self.close_calls) / clear if clear else 1.0

    @property
    def drop(self) -> float | None:
        """Points of accuracy that the candidate loses (below 0: gains); None without labels."""
        return 100 * (self.lost - self.gained) / self.labelled if self.labelled else None

    @property
    def drop_interval(self) -> tuple[float, float] | None:
        """The 95 % interval of `drop`, in points: Tango's for paired proportions; None without labels."""
        if not self.labelled:
            return None
        low, high = paired_interval(self.lost, self.gained, self.labelled)
        return 100 * low, 100 * high

    @property
    def summary(self) -> str:
        """The certificate in one line, for people."""
        line = (
            f"{self.images:,} images: largest logit difference {self.largest_difference:.3g} "
            f"({self.relative_difference:.2g} of the largest logit), same best class on {_share(self.agreement)}"
        )
        if self.close_calls:
            line += f" ({_share(self.clear_agreement)} without close calls)"
        if self.labelled:
            line += f"; {_told_accuracy(self)}"
        if self.broken or self.unusable:
            line += f"; NaN or Inf on {self.broken:,}, in the reference itself on {self.unusable:,}"
        return line

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON holds: the fields, and for its readers what follows from them."""
        derived = ("relative_difference", "agreement", "clear_agreement", "drop", "drop_interval", "summary")
        told = dataclasses.asdict(self) | {name: getattr(self, name) for name in derived}
        told["clear_disagreements"] = list(told["clear_disagreements"])
        told["drop_interval"] = list(self.drop_interval) if self.drop_interval else None
        return told

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Certificate:
        """Build from what `to_dict` gave; raises UserError for anything that cannot be a certificate."""
        try:
            values = {one.name: told[one.name] for one in dataclasses.fields(cls)}
            listed = tuple(Disagreement(**entry) for entry in values.pop("clear_disagreements"))
            reals = {name: values.pop(name) for name in ("largest_difference", "mean_difference", "largest_logit")}
            if not all(type(count) is int and count >= 0 for count in values.values()) or not values["images"]:
                raise ValueError("a count is none")
            if not all(type(real) in (int, float) and 0 <= real < math.inf for real in reals.values()):
                raise ValueError("a difference is no number")
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"This certificate is damaged ({error!r}). Run resnext optimize again.") from error
        return cls(**values, **reals, clear_disagreements=listed)


class Tally:
    """A certificate in the making: both functions' logits go in by `add`, batch by batch; memory stays bounded."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.listed: list[Disagreement] = []
        self.largest_difference = self.largest_logit = self.sum_of_differences = 0.0
        self.compared = 0

    def add(self, reference: np.ndarray, candidate: np.ndarray, labels: np.ndarray | None = None) -> None:
        """Count one batch: logits N×K of both functions, and the true classes N where they are known."""
        assert reference.shape == candidate.shape, (reference.shape, candidate.shape)
        reference, candidate = reference.astype(np.float64), candidate.astype(np.float64)
        usable, finite = np.isfinite(reference).all(axis=1), np.isfinite(candidate).all(axis=1)
        both = usable & finite
        self._measure(reference[both], candidate[both])
        best, other = reference.argmax(axis=1), candidate.argmax(axis=1)
        margins = np.ones(len(reference))
        margins[usable] = _margins(reference[usable])
        differ, near = ~both | (best != other), margins < CLOSE
        self._list(np.flatnonzero(differ & both & ~near), margins, best, other)
        found = {
            "images": np.ones(len(best), bool),
            "broken": usable & ~finite,
            "unusable": ~usable,
            "disagreements": differ,
            "close": near,
            "close_calls": differ & near,
        }
        if labels is not None:
            right, also = usable & (best == labels), finite & (other == labels)
            found |= {"labelled": found["images"], "reference_correct": right, "candidate_correct": also}
            found |= {"lost": right & ~also, "gained": also & ~right}
        self.counts.update({name: int(which.sum()) for name, which in found.items()})

    def certificate(self) -> Certificate:
        """Return what was counted; raises UserError where there was no image."""
        if not self.counts["images"]:
            raise UserError("There was no image to compare the two networks on. Give images that can be read.")
        return Certificate(
            largest_difference=self.largest_difference,
            mean_difference=self.sum_of_differences / max(1, self.compared),
            largest_logit=self.largest_logit,
            clear_disagreements=tuple(self.listed),
            **self.counts,
        )

    def _measure(self, reference: np.ndarray, candidate: np.ndarray) -> None:
        differences = np.abs(candidate - reference)
        self.largest_difference = max(self.largest_difference, float(differences.max(initial=0)))
        self.largest_logit = max(self.largest_logit, float(np.abs(reference).max(initial=0)))
        self.sum_of_differences += float(differences.sum())
        self.compared += differences.size

    def _list(self, rows: np.ndarray, margins: np.ndarray, best: np.ndarray, other: np.ndarray) -> None:
        seen = self.counts["images"]
        for row in rows.tolist():
            self.listed.append(Disagreement(seen + row, float(margins[row]), int(best[row]), int(other[row])))
        self.listed = sorted(self.listed, key=lambda one: (-one.margin, one.image))[:LISTED]


def compare(
    reference: Function, candidate: Function, batches: Iterable[tuple[np.ndarray, np.ndarray | None]]
) -> Certificate:
    """Measure a candidate against its reference on batches (pixels uint8 N×S×S×C, classes N or None), one by one.

    Raises UserError where there is no image.
    """
    tally = Tally()
    for pixels, labels in batches:
        if len(pixels):
            tally.add(reference(pixels), candidate(pixels), labels)
    return tally.certificate()


@dataclass(frozen=True)
class Verdict:
    """Whether a candidate may take its reference's place, and why, with the measured number and the gate.

    `unproved`: it passed only because the user accepts that there were too few images.
    """

    passed: bool
    reason: str
    unproved: bool = False


def judge(certificate: Certificate, precision: Precision, *, unproved: bool = False) -> Verdict:
    """Hold a certificate against the gate of its candidate's precision.

    fp32: `relative_difference` ≤ `RELATIVE`. bf16 and fp16: `agreement` ≥ 99 %, and the reason says so where there
    were fewer than 500 images. int8: with 2,000 labelled images `drop` ≤ 0.5 points; with fewer `agreement` ≥ 98 %
    on at least 500 images, unless the labels at hand contradict it. Where neither proves it, int8 is refused;
    `unproved` lets it pass while no number at hand contradicts the gate, that is lies beyond it by more than chance
    explains (95 %). Agreement is over all images, close calls included: a label that changes is seen to change,
    however near the decision was. NaN or Inf never pass.
    """
    many = f"NaN or Inf on {certificate.unusable or certificate.broken:,} of {certificate.images:,} images"
    if certificate.unusable:
        return Verdict(False, f"The reference itself gives {many}, so nothing can be proved.")
    if certificate.broken:
        return Verdict(False, f"It gives {many} on which the reference gives none.")
    if precision == "int8":
        return _judge_int8(certificate, unproved)
    if precision == "fp32":
        relative = certificate.relative_difference
        reason = f"The largest logit difference is {relative:.3g} of the largest logit; {RELATIVE:g} is allowed."
        return Verdict(relative <= RELATIVE, reason)
    reason = _told_agreement(certificate, precision)
    if certificate.images < IMAGES_FOR_AGREEMENT:
        reason += f" That is little proof: {IMAGES_FOR_AGREEMENT:,} images are wanted."
    return Verdict(certificate.agreement >= AGREEMENT[precision], reason)


def _judge_int8(certificate: Certificate, unproved: bool) -> Verdict:
    images, labelled, gate = certificate.images, certificate.labelled, AGREEMENT["int8"]
    reason, few = _told_agreement(certificate, "int8"), images < IMAGES_FOR_AGREEMENT
    if certificate.drop is not None and certificate.drop_interval is not None:
        accuracy = f"{_told_accuracy(certificate).capitalize()}; a loss of {DROP:g} is allowed."
        if labelled >= IMAGES_FOR_ACCURACY:
            return Verdict(certificate.drop <= DROP, accuracy)
        if certificate.drop_interval[0] > DROP:
            return Verdict(False, f"{accuracy} Chance does not explain that.")
        reason += f" {_told_accuracy(certificate).capitalize()}."
    if certificate.agreement >= gate and not few:
        return Verdict(True, reason)
    # Where as many images have labels as agreement needs, these decide: classes may swap and no accuracy be lost.
    by_chance = gate - certificate.agreement <= _Z * math.sqrt(gate * (1 - gate) / images)  # score test of a share
    passed = unproved and (labelled >= IMAGES_FOR_AGREEMENT or (few and by_chance))
    reason += f" {IMAGES_FOR_AGREEMENT:,} images are the least for a proof;" if few else ""
    return Verdict(passed, f"{reason} {IMAGES_FOR_ACCURACY:,} with labels are judged by accuracy.", unproved=passed)


def paired_interval(lost: int, gained: int, pairs: int) -> tuple[float, float]:
    """Return the 95 % score interval of the difference (lost − gained) / pairs of two paired shares.

    Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample
    design", Statistics in Medicine 17 (1998) 891–908: all differences that a score test does not reject. It holds
    its level with few discordant pairs, none included, where the interval of McNemar's statistic is too short.
    """
    return _limit(lost, gained, pairs, -1.0), _limit(lost, gained, pairs, 1.0)


def _limit(lost: int, gained: int, pairs: int, end: float) -> float:
    """Return where the score test begins to reject, between the estimate and `end`, −1 or 1, by bisection."""
    inside, outside = (lost - gained) / pairs, end
    for _ in range(60):
        middle = (inside + outside) / 2
        rejected = abs(_score(lost, gained, pairs, middle)) > _Z
        inside, outside = (inside, middle) if rejected else (middle, outside)
    return inside


def _score(lost: int, gained: int, pairs: int, difference: float) -> float:
    """Return the score statistic of a true `difference` (Tango 1998): how many standard errors off it is."""
    # The likeliest probability of "gained" under that difference solves a q² + b q + c = 0.
    a = 2 * pairs
    b = (2 * pairs - lost + gained) * difference - lost - gained
    c = -gained * difference * (1 - difference)
    gaining = (math.sqrt(b * b - 4 * a * c) - b) / (2 * a)
    variance = pairs * (2 * gaining + difference * (1 - difference))
    return (lost - gained - pairs * difference) / math.sqrt(max(variance, 1e-300))


def _margins(logits: np.ndarray) -> np.ndarray:
    """Return by how much the best class of each row leads the second in probability: finite N×K → N."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares = np.sort(exponentials / exponentials.sum(axis=1, keepdims=True), axis=1)
    margins: np.ndarray = shares[:, -1] - (shares[:, -2] if shares.shape[1] > 1 else 0)
    return margins


def _share(value: float) -> str:
    return f"{100 * value:.2f} %"


def _told_accuracy(certificate: Certificate) -> str:
    counts = certificate.reference_correct, certificate.candidate_correct
    before, after = (count / certificate.labelled for count in counts)
    low, high = certificate.drop_interval or (math.nan, math.nan)
    return (
        f"accuracy {_share(before)} → {_share(after)} on {certificate.labelled:,} labelled images, "
        f"{100 * (after - before):+.3g} points (95 % interval {-high:+.2f} to {-low:+.2f})"
    )


def _told_agreement(certificate: Certificate, precision: Precision) -> str:
    others = certificate.disagreements
    calls = f" ({others:,} differ, of these {certificate.close_calls:,} close calls)" if others else ""
    return (
        f"The best class is the same on {_share(certificate.agreement)} of {certificate.images:,} images{calls}; "
        f"{100 * AGREEMENT[precision]:g} % is needed."
    )
