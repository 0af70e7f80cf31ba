"""Read one image file as an 8-bit grey or RGB picture: the only decoder.

What a file is, its first bytes tell, not its name. Pillow's `Image.open` is passed by, because it tries every
format that any library registered and warns where this module refuses; its format classes do the decoding.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import io
import logging
import os
import re
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import PIL
from PIL import ExifTags, Image, features

from resnext.errors import ImageError, UserError

PIXEL_LIMIT = 178_956_970
"""The most pixels an image may have: where Pillow, too, sees an attack (twice its MAX_IMAGE_PIXELS)."""

BYTES_A_PIXEL = 8
"""Of 16-bit RGBA, the largest pixels read here; a file above `pixel_limit` times this is not even loaded."""


@dataclass(frozen=True)
class _Format:
    """How files of one format are named and recognised, and which class decodes them."""

    name: str
    suffixes: tuple[str, ...]
    signature: bytes  # a regular expression for the first 64 bytes
    module: str
    reader: str
    feature: str = ""  # the optional part of Pillow that it needs
    remedy: str = ""  # what to run where this install cannot read it


_PILLOW = "pip install --upgrade pillow"

_FORMATS = (
    _Format("JPEG", (".jpg", ".jpeg", ".jpe", ".jfif"), rb"\xff\xd8", "PIL.JpegImagePlugin", "JpegImageFile"),
    _Format("PNG", (".png", ".apng"), rb"\x89PNG\r\n\x1a\n", "PIL.PngImagePlugin", "PngImageFile"),
    _Format("GIF", (".gif",), rb"GIF8[79]a", "PIL.GifImagePlugin", "GifImageFile"),
    _Format("BMP", (".bmp", ".dib"), rb"BM", "PIL.BmpImagePlugin", "BmpImageFile"),
    _Format("TIFF", (".tif", ".tiff"), rb"II[*+]\0|MM\0[*+]", "PIL.TiffImagePlugin", "TiffImageFile"),
    _Format("WebP", (".webp",), rb"RIFF....WEBP", "PIL.WebPImagePlugin", "WebPImageFile", "webp", _PILLOW),
    _Format(
        "AVIF",
        (".avif", ".avifs"),
        rb"....ftyp(avi[fs]|mi[fa]1....(....)*?avi[fs])",
        "PIL.AvifImagePlugin",
        "AvifImageFile",
        "avif",
        _PILLOW,
    ),
    _Format(
        "HEIC",
        (".heic", ".heif", ".hif"),
        rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)",
        "pillow_heif",
        "HeifImageFile",
        remedy="pip install 'resnext[heif]'",
    ),
)

IMAGE_SUFFIXES: frozenset[str] = frozenset(suffix for form in _FORMATS for suffix in form.suffixes)
"""The file name endings, in lower case, that say "an image", whether this install can read it or not."""


def _decoder_version() -> str:
    """Name the rules of this module, Pillow, its codecs and the HEIC reader with their versions."""
    codecs = ("jpg", "libjpeg_turbo", "zlib", "libtiff", "webp", "avif")
    parts = [
        "rules 1",
        f"pillow {PIL.__version__}",
        *(f"{codec} {features.version(codec)}" for codec in codecs),
    ]
    try:
        parts.append(f"pillow-heif {importlib.metadata.version('pillow-heif')}")
    except importlib.metadata.PackageNotFoundError:
        parts.append("pillow-heif None")
    return ", ".join(parts)


DECODER_VERSION: str = _decoder_version()
"""Everything that can change decoded pixels; part of the pixel cache's key."""

# Without a handler, Python prints a library's log records to stderr.
logging.getLogger("PIL").addHandler(logging.NullHandler())


