"""The decoder against hand-made files, Pillow's own decoding and arithmetic in float64."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
import pillow_heif
import pytest
from PIL import Image

from resnext.data import images
from resnext.data.images import IMAGE_SUFFIXES, as_picture, is_image_name, missing_reader, read_image
from resnext.errors import ImageError, UserError

Pixels = npt.NDArray[Any]


def scene(height: int = 23, width: int = 37) -> Pixels:
    """An RGB picture with gradients and edges, without any symmetry: uint8, H×W×3."""
    y, x = np.mgrid[:height, :width]
    waves = np.stack([6 * x + y, 9 * y + 40 * (x > 20), 255 - 5 * x - 3 * y], axis=-1)
    return (waves % 256).astype(np.uint8)


def smooth(height: int = 48, width: int = 64) -> Pixels:
    """An RGB picture that lossy formats keep well: uint8, H×W×3."""
    y, x = np.mgrid[:height, :width]
    return np.stack([3 * x, 4 * y, 200 - 2 * x], axis=-1).astype(np.uint8)


def encode(image: Image.Image | Pixels, form: str, **options: Any) -> bytes:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    file = io.BytesIO()
    if form == "HEIF":
        pillow_heif.from_pillow(image).save(file, **options)
    else:
        image.save(file, form, **options)
    return file.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file by hand; `rows` without the filter bytes."""
    stride = len(rows) // height
    filtered = b"".join(b"\0" + rows[i * stride : (i + 1) * stride] for i in range(height))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(filtered)), (b"IEND", b"")]
    body = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def tiff(size: tuple[int, int], bits: int, photometric: int, data: bytes, order: str = "<") -> bytes:
    """An uncompressed grey TIFF file by hand."""
    tags = [(256, size[0]), (257, size[1]), (258, bits), (259, 1), (262, photometric), (273, 0), (277, 1)]
    tags += [(278, size[1]), (279, len(data))]
    start = 8 + 2 + 12 * len(tags) + 4
    tags = [(tag, start if tag == 273 else value) for tag, value in tags]
    entries = b"".join(struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in tags)
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return magic + struct.pack(order + "IH", 8, len(tags)) + entries + bytes(4) + data


def read(data: bytes, channels: int = 3) -> Pixels:
    return np.asarray(read_image(data, channels=channels))


def over_white(colour: Pixels, alpha: Pixels) -> Pixels:
    """H×W×3 colour and H×W alpha over white, in float64."""
    share = alpha[..., None].astype(np.float64) / 255
    return colour * share + 255 * (1 - share)


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ],
)
def test_lossless_formats_give_back_every_pixel(form: str, options: dict[str, Any]) -> None:
    np.testing.assert_array_equal(read(encode(scene(), form, **options)), scene())


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("JPEG", {"quality": 95}),
        ("JPEG", {"quality": 95, "progressive": True}),
        ("JPEG", {"quality": 95, "subsampling": 0, "optimize": True}),
        ("WEBP", {"quality": 95}),
        ("AVIF", {"quality": 95}),
        ("HEIF", {"quality": 95}),
        ("TIFF", {"compression": "jpeg", "quality": 95}),
    ],
)
def test_lossy_formats_stay_near_and_equal_their_library(form: str, options: dict[str, Any]) -> None:
    data = encode(smooth(), form, **options)
    if form == "HEIF":
        oracle = pillow_heif.open_heif(io.BytesIO(data)).to_pillow()
    else:
        oracle = Image.open(io.BytesIO(data)).convert("RGB")
    np.testing.assert_array_equal(read(data), np.asarray(oracle))
    assert np.abs(read(data).astype(int) - smooth()).mean() < 3


def test_bytes_str_and_path_are_the_same_picture_and_nothing_of_the_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encode(scene(), "JPEG", exif=exif(3), icc_profile=b"not a profile"))
    pictures = [read_image(source) for source in (path, str(path), path.read_bytes())]
    assert len({picture.tobytes() for picture in pictures}) == 1
    assert type(pictures[0]) is Image.Image
    assert pictures[0].info == {}
    assert pictures[0].getexif().get(0x0112) is None


