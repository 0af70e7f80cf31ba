"""RandAugment: a few of fourteen operations, chosen at random, at one magnitude (arXiv:1909.13719 §3).

The operations are the paper's list, and their ranges AutoAugment's (arXiv:1805.09501 Table 6). Departures:
magnitude 30 is the end of those ranges (the paper's is 10, and it goes beyond); solarize and posterize begin
at no change, and colour, contrast, brightness and sharpness grow in both directions, so that a larger
magnitude is always a larger change.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

STRONGEST = 30
"""The largest magnitude."""

_GREY = 128  # what comes in from outside of the image


def apply(image: Image.Image, numbers: NDArray[np.float64], magnitude: int) -> Image.Image:
    """Apply one operation for each pair of `numbers` in [0, 1) to an image of mode "L" or "RGB".

    The first number of a pair chooses the operation, the second one its direction.
    """
    operations = list(OPERATIONS.values())
    for choice, direction in numbers.reshape(-1, 2).tolist():
        level = magnitude / STRONGEST
        image = operations[int(choice * len(operations))](image, level if direction < 0.5 else -level)
    return image


def _functional() -> Any:
    from torchvision.transforms.v2 import functional

    return functional


def _affine(image: Image.Image, **changes: Any) -> Image.Image:
    """Rotate about the centre, or shift, or shear about the upper left corner; nearest pixels."""
    still = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
    moved: Image.Image = _functional().affine(image, **{**still, **changes}, fill=_GREY)
    return moved


def _sheared(image: Image.Image, along_x: float, along_y: float) -> Image.Image:
    angles = [math.degrees(math.atan(along_x)), math.degrees(math.atan(along_y))]
    return _affine(image, shear=angles, center=[0, 0])


def _shifted(image: Image.Image, along_x: float, along_y: float) -> Image.Image:
    return _affine(image, translate=[round(along_x * image.width), round(along_y * image.height)])


# Each takes an image and a level between -1 and 1; the sign is a direction where the operation has one.
OPERATIONS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "identity": lambda image, level: image,
    "autocontrast": lambda image, level: _functional().autocontrast(image),
    "equalize": lambda image, level: _functional().equalize(image),
    "rotate": lambda image, level: _affine(image, angle=30 * level),
    "solarize": lambda image, level: _functional().solarize(image, 256 - round(256 * abs(level))),
    "colour": lambda image, level: _functional().adjust_saturation(image, 1 + 0.9 * level),
    "posterize": lambda image, level: _functional().posterize(image, 8 - round(4 * abs(level))),
    "contrast": lambda image, level: _functional().adjust_contrast(image, 1 + 0.9 * level),
    "brightness": lambda image, level: _functional().adjust_brightness(image, 1 + 0.9 * level),
    "sharpness": lambda image, level: _functional().adjust_sharpness(image, 1 + 0.9 * level),
    "shear x": lambda image, level: _sheared(image, 0.3 * level, 0),
    "shear y": lambda image, level: _sheared(image, 0, 0.3 * level),
    "translate x": lambda image, level: _shifted(image, 0.45 * level, 0),
    "translate y": lambda image, level: _shifted(image, 0, 0.45 * level),
}
