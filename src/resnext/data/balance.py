"""How many images the classes have: too few, or too unlike each other, and what helps.

What helps against imbalance, Buda, Maki and Mazurowski compared ("A systematic study of the class imbalance problem in
convolutional neural networks", arXiv:1710.05381): drawing small classes more often did best in almost all of their
cases, and did not make networks overfit. The ratio of ten from which it is advised here is a choice of ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from resnext.data.findings import Evidence, Finding

UNEVEN = 3.0
"""Largest through smallest class: above, a loss weighted by class is worth the trouble."""

IMBALANCED = 10.0
"""Above, weights would let single images decide a step, so small classes are drawn more often instead."""

EXTREME = 100.0
"""Above, an image of the smallest class would be drawn a hundred times an epoch, and learned by heart."""

TINY = 20
"""Training images below which a class is learned by heart rather than understood."""

FEW = 10
"""Validation or test images below which a class's figure says little: one image is 10 % of it."""

WEIGHTS = 'train with --class-weights balanced (recipe: class_weights = "balanced")'
SAMPLING = 'train with --sampling balanced (recipe: sampling = "balanced")'


def imbalance(names: Sequence[str], counts: npt.NDArray[np.int64]) -> Finding | None:
    """Say how unlike the classes' numbers of training images are, where that matters, and choose the remedy."""
    present = np.flatnonzero(counts)
    if len(present) < 2:
        return None
    smallest, largest = present[counts[present].argmin()], present[counts[present].argmax()]
    ratio = counts[largest] / counts[smallest]
    if ratio < UNEVEN:
        return None
    what = (
        f"The largest class, {names[largest]!r}, has {ratio:.1f} times the images of the smallest, "
        f"{names[smallest]!r} ({counts[largest]:,} and {counts[smallest]:,})"
    )
    why = "The network sees large classes more often, and prefers them where it is not sure."
    if ratio < IMBALANCED:
        return Finding("imbalance", "note", what, why, f"If every class matters as much, {WEIGHTS}.", 1)
    remedy = f"If every class matters as much, {SAMPLING}."
    if ratio >= EXTREME:
        remedy += " At this ratio it repeats few images very often: collect more of the small classes, too."
    return Finding("imbalance", "warning", what, why, remedy, 1)


def tiny(names: Sequence[str], counts: npt.NDArray[np.int64]) -> Finding | None:
    """Name the classes of so few training images that they can hardly be learned."""
    small = [row for row in np.argsort(counts, kind="stable").tolist() if counts[row] < TINY]
    if not small:
        return None
    return Finding(
        "tiny-classes",
        "warning",
        f"{len(small):,} of {len(names):,} classes have fewer than {TINY} training images "
        f"(the smallest, {names[small[0]]!r}, has {counts[small[0]]})",
        "So few are learned by heart, and none or one is left to validate on.",
        "Add images, merge these classes with others, or leave them out.",
        len(small),
        [[names[row]] for row in small],
        [f"{counts[row]} images" for row in small],
    )


def classes(evidence: Evidence) -> Iterator[Finding]:
    """Find classes that are missing, tiny, or of very unlike numbers; images that cannot be read do not count."""
    names = evidence.classes
    splits = [split for split in ("train", "val", "test") if (evidence.splits == split).any()]
    listed = evidence.counts("train")
    if "train" in splits and (listed > 0).sum() < 2:
        yield Finding(
            "one-class", "error", f"There is one class only, {names[int(listed.argmax())]!r}",
            "Nothing can be told apart.", "Put the images of each class in a folder of its own.", 1,
        )  # fmt: skip
    if not evidence.prints.readable.any():
        return
    if "train" in splits:
        there = np.flatnonzero(listed)
        trained, usable = [names[row] for row in there], evidence.usable("train")[there]
        yield from (finding for finding in (imbalance(trained, usable), tiny(trained, usable)) if finding)
    for split in splits:
        if split != "train":
            yield from _held_out(names, split, listed if "train" in splits else None, evidence.usable(split))


def _held_out(
    names: Sequence[str], split: str, train: npt.NDArray[np.int64] | None, counts: npt.NDArray[np.int64]
) -> Iterator[Finding]:
    """Compare the classes of a validation or test split with those that are trained."""
    if train is not None and (unknown := np.flatnonzero((counts > 0) & (train == 0)).tolist()):
        yield Finding(
            f"unknown-classes-{split}", "error", f"{len(unknown):,} classes of {split} have no training image",
            f"The network cannot answer with them; reading {split} stops there.",
            "Rename them, where it is a matter of spelling; else add training images or take theirs away.",
            len(unknown), [[names[row]] for row in unknown], [f"{counts[row]} images" for row in unknown],
        )  # fmt: skip
    few = np.flatnonzero((counts < FEW) & (train > 0 if train is not None else counts > 0)).tolist()
    if few:
        yield Finding(
            f"few-{split}", "note", f"{len(few):,} classes have fewer than {FEW} images in {split}",
            "What is measured of such a class is largely chance.", "Add images, or read those figures with care.",
            len(few), [[names[row]] for row in few], [f"{counts[row]} images" for row in few],
        )  # fmt: skip
