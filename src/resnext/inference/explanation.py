"""What a classifier looked at in image files, as pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnext.errors import UserError, did_you_mean
from resnext.evaluation import explain
from resnext.inference.classifier import Classifier, Unreadable
from resnext.inference.files import Output, outputs

if TYPE_CHECKING:
    from resnext.layers import Network

Method = Literal["grad-cam", "occlusion"]
LEAST = 256
"""Smaller images are enlarged, so that a person sees something."""

GAP = 8


@dataclass(frozen=True)
class Explanation:
    """An image, what it was taken for, and the class whose evidence is shown; `heat` S×S from 0 to 1."""

    path: str
    label: str
    probability: float
    shown: str
    pixels: NDArray[np.uint8]
    heat: NDArray[np.float32]

    def picture(self) -> Image.Image:
        """Return what the network saw beside the same with heat laid over it."""
        sides = [Image.fromarray(_colour(self.pixels)), Image.fromarray(explain.overlay(self.pixels, self.heat))]
        side = self.pixels.shape[0]
        scale = max(1, -(-LEAST // side))
        sides = [each.resize((scale * side, scale * side), Image.Resampling.NEAREST) for each in sides]
        whole = Image.new("RGB", (2 * scale * side + GAP, scale * side), "white")
        whole.paste(sides[0], (0, 0))
        whole.paste(sides[1], (scale * side + GAP, 0))
        return whole


def _colour(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3)).copy()


def explain_files(
    classifier: Classifier, paths: Sequence[str | Path], *, method: Method = "grad-cam", label: str | None = None
) -> Iterator[Explanation | Unreadable]:
    """Explain files, and the images below folders, in order: evidence for `label`, or for what each is taken for.

    A file that cannot be read gives an Unreadable in its place. Raises UserError for a class that is not known and for
    a folder without images.
    """
    if label is not None and label not in classifier.classes:
        raise UserError(
            f"The network knows no class {label!r}.{did_you_mean(label, classifier.classes)} "
            "`resnext describe BUNDLE` lists them."
        )
    for one in outputs(classifier, paths):
        yield one if isinstance(one, Unreadable) else _explained(classifier, one, method, label)


def _explained(classifier: Classifier, seen: Output, method: Method, label: str | None) -> Explanation:
    best = classifier.rank(seen.logits[None], [seen.path], 1)[0]
    shown = label or best.label
    target = classifier.classes.index(shown)
    if method == "occlusion":
        heat = explain.occlusion(classifier.engine, classifier.preprocessing, seen.pixels, target)
    else:
        network = cast("Network", classifier.network)
        heat = explain.grad_cam(network, classifier.preprocessing, seen.pixels[None], np.array([target]))[0]
    return Explanation(seen.path, best.label, best.probability, shown, seen.pixels, heat)
