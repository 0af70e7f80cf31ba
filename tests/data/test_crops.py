"""Crops against brute force: every picture is one of those that Pillow makes of the whole image."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from scipy import stats

from resnext.data import crops
from resnext.data.augmentation import Augmentation, augment
from resnext.data.order import uniforms
from resnext.data.preprocessing import Preprocessing

Pixels = npt.NDArray[np.uint8]


def noise(*shape: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def whole(pixels: Pixels, side: int) -> Pixels:
    """The image resized by Pillow until its shorter side is `side`; halves are rounded up."""
    height, width, channels = pixels.shape
    size = [int(np.floor(length * side / min(height, width) + 0.5)) for length in (width, height)]
    image = Image.fromarray(pixels if channels == 3 else pixels[:, :, 0])
    return np.asarray(image.resize((size[0], size[1]), Image.Resampling.BILINEAR)).reshape(size[1], size[0], channels)


def rescaled(pixels: Any, size: int, sides: tuple[int, int], **key: Any) -> Pixels:
    return augment(
        pixels,
        np.arange(len(pixels)),
        augmentation=Augmentation(crop="shorter-side", shorter_side=sides),
        image_size=size,
        **{"seed": 0, "epoch": 0, **key},
    ).astype(np.uint8, casting="no")


@pytest.mark.parametrize("shape", [(24, 24, 3), (24, 31, 3), (26, 20, 1)])
def test_each_length_of_the_shorter_side_and_each_place_is_drawn_equally_often(shape: tuple[int, ...]) -> None:
    image, size, sides = noise(*shape), 12, (12, 16)
    windows, places = [], []
    for side in range(sides[0], sides[1] + 1):
        resized = whole(image, side)
        for top in range(resized.shape[0] - size + 1):
            for left in range(resized.shape[1] - size + 1):
                windows.append(resized[top : top + size, left : left + size].astype(int))
                places.append((side, top, left))
    count = 6_000
    result = rescaled(np.broadcast_to(image, (count, *shape)), size, sides)
    pictures, inverse = np.unique(result.reshape(count, -1), axis=0, return_inverse=True)
    differences = [np.abs(np.stack(windows).reshape(len(windows), -1) - one).max(axis=1) for one in pictures]
    found = np.argmin(differences, axis=1)
    assert np.min(differences, axis=1).max() <= 1  # of 255
    drawn = np.array(places)[found[inverse.ravel()]]
    lengths = np.bincount(drawn[:, 0], minlength=sides[1] + 1)[sides[0] :]
    assert stats.chisquare(lengths).pvalue > 1e-3
    for side in range(sides[0], sides[1] + 1):
        tops, lefts = (drawn[drawn[:, 0] == side, axis] for axis in (1, 2))
        room = np.array(whole(image, side).shape[:2]) - size + 1
        for starts, choices in ((tops, room[0]), (lefts, room[1])):
            assert stats.chisquare(np.bincount(starts, minlength=choices)).pvalue > 1e-4 or choices == 1


@pytest.mark.parametrize("shape", [(480, 640, 3), (480, 480, 1), (480, 1440, 3), (1440, 480, 3), (481, 700, 3)])
@pytest.mark.parametrize("side", [224, 256, 333, 480])
def test_pixels_are_those_of_the_whole_image_resized_then_cut(shape: tuple[int, ...], side: int) -> None:
    image = noise(*shape)
    expected = whole(image, side)
    numbers = uniforms(0, 0, np.arange(4), 3)
    numbers[0], numbers[1] = 0, 1 - 2**-53  # the two corners
    for one, (_, y, x) in zip(crops.rescaled([image] * 4, numbers, 224, (side, side)), numbers, strict=True):
        top, left = (int(number * (length - 223)) for number, length in zip((y, x), expected.shape, strict=False))
        difference = np.abs(one.astype(int) - expected[top : top + 224, left : left + 224])
        assert (
            difference.max() <= 2
        )  # Pillow rounds between rows and columns, and chooses by the shape which come first
        assert difference.mean() < 0.3


@pytest.mark.parametrize(("width", "height"), [(900, 60), (60, 900), (7, 5), (1, 1)])
def test_panoramas_and_small_images_are_cut_like_any_other(width: int, height: int) -> None:
    pixels = Preprocessing(32, 80).resized(Image.fromarray(noise(height, width, 3)))
    result = rescaled([pixels] * 20, 32, (40, 80))
    assert result.shape == (20, 32, 32, 3)
    assert len(np.unique(result, axis=0)) > 1 or width == 1


def test_a_recorded_crop_of_the_shorter_side_never_changes() -> None:
    ramp = np.zeros((48, 64, 3), np.uint8)
    ramp[:, :, 0], ramp[:, :, 1] = 4 * np.arange(48)[:, None], 3 * np.arange(64)
    centres = rescaled([ramp] * 3, 16, (20, 40), epoch=3)[:, 8, 8, :2]
    np.testing.assert_allclose(centres, [[56, 95], [83, 51], [106, 80]], atol=1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("alike", [True, False])
def test_padding_with_the_mean_normalises_to_about_zero(channels: int, alike: bool) -> None:
    mean, std = (0.485, 0.456, 0.406)[:channels], (0.229, 0.224, 0.225)[:channels]
    preprocessing = Preprocessing(8, 8, channels, mean, std)
    pixels = noise(2, 8, 8, channels)
    padded = crops.pad(pixels if alike else list(pixels), 3, "mean", mean)
    for one, image in zip(padded, pixels, strict=True):
        assert np.array_equal(one[3:-3, 3:-3], image)
        inputs = preprocessing.normalise(one[None])[0]
        border = np.ones((14, 14), bool)
        border[3:-3, 3:-3] = False
        assert np.abs(inputs[:, border]).max() <= 0.5 / 255 / min(std) + 1e-6
    assert np.array_equal(crops.pad(pixels, 0, "mean", mean), pixels)
