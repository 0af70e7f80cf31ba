"""What gives a class away without a look at the picture: a kind of file, or a size, that it has and others have not.

A network that can answer by traces of compression, by grey instead of colour, or by how much an image was enlarged does
not learn the rest ("shortcut learning", Geirhos et al., arXiv:2004.07780), and fails on images from elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from resnext.data.findings import Evidence, Finding

MOST = 0.95
"""Share of a class's images that have something in common, …"""

HARDLY = 0.05
"""… and share of all other images that may have it, too."""

ENOUGH = 20
"""Images of a class, and of the others, below which it may be chance."""


def shortcuts(evidence: Evidence) -> Iterator[Finding]:
    """Find classes that a kind of file or an exact size gives away."""
    readable = np.flatnonzero(evidence.prints.readable)
    labels, rows = evidence.labels[readable], evidence.prints.rows[readable]
    sizes = rows["width"].astype(np.int64) << 32 | rows["height"]
    for code, what, values in (("kind", "kind of file", rows["words"].astype(np.int64)), ("size", "size", sizes)):
        told = _given_away(labels, values, len(evidence.classes))
        if told:
            yield Finding(
                f"shortcut-{code}",
                "warning",
                f"{len(told):,} classes are given away by the {what}, which hardly any other image has",
                "The network may learn that instead of what the images show, and fail on images from elsewhere.",
                "Bring all classes from the same sources, or save all images alike: one format, and one size.",
                len(told),
                [[evidence.classes[label]] for label, _ in told],
                [
                    evidence.prints.words[value] if code == "kind" else f"{value >> 32} × {value & 0xFFFFFFFF}"
                    for _, value in told
                ],
            )


def _given_away(labels: npt.NDArray[np.int32], values: npt.NDArray[np.int64], classes: int) -> list[tuple[int, int]]:
    """Return the labels that a value of theirs gives away, with that value."""
    if not len(labels):
        return []
    kinds, numbers, counts = np.unique(values, return_inverse=True, return_counts=True)
    pairs, together = np.unique(labels.astype(np.int64) * len(kinds) + numbers, return_counts=True)
    label, kind = pairs // len(kinds), pairs % len(kinds)
    own = np.bincount(labels, minlength=classes)[label]
    others = len(labels) - own
    enough = (own >= ENOUGH) & (others >= ENOUGH)
    told = enough & (together >= MOST * own) & (counts[kind] - together <= HARDLY * others)
    return [(int(label[row]), int(kinds[kind[row]])) for row in np.flatnonzero(told)]
