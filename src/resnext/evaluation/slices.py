"""Parts of the images by what they have in common: scores of each, so that a weak one is not lost in the mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from resnext.evaluation.metrics import Scores, wilson_interval


@dataclass(frozen=True)
class Slice:
    """The images of one value: how many, and top-1 with its 95 % Wilson interval."""

    name: str
    images: int
    top1: float
    interval: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        """Return the slice as JSON holds it."""
        return {"name": self.name, "images": self.images, "top1": self.top1, "top1_interval": list(self.interval)}


def sliced(scores: Scores, values: Sequence[str]) -> list[Slice]:
    """Return the slices of scores by a value an image, the weakest first."""
    right = scores.place == 0
    every = np.array(values)
    found = []
    for name in dict.fromkeys(values):
        here = every == name
        count, hits = int(here.sum()), int(right[here].sum())
        found.append(Slice(name, count, hits / count, wilson_interval(hits, count)))
    return sorted(found, key=lambda each: (each.top1, each.name))