def test_what_a_file_is_its_content_says_not_its_name(tmp_path: Path) -> None:
    path = tmp_path / "really_a_png.jpg"
    path.write_bytes(encode(scene(), "PNG"))
    np.testing.assert_array_equal(np.asarray(read_image(path)), scene())


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_picture_that_was_handed_over_shares_nothing_with_the_one_that_is_returned(mode: str) -> None:
    given = Image.fromarray(scene()).convert(mode)
    given.info["comment"] = "mine"
    before = given.copy()
    picture = as_picture(given, channels=len(mode))
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(before))
    picture.paste(0, (0, 0, 9, 9))
    np.testing.assert_array_equal(np.asarray(given), np.asarray(before))
    assert given.info == {"comment": "mine"}


# Modes


def test_grey_comes_as_equal_channels_and_colour_as_luma() -> None:
    grey = scene()[..., 0]
    data = encode(grey, "PNG")
    np.testing.assert_array_equal(read(data), np.repeat(grey[..., None], 3, axis=2))
    np.testing.assert_array_equal(read(data, channels=1), grey)
    luma = scene() @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    assert np.abs(read(encode(scene(), "PNG"), channels=1) - luma).max() <= 1


def test_one_bit_is_black_and_white() -> None:
    data = png(8, 2, 1, 0, bytes([0b10100000, 0b00000001]))
    expected = np.array([[255, 0, 255, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 255]])
    np.testing.assert_array_equal(read(data, channels=1), expected)
    np.testing.assert_array_equal(read(data)[..., 2], expected)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("opacity", [None, b"\x00", b"\xff\x00", b"\x80\xff"])
def test_palette_with_and_without_transparency(depth: int, opacity: bytes | None) -> None:
    palette = np.array([[200, 10, 30], [5, 250, 90]], np.uint8)
    index = np.array([[0, 1, 1, 0], [1, 1, 0, 0]])
    rows = b"".join(
        int("".join(f"{i:0{depth}b}" for i in row).ljust(-(-4 * depth // 8) * 8, "0"), 2).to_bytes(-(-4 * depth // 8))
        for row in index
    )
    chunks = [(b"PLTE", palette.tobytes())] + ([(b"tRNS", opacity)] if opacity is not None else [])
    alpha = np.frombuffer((opacity or b"").ljust(2, b"\xff"), np.uint8)
    expected = over_white(palette[index], alpha[index])
    assert np.abs(read(png(4, 2, depth, 3, rows, *chunks)) - expected).max() <= 1


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF", "AVIF", "HEIF"])
def test_alpha_lies_over_white(form: str) -> None:
    colour, alpha = smooth(), np.tile(np.arange(0, 256, 4, dtype=np.uint8), (48, 1))
    options = {"WEBP": {"lossless": True, "exact": True}, "AVIF": {"quality": 100}, "HEIF": {"quality": 100}}
    data = encode(np.dstack([colour, alpha]), form, **options.get(form, {}))
    limit = 8 if form in ("AVIF", "HEIF") else 1
    assert np.abs(read(data) - over_white(colour, alpha)).max() <= limit


def test_grey_with_alpha_lies_over_white() -> None:
    grey, alpha = scene()[..., 0], scene()[..., 1]
    data = encode(Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)]), "PNG")
    expected = over_white(grey[..., None], alpha)[..., 0]
    assert np.abs(read(data, channels=1) - expected).max() <= 1