def is_image_name(name: str) -> bool:
    """Say whether a file of this name is taken for an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122  (a Path costs ten times as much)


def suffixes(name: str) -> tuple[str, ...]:
    """Return the file name endings of a format as Pillow names it; none where it is not known."""
    return next((form.suffixes for form in _FORMATS if form.reader.upper() == f"{name}ImageFile".upper()), ())


def missing_reader(suffix: str) -> str | None:
    """Return what to run to read files of this suffix, or None where this install reads them already."""
    for form in _FORMATS:
        if suffix.lower() in form.suffixes:
            return None if _is_readable(form) else form.remedy
    return None


def _is_readable(form: _Format) -> bool:
    if form.feature:
        return bool(features.check(form.feature))
    try:
        importlib.import_module(form.module)
    except ImportError:
        return False
    return True


def read_image(
    source: str | Path | bytes, *, channels: int = 3, pixel_limit: int = PIXEL_LIMIT, enough: int | None = None
) -> Image.Image:
    """Read one image as Pillow mode "L" (`channels` 1) or "RGB" (3), upright, 8 bits a channel.

    `source` is a path or the bytes of a file. Of several frames the first is taken; EXIF orientation is
    applied; transparent parts lie over white; of 16 bits the upper 8 are kept; colour profiles are ignored.
    Pixels of 32 bits (integer or float) are refused, since their range is unknown.

    Where the shorter side may come with as few as `enough` pixels, a large JPEG is decoded at 1/2, 1/4 or 1/8 of its
    size, if the aspect stays exact: faster, and near what resizing the whole one gives, not equal to it.

    Raises `ImageError` with the path and a short reason for what is wrong with the file, and nothing else.
    Safe to call from many threads; emits no warning.
    """
    if channels not in (1, 3):
        raise UserError(f"channels is {channels}: images are read with 1 (grey) or 3 (RGB) channels.")
    with refusing(source):
        data = source if isinstance(source, bytes) else _contents(source, pixel_limit)
        return _decode(data, "L" if channels == 1 else "RGB", pixel_limit, enough)


def contents(path: str | Path) -> bytes:
    """Return the bytes of an image file; raises `ImageError` where `read_image` would not get that far."""
    with refusing(path):
        return _contents(path, PIXEL_LIMIT)


@contextmanager
def refusing(source: str | Path | bytes) -> Iterator[None]:
    """Turn whatever reading `source` raises into an `ImageError`, and silence warnings meanwhile."""
    path = "<bytes>" if isinstance(source, bytes) else str(source)
    try:
        with _quiet():
            yield
    except _Refusal as refusal:
        raise ImageError(path, str(refusal)) from None
    except Exception as error:  # Pillow's readers raise nearly every type there is for damaged content
        raise ImageError(path, _reason(error)) from error


class _Refusal(Exception):
    """A reason for not reading an image, in words for the user."""


def _contents(source: str | Path, pixel_limit: int) -> bytes:
    """Return the bytes of a file; `_Refusal` where it cannot be opened or is too large."""
    try:
        if Path(source).is_fifo():  # opening it would wait for a writer
            raise _Refusal("not a regular file")
        with Path(source).open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise _Refusal("not a regular file")
            if status.st_size > BYTES_A_PIXEL * pixel_limit:
                raise _Refusal(f"the file is too large ({status.st_size:,} bytes)")
            return file.read()
    except OSError as error:
        raise _Refusal((error.strerror or str(error)).lower()) from error
    except ValueError as error:  # a null character in the path
        raise _Refusal("not a possible file name") from error


def _decode(data: bytes, mode: str, pixel_limit: int, enough: int | None) -> Image.Image:
    """Decode the bytes of a file to an upright picture of `mode` that shares nothing with the file."""
    image = opened(data, pixel_limit)
    width, height = image.size
    if enough is not None:
        part = _part(width, height, enough)
        image.draft(None, (width // part, height // part))  # JPEG's blocks transform to fewer pixels; no-op elsewhere
    return upright(image, mode)


def _part(width: int, height: int, enough: int) -> int:
    """Return 8, 4, 2 or 1: by how much to divide both sides, without a rest, such that the shorter keeps `enough`."""
    shorter = min(width, height)
    return next((part for part in (8, 4, 2) if width % part == height % part == 0 and shorter // part >= enough), 1)


def as_picture(image: Image.Image, *, channels: int = 3) -> Image.Image:
    """Return what `read_image` would make of a file with this picture: upright, opaque, 8 bits, "L" or "RGB".

    Raises UserError for a picture that cannot be brought there.
    """
    try:
        with _quiet():
            picture = upright(image, "L" if channels == 1 else "RGB")
            return picture.copy() if picture.im is image.im else picture  # the caller may draw on the one given
    except _Refusal as refusal:
        raise UserError(f"The picture cannot be read: {refusal}.") from None


def upright(image: Image.Image, mode: str) -> Image.Image:
    """Decode an opened image and return it as `read_image` would; to be called within `refusing`."""
    image.load()
    turned = _TURNS.get(_orientation(image))
    if image.mode.startswith("I;16"):
        image = _eight_bits(image)
    if image.mode not in _MODES:
        raise _Refusal(f"its colour mode {image.mode!r} is not supported: save it with 8 or 16 bits a channel")
    if image.has_transparency_data:
        image = _over_white(image)
    # `convert` would copy the pixels all the same, and `_new` wraps them, without the file's other attributes.
    result: Image.Image = image._new(image.im) if image.mode == mode else image.convert(mode)
    result.info.clear()  # so that nobody downstream turns it or makes it transparent a second time
    return result if turned is None else result.transpose(turned)


def opened(data: bytes, pixel_limit: int = PIXEL_LIMIT) -> Any:  # PIL.ImageFile.ImageFile, TIFF's with more attributes
    """Return the opened, not yet decoded image in `data`; to be called within `refusing`."""
    image = _open(data)
    width, height = image.size
    if width * height > pixel_limit:
        raise _Refusal(f"{width} × {height} pixels are more than the limit of {pixel_limit:,}")
    return image


def _open(data: bytes) -> Any:
    if not data:
        raise _Refusal("the file is empty (0 bytes)")
    for form in _FORMATS:
        if re.match(form.signature, data[:64], re.DOTALL):
            if not _is_readable(form):
                raise _Refusal(f"this install cannot read {form.name}: {form.remedy}")
            return getattr(importlib.import_module(form.module), form.reader)(io.BytesIO(data), "")
    raise _Refusal("its content is no image of a known format")


_MODES = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"})

_TURNS = {  # the EXIF standard's orientation: what brings the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation 1…8 of a loaded image that is still to be applied (1: none)."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken metadata are no reason to lose a picture
        return 1


def _eight_bits(image: Any) -> Image.Image:
    """Reduce a 16-bit grey image to "L", or to "LA" where one grey stands for transparent."""
    bits, white_is_zero = 16, False
    if image.format == "TIFF":
        bits = int(image.tag_v2.get(258, (16,))[0])  # BitsPerSample: 12 comes in the lower bits
        white_is_zero = image.tag_v2.get(262) == 0  # PhotometricInterpretation
    deep = np.asarray(image).astype(np.uint16)
    grey = (deep >> (bits - 8)).astype(np.uint8)
    result = Image.fromarray(255 - grey if white_is_zero else grey)
    if isinstance(key := image.info.get("transparency"), int):
        result.putalpha(Image.fromarray(np.where(deep == key, 0, 255).astype(np.uint8)))
    return result


def _over_white(image: Image.Image) -> Image.Image:
    """Lay a picture with any kind of transparency over white; mode "RGB"."""
    key = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in key)  # the pixels came down from 16 bits, too
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _reason(error: Exception) -> str:
    """Say in a few words why Pillow gave up."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    if isinstance(error, EOFError) or re.search("truncated|end of (file|data)|not enough", text, re.IGNORECASE):
        return "the file is truncated"
    return f"the file is damaged ({text[:80] or type(error).__name__})"


class _Reading(threading.local):
    """A pattern for `warnings.filters` that matches everything while its own thread reads an image."""

    active = False

    def match(self, text: str, position: int = 0) -> bool:
        return self.active


_reading = _Reading()
_FILTER = ("ignore", _reading, Warning, None, 0)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence this thread's warnings: Pillow warns of odd metadata, which is no news for anybody here.

    `warnings.catch_warnings` would not do: before Python 3.14 it acts on all threads at once.
    """
    filters = cast("list[object]", warnings.filters)
    if not filters or filters[0] is not _FILTER:
        if _FILTER in filters:
            filters.remove(_FILTER)
        filters.insert(0, _FILTER)
    _reading.active = True
    try:
        yield
    finally:
        _reading.active = False
