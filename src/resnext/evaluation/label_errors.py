"""Images whose label is likely wrong, by confident learning.

C. G. Northcutt, L. Jiang and I. L. Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels",
arXiv:1911.00068. Probabilities must come from a network that did not see these labels: of validation or test images,
or of cross-validation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Suspect:
    """An image by its row, the class that it rather is, and how much it is: the margin of their probabilities."""

    row: int
    given: int
    rather: int
    margin: float


def suspects(labels: NDArray[np.int64], probabilities: NDArray[np.floating]) -> list[Suspect]:
    """Return the images that lie off the diagonal of the confident joint, the clearest first.

    An image is confidently of a class where its probability is at least what images of that class have on average
    (section 3.1, eq. 1 and 2); of several the most probable. Its label is suspect where that is another class. Ranked
    by how much more probable the other class is.
    """
    exact = probabilities
    averages = np.full(exact.shape[1], np.inf, exact.dtype)
    for index in np.unique(labels):
        averages[index] = exact[labels == index, index].mean(dtype=np.float64)
    confident = np.where(exact >= averages, exact, exact.dtype.type(-1))
    rather = confident.argmax(axis=1)
    known = confident.max(axis=1) >= 0
    rows = np.flatnonzero(known & (rather != labels))
    margins = exact[rows, rather[rows]] - exact[rows, labels[rows]]
    order = rows[np.argsort(-margins, kind="stable")]
    return [
        Suspect(int(row), int(labels[row]), int(rather[row]), float(exact[row, rather[row]] - exact[row, labels[row]]))
        for row in order
    ]


def ranking(labels: NDArray[np.int64], probabilities: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return all rows, those first whose label is most likely wrong: suspects, then by the label's probability."""
    first = [each.row for each in suspects(labels, probabilities)]
    rest = np.setdiff1d(np.arange(len(labels)), first)
    own = probabilities[rest, labels[rest]]
    return np.concatenate([np.array(first, np.int64), rest[np.argsort(own, kind="stable")]]).astype(np.int64)
