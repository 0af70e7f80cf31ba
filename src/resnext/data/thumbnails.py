"""A picture of 16×16 pixels for each image, and the measure of whether two show the same picture.

Near copies are images re-encoded, resized, made brighter or cropped by a few per cent. Thumbnails of near copies are
equal but for brightness, contrast, and a small shift and zoom. So these six numbers are fitted (Lucas and Kanade, "An
iterative image registration technique", 1981), and what they leave unexplained is the difference.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

SIDE = 16
"""Pixels a side: less detail than re-encoding damages, more than different pictures share."""

COLOUR_SIDE = 4
"""Places a side at which the two colour differences are kept."""

ENOUGH = 4 * SIDE
"""Pixels that the shorter side of a picture needs for its thumbnail to be as good as of the whole."""

FLAT = 5.0
"""Contrast, as `contrast` has it, below which a thumbnail tells nothing: a blank page is like any other."""

DIFFERENCE = 0.11
"""The largest unexplained part, relative to the contrast, of near copies."""

COLOUR_DIFFERENCE = 8.0
"""The largest root mean square difference of their colours, in 255ths."""

_GAIN = (0.6, 1 / 0.6)  # how much more contrast one copy may have than the other
_MOVE = 1.6  # pixels of the thumbnail that a border may lie elsewhere: a tenth of the picture
_STEPS = 2
_EDGE = 1  # pixels left out all around: what a crop brings in there is unknown

Floats = npt.NDArray[np.float64]
_ALONG = np.linspace(-1, 1, SIDE)


def thumbnail(picture: Image.Image) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Return grey `SIDE`×`SIDE` and colour (Cb, Cr) `COLOUR_SIDE`×`COLOUR_SIDE`×2 of an RGB picture, made square."""
    small = picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=3).convert("YCbCr")
    pixels = np.asarray(small)
    part = SIDE // COLOUR_SIDE
    colour = pixels[:, :, 1:].reshape(COLOUR_SIDE, part, COLOUR_SIDE, part, 2).mean(axis=(1, 3))
    return pixels[:, :, 0], np.rint(colour).astype(np.uint8)


def smoothed(grey: npt.NDArray[np.uint8]) -> Floats:
    """Return grey thumbnails N×S×S, blurred so that they change slowly from pixel to pixel."""
    down = np.pad(grey, ((0, 0), (1, 1), (0, 0)), mode="edge").astype(np.float64)
    down = down[:, :-2] + 2 * down[:, 1:-1] + down[:, 2:]
    right = np.pad(down, ((0, 0), (0, 0), (1, 1)), mode="edge")
    return (right[:, :, :-2] + 2 * right[:, :, 1:-1] + right[:, :, 2:]) / 16


def contrast(grey: npt.NDArray[np.uint8]) -> Floats:
    """Return the standard deviation of each thumbnail, smoothed, from a plane through it, in 255ths."""
    return _contrast(smoothed(grey))


def _contrast(images: Floats) -> Floats:
    """Return how much there is to see but a gradient, which one sky has like another."""
    axis = _ALONG / np.sqrt(np.square(_ALONG).sum() * SIDE)  # of length 1 over all pixels
    slopes = np.square(images.sum(axis=1) @ axis) + np.square(images.sum(axis=2) @ axis)
    variance: Floats = np.asarray(images.var(axis=(1, 2)))
    return np.asarray(np.sqrt(np.maximum(variance - slopes / SIDE**2, 0)))


def difference(first: npt.NDArray[np.uint8], second: npt.NDArray[np.uint8]) -> Floats:
    """Return for each pair of grey thumbnails N×S×S the part of the contrast that a copy would not explain.

    It is infinite where brightness, shift or zoom are larger than those of a copy.
    """
    a, b = smoothed(first), smoothed(second)
    moved, moves = a, np.zeros((len(a), 4))
    for _ in range(_STEPS):
        fitted, _ = _fit(moved, b)
        gain = np.clip(fitted[:, :1], *_GAIN)
        moves = np.asarray(np.clip(moves + fitted[:, 2:] / gain, -2 * _MOVE, 2 * _MOVE))
        moved = _resampling(moves[:, 2], moves[:, 3]) @ a @ _resampling(moves[:, 0], moves[:, 1]).transpose(0, 2, 1)
    fitted, rest = _fit(moved, b)
    scale = np.maximum(np.minimum(_contrast(a), _contrast(b)), 1e-9)
    found = np.sqrt(np.square(rest).mean(axis=1)) / scale
    gain, borders = fitted[:, 0], np.abs(moves).reshape(-1, 2, 2).sum(axis=2)  # shift and zoom add up at a border
    copied = (gain > _GAIN[0]) & (gain < _GAIN[1]) & (borders.max(axis=1) < _MOVE)
    return np.where(copied, found, np.inf)


def colour_difference(first: npt.NDArray[np.uint8], second: npt.NDArray[np.uint8]) -> Floats:
    """Return the root mean square difference of each pair of colours N×C×C×2, in 255ths."""
    rest = first.astype(np.float64) - second
    result: Floats = np.sqrt(np.square(rest).mean(axis=(1, 2, 3)))
    return result


def _fit(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """Fit b ≈ gain·a + offset + shift and zoom along x and y; return the six numbers and what is left, N×pixels."""
    slopes: Any = np.gradient((a + b) / 2, axis=(1, 2))
    down, right = slopes
    inside = slice(_EDGE, SIDE - _EDGE)
    parts = (a, np.ones_like(a), right, right * _ALONG, down, down * _ALONG[:, None])
    pixels = (SIDE - 2 * _EDGE) ** 2
    basis = np.stack([part[:, inside, inside].reshape(len(a), pixels) for part in parts], axis=1)
    wanted = b[:, inside, inside].reshape(len(b), pixels, 1)
    ridge = np.diag([1e-3, 1e-3, 0.1, 0.1, 0.1, 0.1])  # so that a picture of stripes has a solution
    solution: Any = np.linalg.solve(basis @ basis.transpose(0, 2, 1) + ridge, basis @ wanted)
    return solution[:, :, 0], (wanted - basis.transpose(0, 2, 1) @ solution)[:, :, 0]


def _resampling(shift: Floats, zoom: Floats) -> Floats:
    """Return matrices N×S×S that read a line of S pixels at places moved by shift + zoom·(−1…1), bicubic."""
    places = np.clip(np.arange(SIDE) + shift[:, None] + zoom[:, None] * _ALONG, 0, SIDE - 1)
    distance = np.abs(places[:, :, None] - np.arange(SIDE))
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0))
    result: Floats = weights / weights.sum(axis=2, keepdims=True)
    return result
