"""Change training images at random, by arithmetic: the result depends on (seed, epoch, image) alone.

The random numbers come from `order.uniforms`, a stream for each kind of change, and are handed to
torchvision's functional transforms; no generator with a state is involved, so neither the batch that an
image falls into nor the worker that loads it can change it. Images stay uint8 until `lighting`, the last change
of single images; `mix` works on the network's input.

Departures and readings: the NIPS 2012 paper adds p·αλ without saying in which units pixels are when λ is computed;
here they go from 0 to 1, as in the authors' code of ResNeXt, whose λ are 0.2175, 0.0188 and 0.0045.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnext.data import crops, randaugment
from resnext.data.crops import Pixels
from resnext.data.order import uniforms
from resnext.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

# The streams of `order.uniforms`. Runs in progress depend on them: append, never renumber.
_CROP, _FLIP, _JITTER, _RAND_AUGMENT, _ERASING, _NOISE, _MIX, _LIGHTING = range(1, 9)

_ERASED_AREA, _ERASED_ASPECT = (0.02, 0.4), (0.3, 1 / 0.3)


@dataclass(frozen=True)
class Augmentation:
    """How training images are changed; the defaults change nothing. An impossible value raises `UserError`.

    `crop` "pad" adds `padding` pixels to each side (black, the image's own reflected, or the mean colour) and
    cuts a square at random (arXiv:1512.03385 §4.2); "random-resized" cuts a share `area` of the image at an
    aspect ratio `aspect` and resizes it (arXiv:1409.4842 §6); "shorter-side" resizes the image until its shorter
    side has a length drawn from the whole numbers low…high of `shorter_side` and cuts a square at random
    (arXiv:1512.03385 §3.4, arXiv:1409.1556 §3.1); "none" is the centre square. `flip` is the probability of
    a horizontal mirror image. `colour_jitter` s scales brightness, contrast and saturation by up to 1 ± s,
    in random order. `rand_augment` is how many of RandAugment's operations (arXiv:1909.13719) are applied,
    at `magnitude` of 30. `erasing` is the probability of noise in a rectangle (arXiv:1708.04896). `lighting` is
    the σ of normal numbers that move an image's colour along each of the `colour_axes` (`statistics.colour_axes`;
    NIPS 2012 "ImageNet classification with deep convolutional neural networks" §4.1, cited by arXiv:1409.1556
    §3.1). `mixup` (arXiv:1710.09412) and `cutmix` (arXiv:1905.04899) are the α of their Beta distribution, 0 for
    off; with both, each step takes one of them.
    """

    crop: Literal["none", "pad", "random-resized", "shorter-side"] = "none"
    padding: int = 4
    padding_mode: Literal["constant", "reflect", "mean"] = "constant"
    shorter_side: tuple[int, int] = (256, 480)
    area: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0
    colour_jitter: float = 0.0
    rand_augment: int = 0
    magnitude: int = 9
    erasing: float = 0.0
    lighting: float = 0.0
    colour_axes: tuple[float, ...] = ()
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        for name, choices in (
            ("crop", ("none", "pad", "random-resized", "shorter-side")),
            ("padding_mode", ("constant", "reflect", "mean")),
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
        for name in ("lighting", "mixup", "cutmix"):
            self._require(name, 0 <= getattr(self, name) < math.inf, "0 (off) or more")
        squares = len(self.colour_axes) in (0, 1, 9) and all(map(math.isfinite, self.colour_axes))
        self._require("colour_axes", squares, "1 (grey) or 3×3 (RGB) finite numbers, or () to compute them")
        low, high = self.shorter_side
        lengths = isinstance(low, int) and isinstance(high, int) and 0 < low <= high
        self._require("shorter_side", lengths, "two whole numbers, 0 < low ≤ high")
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
    pixels: Pixels,
    images: NDArray[np.int64],
    *,
    augmentation: Augmentation,
    image_size: int,
    mean: tuple[float, ...] = (),
    seed: int,
    epoch: int,
) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Return the images changed at random: uint8 N×H×W×C (or a list of H×W×C) to N×S×S×C.

    S is `image_size`, and no side of `pixels` may be shorter. `images` are the numbers of the images within their
    split, or draws of them (`order.balanced`); each image's result depends on its own pixels, its number, `seed` and
    `epoch` only. `mean` is the colour that pads with `padding_mode` "mean", in units of 0…1. The result is uint8, but
    float32 in the same units where there is `lighting`, whose changes are fractions of a level.
    """

    def numbers(draws: int, stream: int) -> NDArray[np.float64]:
        return uniforms(seed, epoch, images, draws, stream)

    result = _cropped(pixels, numbers, augmentation, image_size, mean)
    if augmentation.flip:
        flipped = numbers(1, _FLIP)[:, 0] < augmentation.flip
        result[flipped] = result[flipped, :, ::-1]
    if augmentation.colour_jitter or augmentation.rand_augment:
        jitters, choices = numbers(4, _JITTER), numbers(2 * augmentation.rand_augment, _RAND_AUGMENT)
        for one, jitter, choice in zip(result, jitters, choices, strict=True):
            image = _jittered(crops.image_of(one), jitter, augmentation.colour_jitter)
            image = randaugment.apply(image, choice, augmentation.magnitude)
            one[:] = np.asarray(image).reshape(one.shape)
    if augmentation.erasing:
        _erase(result, images, numbers(crops.BOX_DRAWS + 1, _ERASING), augmentation.erasing, (seed, epoch))
    if augmentation.lighting:
        return _lit(result, numbers(2 * result.shape[3], _LIGHTING), augmentation)
    return result


def _cropped(
    pixels: Pixels,
    numbers: Callable[[int, int], NDArray[np.float64]],
    augmentation: Augmentation,
    size: int,
    mean: tuple[float, ...],
) -> NDArray[np.uint8]:
    """Cut each image to a square as `augmentation.crop` says: uint8 N×S×S×C."""
    if augmentation.crop == "random-resized":
        drawn = numbers(crops.BOX_DRAWS, _CROP)
        return crops.resized_boxes(pixels, drawn, size, augmentation.area, augmentation.aspect)
    if augmentation.crop == "shorter-side":
        return crops.rescaled(pixels, numbers(3, _CROP), size, augmentation.shorter_side)
    if augmentation.crop == "pad":
        pixels = crops.pad(pixels, augmentation.padding, augmentation.padding_mode, mean)
        return crops.cut(pixels, size, numbers(2, _CROP))
    return crops.cut(pixels, size)


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


def _lit(pixels: NDArray[np.uint8], numbers: NDArray[np.float64], augmentation: Augmentation) -> NDArray[np.float32]:
    """Move the colour of each image along the colour axes: uint8 N×S×S×C to float32, not clipped to 0…255.

    `numbers` N×2C make a normal number for each axis (Box and Muller, 1958).
    """
    channels = pixels.shape[3]
    assert len(augmentation.colour_axes) == channels**2, augmentation.colour_axes
    axes = np.array(augmentation.colour_axes).reshape(channels, channels)
    lengths, angles = np.sqrt(-2 * np.log1p(-numbers[:, :channels])), 2 * np.pi * numbers[:, channels:]
    amounts = augmentation.lighting * lengths * np.cos(angles)
    shifts = 255 * (amounts[:, :, None] * axes).sum(axis=1)
    lit: NDArray[np.float32] = pixels + shifts[:, None, None].astype(np.float32)
    return lit


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
    boxes, found = crops.boxes(shapes, numbers, _ERASED_AREA, _ERASED_ASPECT)
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
