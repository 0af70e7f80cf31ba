"""Change training images at random, by arithmetic: the result depends on (seed, epoch, image) alone.

The random numbers come from `order.uniforms`, a stream for each kind of change, and are handed to
torchvision's functional transforms; no generator with a state is involved, so neither the batch that an
image falls into nor the worker that loads it can change it. Images stay uint8 until `mix`, which works on
the network's input.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from PIL import Image

from resnext.data import randaugment
from resnext.data.order import uniforms
from resnext.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

# The streams of `order.uniforms`. Runs in progress depend on them: append, never renumber.
_CROP, _FLIP, _JITTER, _RAND_AUGMENT, _ERASING, _NOISE, _MIX = range(1, 8)

_TRIES = 10
_ERASED_AREA, _ERASED_ASPECT = (0.02, 0.4), (0.3, 1 / 0.3)


@dataclass(frozen=True)
class Augmentation:
    """How training images are changed; the defaults change nothing. An impossible value raises `UserError`.

    `crop` "pad" adds `padding` pixels to each side (black, or the image's own reflected) and cuts a square
    at random (arXiv:1512.03385 §4.2); "random-resized" cuts a share `area` of the image at an aspect ratio
    `aspect` and resizes it (arXiv:1409.4842 §6); "none" is the centre square. `flip` is the probability of
    a horizontal mirror image. `colour_jitter` s scales brightness, contrast and saturation by up to 1 ± s,
    in random order. `rand_augment` is how many of RandAugment's operations (arXiv:1909.13719) are applied,
    at `magnitude` of 30. `erasing` is the probability of noise in a rectangle (arXiv:1708.04896). `mixup`
    (arXiv:1710.09412) and `cutmix` (arXiv:1905.04899) are the α of their Beta distribution, 0 for off; with
    both, each step takes one of them.
    """

    crop: Literal["none", "pad", "random-resized"] = "none"
    padding: int = 4
    padding_mode: Literal["constant", "reflect"] = "constant"
    area: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0
    colour_jitter: float = 0.0
    rand_augment: int = 0
    magnitude: int = 9
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        for name, choices in (
            ("crop", ("none", "pad", "random-resized")),
            ("padding_mode", ("constant", "reflect")),
        ):
            self._require(name, getattr(self, name) in choices, f"one of {', '.join(choices)}")
        for name in ("padding", "rand_augment"):
            value = getattr(self, name)
            self._require(name, isinstance(value, int) and value >= 0, "a whole number of at least 0")
        self._require("rand_augment", self.rand_augment <= 20, "at most 20")
        steps = isinstance(self.magnitude, int) and 0 <= self.magnitude <= randaugment.STRONGEST
        self._require("magnitude", steps, f"a whole number from 0 to {randaugment.STRONGEST}")
        for name in ("flip", "erasing", "colour_jitter"):
            self._require(name, 0 <= getattr(self, name) <= 1, "between 0 and 1")
        for name in ("mixup", "cutmix"):
            self._require(name, 0 <= getattr(self, name) < math.inf, "0 (off) or more")
        self._require("area", 0 < self.area[0] <= self.area[1] <= 1, "two shares, 0 < low ≤ high ≤ 1")
        ratios = 0 < self.aspect[0] <= self.aspect[1] < math.inf
        self._require("aspect", ratios, "two ratios of width to height, 0 < low ≤ high")

    def _require(self, name: str, holds: bool, wanted: str) -> None:
        if not holds:
            raise UserError(f"Augmentation: {name} is {getattr(self, name)!r}, and must be {wanted}.")

    @property
    def mixes(self) -> bool:
        """Whether `mix` has anything to do."""
        return self.mixup > 0 or self.cutmix > 0


def augment(
    pixels: list[NDArray[np.uint8]] | NDArray[np.uint8],
    images: NDArray[np.int64],
    *,
    augmentation: Augmentation,
    image_size: int,
    seed: int,
    epoch: int,
) -> NDArray[np.uint8]:
    """Return the images changed at random: uint8 N×H×W×C (or a list of H×W×C) to uint8 N×S×S×C.

    S is `image_size`, and no side of `pixels` may be shorter. `images` are the numbers of the images within
    their split; each image's result depends on its own pixels, its number, `seed` and `epoch` only.
    """

    def numbers(draws: int, stream: int) -> NDArray[np.float64]:
        return uniforms(seed, epoch, images, draws, stream)

    if augmentation.crop == "random-resized":
        result = _resized_crops(pixels, numbers(2 * _TRIES + 2, _CROP), augmentation, image_size)
    else:
        result = _crops(pixels, numbers(2, _CROP), augmentation, image_size)
    if augmentation.flip:
        flipped = numbers(1, _FLIP)[:, 0] < augmentation.flip
        result[flipped] = result[flipped, :, ::-1]
    if augmentation.colour_jitter or augmentation.rand_augment:
        jitters, choices = numbers(4, _JITTER), numbers(2 * augmentation.rand_augment, _RAND_AUGMENT)
        for one, jitter, choice in zip(result, jitters, choices, strict=True):
            image = _jittered(_image(one), jitter, augmentation.colour_jitter)
            image = randaugment.apply(image, choice, augmentation.magnitude)
            one[:] = np.asarray(image).reshape(one.shape)
    if augmentation.erasing:
        _erase(result, images, numbers(2 * _TRIES + 3, _ERASING), augmentation.erasing, (seed, epoch))
    return result


def _crops(
    pixels: list[NDArray[np.uint8]] | NDArray[np.uint8],
    numbers: NDArray[np.float64],
    augmentation: Augmentation,
    size: int,
) -> NDArray[np.uint8]:
    """Cut a square out of each image, at random out of the padded one or from the centre: uint8 N×S×S×C."""
    if isinstance(pixels, list):  # of different shapes
        alone = [_crops(one[None], numbers[i : i + 1], augmentation, size) for i, one in enumerate(pixels)]
        return np.concatenate(alone)
    if augmentation.crop == "pad":
        border = (augmentation.padding, augmentation.padding)
        pixels = np.pad(pixels, ((0, 0), border, border, (0, 0)), mode=augmentation.padding_mode)
    count, height, width, channels = pixels.shape
    free = np.array([height - size, width - size])
    assert free.min() >= 0, (pixels.shape, size)
    places = (numbers * (free + 1)).astype(np.int64) if augmentation.crop == "pad" else np.tile(free // 2, (count, 1))
    # One gather of whole rows for the batch: pixel by pixel would cost ten times as much.
    rows = np.ascontiguousarray(pixels).reshape(count, height, width * channels)
    windows = sliding_window_view(rows, (size, size * channels), axis=(1, 2))
    cut: NDArray[np.uint8] = windows[np.arange(count), places[:, 0], places[:, 1] * channels]
    return cut.reshape(count, size, size, channels)


def _resized_crops(
    pixels: list[NDArray[np.uint8]] | NDArray[np.uint8],
    numbers: NDArray[np.float64],
    augmentation: Augmentation,
    size: int,
) -> NDArray[np.uint8]:
    """Cut a random share out of each image and resize it, antialiased, to S×S: uint8 N×S×S×C."""
    from torchvision.transforms.v2 import functional

    shapes = np.array([one.shape[:2] for one in pixels])
    boxes, found = _boxes(shapes, numbers, augmentation.area, augmentation.aspect)
    boxes[~found] = _centred(shapes[~found], augmentation.aspect)
    result = np.empty((len(pixels), size, size, pixels[0].shape[2]), np.uint8)
    for target, one, (top, left, height, width) in zip(result, pixels, boxes.tolist(), strict=True):
        part = _image(one[top : top + height, left : left + width])
        target[:] = np.asarray(functional.resize(part, [size, size])).reshape(target.shape)
    return result


def _boxes(
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


def _centred(shapes: NDArray[np.int64], aspect: tuple[float, float]) -> NDArray[np.int64]:
    """Return the largest centred rectangle whose width / height lies within `aspect`: N×4 as `_boxes`."""
    height, width = shapes[:, 0], shapes[:, 1]
    sizes = np.stack(
        [np.minimum(height, np.rint(width / aspect[0])), np.minimum(width, np.rint(height * aspect[1]))], 1
    )
    sizes = np.maximum(sizes, 1).astype(np.int64)
    return np.hstack([(shapes - sizes) // 2, sizes])


def _image(pixels: NDArray[np.uint8]) -> Image.Image:
    """Return H×W×C pixels as Pillow's "L" or "RGB": tensors would start threads in each worker thread."""
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _jittered(image: Image.Image, numbers: NDArray[np.float64], strength: float) -> Image.Image:
    """Scale brightness, contrast and saturation by up to 1 ± `strength`, in random order, by 4 numbers."""
    from torchvision.transforms.v2 import functional

    if not strength:
        return image
    adjust = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation)
    order = list(itertools.permutations(range(3)))[int(numbers[3] * 6)]
    for kind in order:
        image = adjust[kind](image, 1 + strength * (2 * float(numbers[kind]) - 1))
    return image


