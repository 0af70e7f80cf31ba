"""What lies between a decoded image and the network's input: resize, crop, normalise. The only one."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from resnext.errors import UserError, did_you_mean

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

ROUNDINGS = ("nearest", "torchvision")

LONGEST = 3
"""The longer side may be this many times the shorter; the ends of a longer image (a panorama) are cut off."""


@dataclass(frozen=True, eq=False)
class Preprocessing:
    """Everything between a decoded image and the network's input; stored in the bundle.

    `resize` is the length of the shorter side after resizing and `image_size` that of the square cut from its
    centre, both in pixels; `mean` and `std` are in units of pixels that go from 0 to 1, one a channel.
    `rounding` says how sides and places become whole pixels: "nearest", or as "torchvision" does, and timm with it:
    the longer side down, the crop's place to the nearest, halves to the even one.
    `mean_image` (image_size×image_size×channels, same units) is what an input of that size is centred by instead
    of `mean`: the "per-pixel mean" of arXiv:1512.03385 §3.4. Other sizes use `mean`, its mean colour.
    A value that cannot be raises `UserError`.
    """

    image_size: int
    resize: int
    channels: int = 3
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"
    rounding: str = "nearest"
    mean_image: npt.NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        for name in ("image_size", "resize", "channels"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise UserError(f"Preprocessing: {name} is {value!r}, but must be a whole number above 0.")
        if self.channels not in (1, 3):
            raise UserError(f"Preprocessing: channels is {self.channels}, but must be 1 (grey) or 3 (RGB).")
        if self.resize < self.image_size:
            raise UserError(
                f"Preprocessing: an image of {self.image_size} pixels cannot be cut from one resized to "
                f"{self.resize}. Make resize at least image_size."
            )
        for name in ("mean", "std"):
            _check_channel_values(name, getattr(self, name), self.channels)
        if min(self.std) <= 0:
            raise UserError(f"Preprocessing: std is {self.std}, but must be above 0.")
        if self.interpolation not in tuple(FILTERS):  # a tuple takes unhashable values, too
            raise UserError(f"Preprocessing: interpolation {self.interpolation!r} is none of {', '.join(FILTERS)}.")
        if self.rounding not in ROUNDINGS:
            raise UserError(f"Preprocessing: rounding {self.rounding!r} is none of {', '.join(ROUNDINGS)}.")
        if self.mean_image is not None:
            self._check_mean_image(self.mean_image)

    def _check_mean_image(self, image: npt.NDArray[np.float32]) -> None:
        shape = (self.image_size, self.image_size, self.channels)
        if image.dtype != np.float32 or image.shape != shape or not np.isfinite(image).all():
            raise UserError(
                f"Preprocessing: the mean image is {image.dtype} {image.shape}, but must be finite float32 {shape}."
            )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Preprocessing) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.image_size, self.resize, self.channels, self.mean, self.std, self.interpolation))

    def with_mean_image(self, image: npt.NDArray[np.float32]) -> Preprocessing:
        """Return the same with this mean image (image_size×image_size×channels, units of 0…1) and its mean colour."""
        colour = tuple(image.mean(axis=(0, 1), dtype=np.float64).tolist())
        return dataclasses.replace(self, mean=colour, mean_image=image)

    @property
    def mode(self) -> str:
        """Pillow's name for the kind of image this takes: "L" or "RGB"."""
        return "L" if self.channels == 1 else "RGB"

    @property
    def enough(self) -> int:
        """What `read_image` may take for enough where a large photo is decoded at a part of its size: 2 · `resize`.

        What is left to the resize then still decides the pixels: on photos they differ by one or two levels on average.
        """
        return 2 * self.resize

    def resized(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        """Resize an image of mode "L" or "RGB" with antialiasing; uint8, H×W×C, the shorter side == `resize`.

        The aspect is kept and the longer side rounded to whole pixels. What goes beyond `LONGEST` times the
        shorter side is cut off first, half at each end, so that a panorama cannot fill the memory.
        """
        assert image.mode == self.mode, image.mode
        image = _shortened(image)
        width, height = image.size
        short = min(width, height)
        size = (self._scaled(width, short), self._scaled(height, short))
        if size != image.size:
            image = image.resize(size, FILTERS[self.interpolation])
        return np.array(image).reshape(size[1], size[0], self.channels)

    def crop(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Cut the centre square, `image_size` on a side, from pixels H×W×C or N×H×W×C; a view."""
        height, width = pixels.shape[-3:-1]
        top, left = self._middle(height), self._middle(width)
        return pixels[..., top : top + self.image_size, left : left + self.image_size, :]

    def _scaled(self, length: int, short: int) -> int:
        """Return a side of an image after resizing; `short` is the shorter one before."""
        if self.rounding == "torchvision":
            return self.resize * length // short
        return scaled_length(length, self.resize, short)

    def _middle(self, length: int) -> int:
        """Return where the crop begins on a side of so many pixels."""
        rest = length - self.image_size
        return round(rest / 2) if self.rounding == "torchvision" else rest // 2

    def pixels(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        """Resize and crop an image: uint8, image_size×image_size×C."""
        return self.crop(self.resized(image))

    def normalise(self, batch: npt.NDArray[np.uint8] | npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Turn pixels of 0…255, N×H×W×C, into float32 N×C×H×W, contiguous: (pixel / 255 − mean) / std.

        One multiplication and one subtraction, each rounded by itself: the same bits on every machine.
        """
        count, height, width, channels = batch.shape
        assert channels == self.channels, batch.shape
        mean, std = np.array(self.mean)[:, None, None], np.array(self.std)[:, None, None]
        if self.mean_image is not None and (height, width) == self.mean_image.shape[:2]:
            mean = self.mean_image.transpose(2, 0, 1).astype(np.float64)
        result = np.empty((count, channels, height, width), np.float32)
        np.multiply(batch.transpose(0, 3, 1, 2), (1 / (255 * std)).astype(np.float32), out=result)
        result -= (mean / std).astype(np.float32)
        return result

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON has them, of a mean image its SHA-256; `from_dict` is the way back."""
        told = {name: list(v) if isinstance(v, tuple) else v for name, v in vars(self).items() if v is not None}
        if self.rounding == "nearest":
            del told["rounding"]  # bundles are older than the field, and known by the hash of these
        return told if self.mean_image is None else {**told, "mean_image": _sha256(self.mean_image)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], mean_image: npt.NDArray[np.float32] | None = None) -> Preprocessing:
        """Build from JSON's fields and the mean image, if they name one.

        An unknown, missing or impossible field raises `UserError`, as does another mean image than the one named.
        """
        if not isinstance(fields, Mapping):
            raise UserError(f"Preprocessing: {fields!r} is no table of fields.")
        known = [field.name for field in dataclasses.fields(cls)]
        for name in fields:
            if name not in known:
                raise UserError(f"Preprocessing: unknown field {name!r}.{did_you_mean(str(name), known)}")
        for name in ("image_size", "resize"):
            if name not in fields:
                raise UserError(f"Preprocessing: the field {name!r} is missing.")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        if values.pop("mean_image", None) != (None if mean_image is None else _sha256(mean_image)):
            raise UserError("Preprocessing: the mean image is not the one whose SHA-256 is named. Restore the bundle.")
        return cls(**values, mean_image=mean_image)


def _sha256(image: npt.NDArray[np.float32]) -> str:
    return hashlib.sha256(np.ascontiguousarray(image, "<f4").tobytes()).hexdigest()


def _check_channel_values(name: str, values: object, channels: int) -> None:
    """Raise `UserError` unless `values` is a tuple of `channels` finite numbers."""
    if not (isinstance(values, tuple) and len(values) == channels and all(map(_is_number, values))):
        raise UserError(f"Preprocessing: {name} is {values!r}, but must be {channels} number(s), one a channel.")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def scaled_length(length: int, numerator: int, denominator: int) -> int:
    """Return length · numerator / denominator rounded, halves up."""
    return (2 * length * numerator + denominator) // (2 * denominator)


def _shortened(image: Image.Image) -> Image.Image:
    """Cut both ends off an image that is longer than `LONGEST` times its shorter side."""
    width, height = image.size
    limit = LONGEST * min(width, height)
    if max(width, height) <= limit:
        return image
    left, top = max(0, (width - limit) // 2), max(0, (height - limit) // 2)
    return image.crop((left, top, left + min(width, limit), top + min(height, limit)))
