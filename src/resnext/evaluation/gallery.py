"""Images of an evaluation on its page: small, with what was said of them and what was looked at."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnext import pages
from resnext.data.images import read_image
from resnext.data.preprocessing import Preprocessing
from resnext.errors import ImageError
from resnext.evaluation import explain

if TYPE_CHECKING:
    from resnext.layers import Network

SIDE, QUALITY = 160, 82
"""Pixels and JPEG quality of a picture on a page, which holds about a hundred."""


@dataclass(frozen=True)
class Shown:
    """A picture on a page: addresses of the image and of what was looked at ("" for none), and lines of words."""

    image: str
    heat: str
    lines: tuple[str, ...]
    alt: str


def encoded(pixels: NDArray[np.uint8]) -> str:
    """Return pixels S×S×C as the address of a small JPEG within a page."""
    colour = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    image = Image.fromarray(np.ascontiguousarray(colour))
    if image.size[0] != SIDE:
        filtered = Image.Resampling.NEAREST if image.size[0] < SIDE // 2 else Image.Resampling.LANCZOS
        image = image.resize((SIDE, SIDE), filtered)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return pages.data_uri(file.getvalue(), "image/jpeg")


def show(
    paths: Sequence[str],
    preprocessing: Preprocessing,
    words: Callable[[int], tuple[str, ...]],
    *,
    network: Network | None = None,
    targets: Sequence[int] = (),
) -> list[Shown]:
    """Return pictures of images as the network sees them, and with a network of what spoke for `targets`.

    `words` gives the lines of the image at a place. One that cannot be read any more is left out.
    """
    kept, read = [], []
    for place, path in enumerate(paths):
        try:
            image = read_image(path, channels=preprocessing.channels)
        except ImageError:
            continue
        kept.append(place)
        read.append(preprocessing.pixels(image))
    if not read:
        return []
    pixels = np.stack(read)
    heats = [""] * len(kept)
    if network is not None:
        heat = explain.grad_cam(network, preprocessing, pixels, np.array([targets[place] for place in kept]))
        heats = [encoded(explain.overlay(each, warm)) for each, warm in zip(pixels, heat, strict=True)]
    return [
        Shown(encoded(each), warm, words(place), " ".join(words(place)))
        for place, each, warm in zip(kept, pixels, heats, strict=True)
    ]