def test_one_transparent_colour_turns_white() -> None:
    grey = np.array([[10, 20], [30, 10]], np.uint8)
    data = png(2, 2, 8, 0, grey.tobytes(), (b"tRNS", struct.pack(">H", 10)))
    np.testing.assert_array_equal(read(data, channels=1), [[255, 20], [30, 255]])
    colour = np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)
    data = png(2, 1, 8, 2, colour.tobytes(), (b"tRNS", struct.pack(">HHH", 4, 5, 6)))
    np.testing.assert_array_equal(read(data), [[[1, 2, 3], [255, 255, 255]]])


def test_sixteen_bits_keep_the_upper_eight() -> None:
    grey = np.array([[0x0000, 0x12FF, 0xFFFF], [0x8000, 0x7FFF, 0x0100]])
    upper = grey >> 8
    np.testing.assert_array_equal(read(png(3, 2, 16, 0, grey.astype(">u2").tobytes()), channels=1), upper)
    colour = np.stack([grey, grey[::-1], grey[:, ::-1]], axis=-1)
    data = png(3, 2, 16, 2, colour.astype(">u2").tobytes())
    np.testing.assert_array_equal(read(data), colour >> 8)
    transparent = png(3, 2, 16, 0, grey.astype(">u2").tobytes(), (b"tRNS", struct.pack(">H", 0x12FF)))
    np.testing.assert_array_equal(read(transparent, channels=1), np.where(grey == 0x12FF, 255, upper))
    keyed = png(1, 1, 16, 2, struct.pack(">HHH", 0x1234, 0x5678, 0x9ABC), (b"tRNS", b"\x12\x34\x56\x78\x9a\xbc"))
    np.testing.assert_array_equal(read(keyed), [[[255, 255, 255]]])


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("photometric", [0, 1])
def test_sixteen_bit_tiff(order: str, photometric: int) -> None:
    grey = np.array([[0x0000, 0x12FF, 0xFFFF], [0x8000, 0x7FFF, 0x0100]])
    upper = grey >> 8
    data = tiff((3, 2), 16, photometric, grey.astype(order + "u2").tobytes(), order)
    if (order, photometric) == (">", 0):  # Pillow knows no such kind: refused, not misread
        with pytest.raises(ImageError):
            read(data, channels=1)
        return
    np.testing.assert_array_equal(read(data, channels=1), upper if photometric else 255 - upper)


def test_twelve_bit_tiff() -> None:
    grey = np.array([[0x000, 0xFFF], [0x800, 0x123]])
    packed = b"".join(int(f"{a:03x}{b:03x}", 16).to_bytes(3) for a, b in grey)
    np.testing.assert_array_equal(read(tiff((2, 2), 12, 1, packed), channels=1), grey >> 4)


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_cmyk(form: str) -> None:
    inks = np.dstack([smooth(), np.full((48, 64), 40, np.uint8)])
    picture = Image.frombytes("CMYK", (64, 48), inks.tobytes())
    data = encode(picture, form, **({"quality": 98, "subsampling": 0} if form == "JPEG" else {}))
    expected = (255 - smooth().astype(np.float64)) * (255 - 40) / 255
    assert np.abs(read(data) - expected).mean() < 3


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF", "AVIF", "MPO"])
def test_the_first_of_several_frames(form: str) -> None:
    dark, light = (Image.new("RGB", (16, 16), (v, v, v)) for v in (40, 220))
    data = encode(dark, form, save_all=True, append_images=[light])
    assert np.abs(read(data).astype(int) - 40).max() <= 2


@pytest.mark.parametrize("mode", ["I", "F", "LAB"])
def test_colour_modes_without_a_known_range_are_refused(mode: str) -> None:
    with pytest.raises(ImageError, match="colour mode"):
        read(encode(Image.new(mode, (4, 4)), "TIFF"))


# Orientation

UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),  # the first row is the right side: a quarter turn clockwise
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),
}


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "TIFF LZW", "AVIF", "HEIF"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(form: str, orientation: int) -> None:
    options: dict[str, Any] = {"lossless": True} if form == "WEBP" else {"quality": 95}
    if form == "TIFF LZW":  # Pillow reads compressed files on another path
        form, options = "TIFF", {"compression": "tiff_lzw"}
    data = encode(smooth(), form, exif=exif(orientation), **options)
    expected = UPRIGHT[orientation](smooth()).astype(int)
    assert read(data).shape == expected.shape
    assert np.abs(read(data) - expected).mean() < 3


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_of_a_sixteen_bit_image(orientation: int) -> None:
    grey = np.arange(6).reshape(2, 3) * 256
    data = png(3, 2, 16, 0, grey.astype(">u2").tobytes(), (b"eXIf", exif(orientation).removeprefix(b"Exif\0\0")))
    np.testing.assert_array_equal(read(data, channels=1), UPRIGHT[orientation](grey >> 8))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_impossible_orientation_is_none(orientation: int) -> None:
    np.testing.assert_array_equal(read(encode(scene(), "PNG", exif=exif(orientation))), scene())


# Large photos at a part of their size


@pytest.mark.parametrize(
    ("size", "enough", "expected"),
    [
        ((640, 480), 60, (80, 60)),
        ((640, 480), 61, (160, 120)),
        ((480, 640), 121, (240, 320)),
        ((640, 480), 241, (640, 480)),
        ((640, 480), 480, (640, 480)),
        ((640, 480), 9999, (640, 480)),
        ((644, 480), 1, (161, 120)),  # 8 does not divide 644
        ((642, 480), 1, (321, 240)),
        ((641, 480), 1, (641, 480)),
        ((640, 479), 1, (640, 479)),
        ((8, 8), 1, (1, 1)),
    ],
)
def test_the_largest_scale_that_keeps_enough_and_the_aspect(
    size: tuple[int, int], enough: int, expected: tuple[int, int]
) -> None:
    data = encode(Image.new("RGB", size, (200, 100, 50)), "JPEG")
    picture = read_image(data, enough=enough)
    assert picture.size == expected
    assert np.abs(np.asarray(picture).astype(int) - (200, 100, 50)).max() <= 2
    assert read_image(data).size == size
    turned = encode(Image.new("RGB", size), "JPEG", exif=exif(6))
    assert read_image(turned, enough=enough).size == expected[::-1]


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}])
@pytest.mark.parametrize("part", [2, 4, 8])
def test_a_part_of_the_size_is_the_mean_of_as_many_pixels(part: int, options: dict[str, Any]) -> None:
    y, x = np.mgrid[:96, :160]
    grey = (128 + 60 * np.sin(x / 9) + 50 * np.cos(y / 7)).astype(np.uint8)
    means = grey.reshape(96 // part, part, 160 // part, part).mean(axis=(1, 3))
    data = encode(grey, "JPEG", quality=98, **options)
    assert np.abs(np.asarray(read_image(data, channels=1, enough=96 // part)) - means).max() < 3
    upside_down = encode(grey, "JPEG", quality=98, exif=exif(3), **options)
    picture = np.asarray(read_image(upside_down, channels=1, enough=96 // part))
    assert np.abs(picture - means[::-1, ::-1]).max() < 3


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF"])
def test_other_formats_come_whole(form: str) -> None:
    data = encode(smooth(), form)
    np.testing.assert_array_equal(np.asarray(read_image(data, enough=6)), read(data))


def test_a_scaled_photo_of_inks_is_read_too() -> None:
    data = encode(Image.new("CMYK", (64, 48), (255, 0, 0, 0)), "JPEG", quality=98)
    picture = read_image(data, enough=12)
    assert picture.size == (16, 12)
    assert np.abs(np.asarray(picture).astype(int) - (0, 255, 255)).max() <= 2


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.98])
def test_a_large_file_that_is_truncated_is_refused_at_every_scale(options: dict[str, Any], share: float) -> None:
    noise = np.random.default_rng(2).integers(0, 256, (512, 640, 3), np.uint8)
    data = encode(noise, "JPEG", **options)
    part = data[: int(share * len(data))]
    assert {reason(part, enough=enough) for enough in (None, 256, 128, 64)} == {reason(part)}
    assert "truncated" in reason(part)


def test_the_limit_of_pixels_is_that_of_the_whole_image() -> None:
    data = encode(Image.new("RGB", (640, 480)), "JPEG")
    assert "307,199" in reason(data, enough=60, pixel_limit=640 * 480 - 1)


# Bad files


def reason(source: str | Path | bytes, **options: Any) -> str:
    with pytest.raises(ImageError) as caught:
        read_image(source, **options)
    assert "\n" not in str(caught.value)
    return caught.value.reason


def test_files_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reason(tmp_path / "none.jpg") == "no such file or directory"
    assert reason(tmp_path) == "is a directory"
    assert reason("a\0b.jpg") == "not a possible file name"
    assert reason("/dev/null") == "not a regular file"
    with pytest.raises(ImageError, match=r"none\.jpg: no such file") as caught:
        read_image(tmp_path / "none.jpg")
    assert caught.value.path == str(tmp_path / "none.jpg")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert reason(tmp_path / "a.jpg") == "permission denied"


def test_files_without_a_picture_in_them(tmp_path: Path) -> None:
    assert reason(b"") == "the file is empty (0 bytes)"
    assert reason(b"Dear reader, this is no image.") == "its content is no image of a known format"
    path = tmp_path / "text.jpg"
    path.write_text("hello")
    assert reason(path) == "its content is no image of a known format"


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "HEIF"])
def test_truncated_files(form: str) -> None:
    data = encode(np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8), form)
    for share in (0.3, 0.6, 0.9):
        assert "truncated" in (text := reason(data[: int(len(data) * share)])) or "damaged" in text
    if form in ("JPEG", "PNG", "BMP"):
        assert reason(data[: len(data) // 2]) == "the file is truncated"


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    huge = png(1, 1, 8, 0, b"\0")
    huge = huge.replace(struct.pack(">II", 1, 1), struct.pack(">II", 60_000, 60_000))
    header = huge[12:29]
    huge = huge[:29] + struct.pack(">I", zlib.crc32(header)) + huge[33:]
    assert reason(huge) == "60000 × 60000 pixels are more than the limit of 178,956,970"
    data = encode(scene(), "PNG")
    assert read_image(data, pixel_limit=23 * 37).size == (37, 23)
    assert "850" in reason(data, pixel_limit=23 * 37 - 1)


def test_a_file_too_large_for_any_image_is_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "hole.tif"
    with path.open("wb") as file:
        os.truncate(file.fileno(), images.BYTES_A_PIXEL * images.PIXEL_LIMIT + 1)
    assert "too large" in reason(path)


def test_other_numbers_of_channels_are_refused() -> None:
    with pytest.raises(UserError, match="channels is 4"):
        read_image(b"", channels=4)


def test_mutated_files_raise_image_error_and_nothing_else() -> None:
    generator = np.random.default_rng(7)
    originals = [encode(scene(), form) for form in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "HEIF")]
    originals.append(encode(scene(), "JPEG", progressive=True, exif=exif(6)))
    originals.append(encode(scene(), "TIFF", compression="tiff_lzw", exif=exif(6)))
    originals.append(encode(np.dstack([scene(), scene()[..., 0]]), "PNG", exif=exif(6)))
    outcomes = {"read": 0, "refused": 0}
    for original in originals:
        for _ in range(60):
            data = np.frombuffer(original, np.uint8).copy()
            reach = len(data) if generator.random() < 0.5 else min(len(data), 200)  # headers are the hard part
            places = generator.integers(0, reach, generator.integers(1, 12))
            data[places] = generator.integers(0, 256, len(places))
            stop = len(data) if generator.random() < 0.8 else int(generator.integers(1, len(data)))
            try:
                picture = read_image(data[:stop].tobytes(), pixel_limit=4_000_000)
            except ImageError:
                outcomes["refused"] += 1
            else:
                assert picture.mode == "RGB"
                outcomes["read"] += 1
    assert min(outcomes.values()) > 50, outcomes


# Warnings, threads, readers


def odd_metadata() -> bytes:
    """A JPEG file whose EXIF block makes Pillow warn."""
    block = b"Exif\0\0" + b"II*\0\x08\0\0\0" + struct.pack("<HHHII", 1, 0x0112, 3, 60, 4000) + bytes(4)
    return encode(scene(), "JPEG", exif=block)


def test_no_warning_escapes_and_other_warnings_do() -> None:
    data = odd_metadata()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        Image.open(io.BytesIO(data)).getexif().get(0x0112)
        assert told, "Pillow is expected to warn of this file"
        told.clear()
        read_image(data)
        assert not told
        warnings.warn("after", stacklevel=1)
        assert [str(entry.message) for entry in told] == ["after"]


def test_warnings_of_other_threads_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    inside, done = threading.Event(), threading.Event()

    def slow(*_: object) -> Image.Image:
        inside.set()
        assert done.wait(10)
        return Image.new("RGB", (1, 1))

    monkeypatch.setattr(images, "_decode", slow)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_image, b"x")
        assert inside.wait(10)
        with pytest.raises(UserWarning, match="meanwhile"):  # the tests' filter makes warnings errors
            warnings.warn("meanwhile", stacklevel=1)
        done.set()
        reading.result()


def test_the_list_of_warning_filters_does_not_grow() -> None:
    data = encode(scene(), "PNG")
    read_image(data)
    before = len(warnings.filters)
    for _ in range(5):
        warnings.simplefilter("error")
        read_image(data)
    assert len(warnings.filters) <= before + 1


def test_many_threads_read_the_same_pixels_as_one() -> None:
    forms = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP")
    files = [encode(np.roll(scene(), shift, axis=1), form) for shift in range(10) for form in forms]
    alone = [read_image(data).tobytes() for data in files]
    with ThreadPoolExecutor(8) as pool:
        assert [picture.tobytes() for picture in pool.map(read_image, files)] == alone


def test_names_of_images() -> None:
    assert is_image_name("A.JPG")
    assert is_image_name("x.y.heic")
    assert not is_image_name("jpg")
    assert not is_image_name("a.txt")
    assert {".jpeg", ".png", ".webp", ".avif", ".bmp", ".gif", ".tiff", ".heic", ".heif"} <= IMAGE_SUFFIXES
    assert missing_reader(".heic") is None
    assert missing_reader(".JPG") is None
    assert missing_reader(".txt") is None


def test_heic_without_its_extra_is_named_with_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(smooth(), "HEIF")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert missing_reader(".HEIC") == "pip install 'resnext[heif]'"
    assert missing_reader(".avif") is None
    assert reason(data) == "this install cannot read HEIC: pip install 'resnext[heif]'"


def test_a_pillow_without_avif_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(smooth(), "AVIF")
    monkeypatch.setattr(images.features, "check", lambda feature: feature != "avif")
    assert missing_reader(".avif") is not None
    assert missing_reader(".webp") is None
    assert "cannot read AVIF" in reason(data)


def test_the_decoder_version_names_what_decodes() -> None:
    assert f"pillow {PIL.__version__}" in images.DECODER_VERSION
    assert f"pillow-heif {pillow_heif.__version__}" in images.DECODER_VERSION
    assert images._decoder_version() == images.DECODER_VERSION


def test_files_are_read_and_listed_without_torch() -> None:
    modules = "images, manifest, named, preprocessing"
    code = f"import sys; from resnext.data import {modules}; print(sys.modules.keys() & {{'torch', 'numpy'}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "{'numpy'}"


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match="not a regular file"):
        read_image(tmp_path / "pipe.jpg")
