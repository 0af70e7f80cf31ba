"""Look into one image file: what it says of itself, and its picture, small, as fast as its format allows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image

from resnext.data.images import opened, refusing, upright

_NAMES = {"1": "grey", "L": "grey", "LA": "grey", "I": "grey", "P": "palette", "PA": "palette", "RGBA": "RGB"}


@dataclass(frozen=True)
class Facts:
    """What a file says of its image before reading makes it RGB of 8 bits.

    `kind` is "grey", "RGB", "palette", "CMYK" or another of Pillow's colour modes, then ", 16 bit" and
    ", transparent" where that is so. Width and height, in pixels, are the upright picture's.
    """

    format: str
    kind: str
    width: int
    height: int


def inspect(data: bytes, *, enough: int) -> tuple[Image.Image, Facts]:
    """Return the picture in the bytes of a file, "RGB", and what the file says of it.

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where the shorter side keeps `enough` pixels; unlike with
    `read_image`, its aspect may change by the rounding of a pixel. Raises `ImageError` as `read_image` does.
    """
    with refusing(data):
        image = opened(data)
        width, height = image.size
        form, kind = image.format or "", _kind(image)
        part = next((part for part in (8, 4, 2) if min(width, height) // part >= enough), 1)
        image.draft(None, (width // part, height // part))
        decoded = image.size
        picture = upright(image, "RGB")
        if picture.size != decoded:  # turned; a square is as wide as high
            width, height = height, width
        return picture, Facts(form, kind, width, height)


def _kind(image: Any) -> str:
    """Say how the pixels of an opened image are stored."""
    base = image.mode.partition(";")[0]
    stored = [tile[3] if isinstance(tile[3], str) else str((tile[3] or ("",))[0]) for tile in image.tile]
    # Pillow has no mode for deep RGB; "BGR;16" is a BMP of 5 or 6 bits a channel.
    deep = "16" in image.mode or any(";16" in raw and not raw.startswith("BGR") for raw in stored)
    parts = [_NAMES.get(base, base)]
    if deep:
        parts.append("16 bit")
    if image.has_transparency_data:
        parts.append("transparent")
    return ", ".join(parts)