def _erase(
    pixels: NDArray[np.uint8],
    images: NDArray[np.int64],
    numbers: NDArray[np.float64],
    probability: float,
    key: tuple[int, int],
) -> None:
    """Fill a random rectangle of some images of N×S×S×C with noise, in place; `key` is (seed, epoch).

    Random erasing (arXiv:1708.04896 Algorithm 1, random values), but for the log-uniform ratio of the sides.
    """
    shapes = np.tile(np.array(pixels.shape[1:3]), (len(pixels), 1))
    boxes, found = _boxes(shapes, numbers, _ERASED_AREA, _ERASED_ASPECT)
    for index in np.flatnonzero(found & (numbers[:, -1] < probability)):
        top, left, height, width = boxes[index]
        patch = pixels[index, top : top + height, left : left + width]
        noise = uniforms(*key, images[index : index + 1], patch.size, _NOISE)
        patch[:] = (noise * 256).astype(np.uint8).reshape(patch.shape)


def mix(
    inputs: Tensor,
    labels: Tensor,
    *,
    augmentation: Augmentation,
    num_classes: int,
    seed: int,
    epoch: int,
    step: int,
) -> tuple[Tensor, Tensor]:
    """Blend each image of a batch with the one before it (the first with the last): mixup or CutMix.

    `inputs` N×C×H×W of a floating type, `labels` N integers; returns the blended inputs and float32 targets
    N×K that sum to 1. The share of the image itself is drawn once for the batch from Beta(α, α), by (seed,
    epoch, step); CutMix's is then corrected to the exact share of pixels that stay.
    """
    from torch.nn.functional import one_hot

    which, *beta, y, x = uniforms(seed, epoch, np.array([step]), 5, _MIX)[0].tolist()
    cut = augmentation.cutmix > 0 and (augmentation.mixup == 0 or which < 0.5)
    share = _beta(augmentation.cutmix if cut else augmentation.mixup, *beta)
    if cut:
        mixed = inputs.clone()
        height, width = inputs.shape[-2:]
        rows, columns = _span(height, share, y), _span(width, share, x)
        mixed[:, :, rows, columns] = inputs[:, :, rows, columns].roll(1, 0)
        share = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
    else:
        mixed = inputs.lerp(inputs.roll(1, 0), 1 - share)
    targets = one_hot(labels.long(), num_classes).float()
    return mixed, targets.lerp(targets.roll(1, 0), 1 - share)


def _span(length: int, share: float, centre: float) -> slice:
    """Return the pixels of one side that CutMix replaces so that a `share` of the area stays (§3.1 there)."""
    half, middle = int(length * math.sqrt(1 - share)) // 2, int(centre * length)
    return slice(max(0, middle - half), min(length, middle + half))


def _beta(alpha: float, u: float, v: float) -> float:
    """Return a number of the distribution Beta(α, α) from two uniform ones, without rejection.

    By way of Student's t with 2α degrees of freedom (Bailey, Mathematics of Computation 62 (206), 1994).
    """
    cosine = math.cos(2 * math.pi * v)
    squared = math.expm1(min(-math.log1p(-u) / alpha, 600.0)) * cosine * cosine
    return 0.5 + math.copysign(0.5, cosine) * math.sqrt(squared / (1 + squared))
