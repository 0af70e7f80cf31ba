"""Squares cut out of training images, at places and scales that given numbers draw.

Every function takes uniform numbers in [0, 1), a row for each image (`order.uniforms`), and has no randomness
of its own. Pillow resizes: tensors would start threads in each worker thread.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from PIL import Image

from resnext.data.preprocessing import scaled_length

Pixels = list[NDArray[np.uint8]] | NDArray[np.uint8]
"""Images as `Preprocessing.resized` makes them: uint8 N×H×W×C, or a list of H×W×C of several shapes."""

BOX_DRAWS = 22
"""The numbers that `boxes` uses for each image: ten areas, ten ratios of the sides, two for the place."""

_TRIES = 10


def image_of(pixels: NDArray[np.uint8]) -> Image.Image:
    """Return H×W×C pixels as Pillow's "L" or "RGB"."""
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def cut(pixels: Pixels, size: int, numbers: NDArray[np.float64] | None = None) -> NDArray[np.uint8]:
    """Cut a square out of each image, where `numbers` N×2 say or from the centre: uint8 N×S×S×C."""
    if isinstance(pixels, list):  # of different shapes
        rows = [None] * len(pixels) if numbers is None else numbers[:, None]
        return np.concatenate([cut(one[None], size, row) for one, row in zip(pixels, rows, strict=True)])
    count, height, width, channels = pixels.shape
    free = np.array([height - size, width - size])
    assert free.min() >= 0, (pixels.shape, size)
    places = np.tile(free // 2, (count, 1)) if numbers is None else (numbers * (free + 1)).astype(np.int64)
    # One gather of whole rows for the batch: pixel by pixel would cost ten times as much.
    lines = np.ascontiguousarray(pixels).reshape(count, height, width * channels)
    windows = sliding_window_view(lines, (size, size * channels), axis=(1, 2))
    result: NDArray[np.uint8] = windows[np.arange(count), places[:, 0], places[:, 1] * channels]
    return result.reshape(count, size, size, channels)


def pad(pixels: Pixels, padding: int, mode: str, colour: tuple[float, ...]) -> Pixels:
    """Add `padding` pixels to each side of each image.

    `mode` "constant" adds black, "reflect" the image's own pixels, mirrored, and "mean" the `colour` (one number
    a channel, in units of 0…1) rounded to the nearest level.
    """
    if isinstance(pixels, list):
        return [np.asarray(pad(one[None], padding, mode, colour))[0] for one in pixels]
    border = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    if mode != "mean":
        return np.pad(pixels, border, mode="reflect" if mode == "reflect" else "constant")
    result = np.pad(pixels, border, mode="empty")
    levels = np.rint(255 * np.array(colour)).astype(np.uint8)
    assert len(levels) == pixels.shape[3], (colour, pixels.shape)
    for line in (result, result.swapaxes(1, 2)):
        line[:, :padding] = line[:, line.shape[1] - padding :] = levels
    return result


def resized_boxes(
    pixels: Pixels,
    numbers: NDArray[np.float64],
    size: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> NDArray[np.uint8]:
    """Cut a random share out of each image by `numbers` N×22 and resize it, antialiased, to S×S: uint8 N×S×S×C."""
    shapes = np.array([one.shape[:2] for one in pixels])
    places, found = boxes(shapes, numbers, area, aspect)
    places[~found] = centred(shapes[~found], aspect)
    result = np.empty((len(pixels), size, size, pixels[0].shape[2]), np.uint8)
    for target, one, (top, left, height, width) in zip(result, pixels, places.tolist(), strict=True):
        part = image_of(one[top : top + height, left : left + width])
        target[:] = np.asarray(part.resize((size, size), Image.Resampling.BILINEAR)).reshape(target.shape)
    return result


def boxes(
    shapes: NDArray[np.int64],
    numbers: NDArray[np.float64],
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Draw a rectangle in each image: (top, left, height, width) N×4, and whether one of ten tries fitted.

    Its area is uniform between two shares of the image's, its width / height log-uniform in `aspect`.
    """
    height, width = shapes[:, :1], shapes[:, 1:]
    shares = area[0] + (area[1] - area[0]) * numbers[:, :_TRIES]
    low, high = math.log(aspect[0]), math.log(aspect[1])
    ratios = np.exp(low + (high - low) * numbers[:, _TRIES : 2 * _TRIES])
    heights = np.rint(np.sqrt(shares * height * width / ratios)).astype(np.int64)
    widths = np.rint(np.sqrt(shares * height * width * ratios)).astype(np.int64)
    fits: NDArray[np.bool_] = (heights >= 1) & (heights <= height) & (widths >= 1) & (widths <= width)
    first = fits.argmax(axis=1)[:, None]
    sizes = np.hstack([np.take_along_axis(heights, first, 1), np.take_along_axis(widths, first, 1)])
    places = (numbers[:, 2 * _TRIES : 2 * _TRIES + 2] * (shapes - sizes + 1)).astype(np.int64)
    return np.hstack([places, sizes]), np.asarray(fits.any(axis=1))


def centred(shapes: NDArray[np.int64], aspect: tuple[float, float]) -> NDArray[np.int64]:
    """Return the largest centred rectangle whose width / height lies within `aspect`: N×4 as `boxes`."""
    height, width = shapes[:, 0], shapes[:, 1]
    sizes = np.stack(
        [np.minimum(height, np.rint(width / aspect[0])), np.minimum(width, np.rint(height * aspect[1]))], 1
    )
    sizes = np.maximum(sizes, 1).astype(np.int64)
    return np.hstack([(shapes - sizes) // 2, sizes])


def rescaled(pixels: Pixels, numbers: NDArray[np.float64], size: int, sides: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize each image to a drawn length of its shorter side and cut a square at random: uint8 N×S×S×C.

    Of `numbers` N×3 the first draws the length from the whole numbers low…high of `sides`, the others draw the
    place. Only the square is computed; its pixels are those of the whole image resized, antialiased.
    """
    result = np.empty((len(pixels), size, size, pixels[0].shape[2]), np.uint8)
    lengths = sides[0] + (numbers[:, 0] * (sides[1] - sides[0] + 1)).astype(np.int64)
    for target, one, length, place in zip(result, pixels, lengths.tolist(), numbers[:, 1:].tolist(), strict=True):
        height, width = (scaled_length(side, length, min(one.shape[:2])) for side in one.shape[:2])
        assert min(height, width) >= size, (sides, size)
        top, left = int(place[0] * (height - size + 1)), int(place[1] * (width - size + 1))
        first_row, last_row, upper, lower = _stretch(top, size, height, one.shape[0])
        first_column, last_column, near, far = _stretch(left, size, width, one.shape[1])
        part = image_of(one[first_row:last_row, first_column:last_column])
        part = part.resize((size, size), Image.Resampling.BILINEAR, (near, upper, far, lower))
        target[:] = np.asarray(part).reshape(target.shape)
    return result


def _stretch(start: int, size: int, resized: int, length: int) -> tuple[int, int, float, float]:
    """Return which pixels first…last of a side decide `size` resized ones, and where among them those lie.

    The side has `length` pixels and becomes `resized` ones, of which the stretch begins at `start`.
    """
    begin, end = start * length / resized, (start + size) * length / resized
    support = math.ceil(max(1, length / resized)) + 1  # the reach of the bilinear filter
    first, last = max(0, math.floor(begin) - support), min(length, math.ceil(end) + support)
    return first, last, begin - first, end - first
