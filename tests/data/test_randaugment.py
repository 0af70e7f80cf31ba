"""RandAugment's operations against Pillow's and arithmetic: direction, limits, no change at magnitude 0."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats

from resnext.data import randaugment
from resnext.data.order import uniforms

Pixels = npt.NDArray[np.uint8]
NAMES = list(randaugment.OPERATIONS)
# What an operation without a magnitude does at any of them.
CONSTANT = {"identity", "autocontrast", "equalize"}


def picture(mode: str = "RGB", height: int = 40, width: int = 60) -> Image.Image:
    """A smooth picture with noise whose values stop short of black and white."""
    rows, columns = np.mgrid[0:height, 0:width]
    smooth = 60 + 80 * rows / height + 40 * np.sin(columns / 9)
    channels = [smooth, smooth[::-1] * 0.8 + 20, np.flip(smooth, 1) * 0.7 + 30]
    noise = np.random.default_rng(0).integers(0, 20, (height, width, 3))
    pixels = (np.stack(channels, axis=2) + noise).astype(np.uint8)
    return Image.fromarray(pixels if mode == "RGB" else pixels[:, :, 0])


def array(image: Image.Image) -> Pixels:
    return np.asarray(image)


def run(name: str, level: float, image: Image.Image | None = None) -> Pixels:
    return array(randaugment.OPERATIONS[name](image or picture(), level))


def test_the_operations_are_the_papers_fourteen() -> None:
    assert len(NAMES) == 14


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("name", NAMES)
def test_an_operation_keeps_size_and_mode_and_its_input(name: str, mode: str) -> None:
    image = picture(mode)
    before = array(image).copy()
    for level in (-1.0, -0.5, 0.0, 0.5, 1.0):
        result = randaugment.OPERATIONS[name](image, level)
        assert (result.mode, result.size) == (image.mode, image.size)
        assert np.array_equal(array(result), array(randaugment.OPERATIONS[name](image, level)))
    assert np.array_equal(array(image), before)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in CONSTANT - {"identity"}])
def test_level_0_changes_nothing(name: str) -> None:
    assert np.array_equal(run(name, 0.0), array(picture()))
    extremes = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8))
    assert np.array_equal(run(name, 0.0, extremes), array(extremes))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in CONSTANT])
def test_a_higher_level_changes_more(name: str) -> None:
    def change(level: float) -> float:
        return float(np.abs(run(name, level).astype(int) - array(picture())).mean())

    for sign in (1, -1):
        changes = [change(sign * level) for level in (0.1, 0.3, 1.0)]
        assert changes[-1] > 0
        assert changes[0] <= changes[1] < changes[2]


def test_limits_are_those_of_autoaugment() -> None:
    image = picture()
    for level in (1.0, -1.0):
        factor = 1 + 0.9 * level
        assert np.array_equal(run("colour", level), array(ImageEnhance.Color(image).enhance(factor)))
        assert np.array_equal(run("contrast", level), array(ImageEnhance.Contrast(image).enhance(factor)))
        assert np.array_equal(run("brightness", level), array(ImageEnhance.Brightness(image).enhance(factor)))
        assert np.array_equal(run("sharpness", level), array(ImageEnhance.Sharpness(image).enhance(factor)))
        assert np.array_equal(run("posterize", level), array(image) & 0b1111_0000)
        assert np.array_equal(run("solarize", level), 255 - array(image))
    assert np.array_equal(run("solarize", 0.5), np.where(array(image) < 128, array(image), 255 - array(image)))
    assert np.array_equal(run("autocontrast", 0.3), array(ImageOps.autocontrast(image)))
    assert np.array_equal(run("equalize", 0.3), array(ImageOps.equalize(image)))


@pytest.mark.parametrize("level", [1.0, -1.0, 0.4])
def test_translation_moves_by_less_than_half_and_fills_with_grey(level: float) -> None:
    image = array(picture())
    shift = round(0.45 * abs(level) * 60)
    moved = run("translate x", level)
    kept, filled = (moved[:, shift:], moved[:, :shift]) if level > 0 else (moved[:, :-shift], moved[:, -shift:])
    assert np.array_equal(kept, image[:, :-shift] if level > 0 else image[:, shift:])
    assert (filled == 128).all()
    shift = round(0.45 * abs(level) * 40)
    moved = run("translate y", level)
    kept, filled = (moved[shift:], moved[:shift]) if level > 0 else (moved[:-shift], moved[-shift:])
    assert np.array_equal(kept, image[:-shift] if level > 0 else image[shift:])
    assert (filled == 128).all()


def _inverse(image: Pixels, matrix: list[list[float]], centre: tuple[float, float]) -> Pixels:
    """For each pixel take the one that `matrix` (of x and y about `centre`) leads to: nearest, else grey."""
    height, width = image.shape[:2]
    y, x = np.mgrid[0:height, 0:width] + 0.5
    about = np.stack([x - centre[0], y - centre[1]])
    x, y = np.einsum("ij,jhw->ihw", np.array(matrix), about) + np.array(centre)[:, None, None]
    rows, columns = np.floor(y).astype(int), np.floor(x).astype(int)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    result = np.full_like(image, 128)
    result[inside] = image[rows[inside], columns[inside]]
    return result


@pytest.mark.parametrize("level", [1.0, -1.0, 0.37])
def test_rotation_and_shears_are_what_their_matrices_say(level: float) -> None:
    image = array(picture())
    angle = math.radians(30 * level)
    turn = [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
    cases = {
        "rotate": (turn, (30.0, 20.0)),
        "shear x": ([[1, 0.3 * level], [0, 1]], (0.0, 0.0)),
        "shear y": ([[1, 0], [0.3 * level, 1]], (0.0, 0.0)),
    }
    for name, (matrix, centre) in cases.items():
        same = (run(name, level) == _inverse(image, matrix, centre)).all(axis=2)
        assert same.mean() > 0.99, name  # Pillow steps in fixed-point numbers


def test_the_first_number_chooses_evenly_and_the_second_the_direction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[str, float]] = []

    def noted(name: str) -> None:
        monkeypatch.setitem(randaugment.OPERATIONS, name, lambda image, level: (seen.append((name, level)), image)[1])

    for name in NAMES:
        noted(name)
    for row in uniforms(0, 0, np.arange(3000), 4):
        randaugment.apply(picture(), row, 15)
    assert len(seen) == 6000
    cells = [sum(one == (name, level) for one in seen) for name in NAMES for level in (0.5, -0.5)]
    assert sum(cells) == 6000
    assert stats.chisquare(cells).pvalue > 1e-3


def test_no_operations_is_no_change() -> None:
    assert randaugment.apply(picture(), np.empty(0), 30).tobytes() == picture().tobytes()
