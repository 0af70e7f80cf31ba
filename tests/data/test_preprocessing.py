"""Preprocessing against torchvision's tensor code and arithmetic in float64."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from resnext.data.preprocessing import Preprocessing
from resnext.errors import UserError

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
GREY: dict[str, Any] = {"channels": 1, "mean": (0.5,), "std": (0.25,)}


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> npt.NDArray[np.uint8]:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def triangle(length: int, target: int) -> npt.NDArray[np.float64]:
    """The weights target×length of an antialiased linear resize, from its definition."""
    scale = length / target
    reach = max(scale, 1.0)
    centres = (np.arange(target)[:, None] + 0.5) * scale
    weights = np.maximum(0, 1 - np.abs(np.arange(length)[None] + 0.5 - centres) / reach)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


@pytest.mark.parametrize(("height", "width", "resize"), [(60, 90, 24), (33, 21, 21), (10, 13, 32), (48, 48, 31)])
def test_bilinear_is_the_antialiased_triangle(height: int, width: int, resize: int) -> None:
    pixels = noise(height, width)
    ours = Preprocessing(resize, resize).resized(Image.fromarray(pixels))
    down, across = triangle(height, ours.shape[0]), triangle(width, ours.shape[1])
    expected = np.einsum("ij,jkc,lk->ilc", down, pixels.astype(np.float64), across)
    assert ours.dtype == np.uint8
    assert np.abs(ours - expected).max() <= 1.01  # Pillow rounds after each of the two passes


@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
def test_filters_are_torchvisions_with_antialias(name: str) -> None:
    pixels = noise(57, 81)
    ours = Preprocessing(20, 28, interpolation=name).resized(Image.fromarray(pixels))
    theirs = v2.functional.resize(
        torch.from_numpy(pixels).permute(2, 0, 1),
        list(ours.shape[:2]),
        v2.InterpolationMode(name),
        antialias=True,
    )
    assert np.abs(ours.astype(int) - theirs.permute(1, 2, 0).numpy()).max() <= 1


@pytest.mark.parametrize("name", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_filters_are_pillows(name: str) -> None:
    image = Image.fromarray(noise(40, 50))
    expected = np.asarray(image.resize((25, 20), Image.Resampling[name.upper()]))
    np.testing.assert_array_equal(Preprocessing(20, 20, interpolation=name).resized(image), expected)


@pytest.mark.parametrize(
    ("width", "height", "resize", "size"),
    [
        (500, 375, 256, (341, 256)),  # 341.33
        (375, 500, 256, (256, 341)),
        (500, 331, 256, (387, 256)),  # 386.71
        (3, 2, 1, (2, 1)),  # 1.5: halves go up
        (1, 1, 8, (8, 8)),
        (300, 100, 10, (30, 10)),
        (301, 100, 10, (30, 10)),
        (10_000, 10, 20, (60, 20)),
        (1, 10_000, 7, (7, 21)),
    ],
)
def test_the_shorter_side_is_exact_the_longer_rounded_and_capped(
    width: int, height: int, resize: int, size: tuple[int, int]
) -> None:
    pixels = Preprocessing(1, resize, **GREY).resized(Image.new("L", (width, height)))
    assert pixels.shape == (size[1], size[0], 1)


@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 40))
def test_every_size_can_be_cropped(width: int, height: int, resize: int) -> None:
    preprocessing = Preprocessing(resize, resize, **GREY)
    image = Image.new("L", (width, height), 77)
    pixels = preprocessing.pixels(image)
    assert pixels.shape == (resize, resize, 1)
    assert (pixels == 77).all()
    short, long = sorted(preprocessing.resized(image).shape[:2])
    assert short == resize
    assert long <= 3 * resize
    assert abs(long - min(3, max(width, height) / min(width, height)) * resize) <= 0.5


def test_a_panorama_keeps_its_middle() -> None:
    pixels = noise(10, 100)
    expected = Image.fromarray(pixels[:, 35:65]).resize((60, 20), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(Preprocessing(20, 20).resized(Image.fromarray(pixels)), np.asarray(expected))
    tower = Preprocessing(20, 20).resized(Image.fromarray(pixels.swapaxes(0, 1)))
    assert np.abs(tower.astype(int) - np.asarray(expected).swapaxes(0, 1)).max() <= 1  # passes in other order


def test_an_image_of_the_right_size_is_not_touched() -> None:
    pixels = noise(32, 45)
    resized = Preprocessing(32, 32).resized(Image.fromarray(pixels))
    np.testing.assert_array_equal(resized, pixels)
    assert resized.flags.writeable


def test_the_crop_is_the_centre() -> None:
    pixels = np.arange(7 * 10).reshape(7, 10, 1).astype(np.uint8)
    np.testing.assert_array_equal(Preprocessing(4, 7, **GREY).crop(pixels), pixels[1:5, 3:7])
    square = noise(20, 32)
    theirs = v2.functional.center_crop(torch.from_numpy(square).permute(2, 0, 1), [12, 12])
    np.testing.assert_array_equal(Preprocessing(12, 20).crop(square), theirs.permute(1, 2, 0))
    batch = np.stack([square, square[::-1]])
    cropped = Preprocessing(12, 20).crop(batch)
    np.testing.assert_array_equal(cropped, np.stack([Preprocessing(12, 20).crop(one) for one in batch]))


@pytest.mark.parametrize("channels", [1, 3])
def test_normalise_is_the_formula_of_float64(channels: int) -> None:
    generator = np.random.default_rng(0)
    mean, std = tuple(generator.uniform(0, 1, channels)), tuple(generator.uniform(0.05, 0.5, channels))
    preprocessing = Preprocessing(16, 16, channels, mean, std)
    batch = np.arange(256).repeat(channels * 2).reshape(2, 16, 16, channels).astype(np.uint8)
    expected = ((batch / 255 - np.array(mean)) / np.array(std)).transpose(0, 3, 1, 2)
    result = preprocessing.normalise(batch)
    assert result.dtype == np.float32
    assert result.shape == (2, channels, 16, 16)
    assert result.flags.c_contiguous
    np.testing.assert_allclose(result, expected, rtol=0, atol=2e-6)
    np.testing.assert_array_equal(preprocessing.normalise(batch[:, ::-1]), result[:, :, ::-1])


def test_normalise_is_torchvisions() -> None:
    batch = np.stack([noise(8, 9, seed=seed) for seed in range(3)])
    theirs = v2.functional.normalize(
        v2.functional.to_dtype(torch.from_numpy(batch).permute(0, 3, 1, 2), torch.float32, scale=True),
        *map(list, IMAGENET.values()),
    )
    np.testing.assert_allclose(Preprocessing(8, 8).normalise(batch), theirs.numpy(), rtol=0, atol=1e-6)


def test_fields_go_through_json_and_back() -> None:
    preprocessing = Preprocessing(28, 32, 1, (0.1,), (1 / 3,), "lanczos")
    assert Preprocessing.from_dict(json.loads(json.dumps(preprocessing.to_dict()))) == preprocessing
    assert preprocessing.to_dict()["std"] == [1 / 3]


def with_image(size: int = 6, seed: int = 0) -> tuple[Preprocessing, npt.NDArray[np.float32]]:
    image = np.random.default_rng(seed).uniform(0, 1, (size, size, 3)).astype(np.float32)
    return Preprocessing(size, size + 2).with_mean_image(image), image


def test_the_mean_image_is_subtracted_pixel_by_pixel_from_inputs_of_its_size() -> None:
    preprocessing, image = with_image()
    batch = np.stack([noise(6, 6, seed=seed) for seed in range(3)])
    expected = (batch / 255 - image) / np.array(preprocessing.std)
    np.testing.assert_allclose(preprocessing.normalise(batch), expected.transpose(0, 3, 1, 2), rtol=0, atol=1e-6)
    other = noise(6, 9)[None]
    expected = (other / 255 - image.mean(axis=(0, 1))) / np.array(preprocessing.std)
    np.testing.assert_allclose(preprocessing.normalise(other), expected.transpose(0, 3, 1, 2), rtol=0, atol=1e-6)


def test_the_input_of_the_mean_image_itself_is_zero() -> None:
    pixels = noise(6, 6)
    preprocessing = Preprocessing(6, 6).with_mean_image((pixels / 255).astype(np.float32))
    np.testing.assert_allclose(preprocessing.normalise(pixels[None]), 0, atol=1e-6)


def test_equality_and_the_fields_see_the_mean_image() -> None:
    (one, image), (other, _) = with_image(), with_image(seed=1)
    plain = Preprocessing(6, 8, mean=one.mean)
    again = Preprocessing(6, 8).with_mean_image(image.copy())
    assert one == again
    assert hash(one) == hash(again)
    assert len({one, other, plain}) == 3
    assert "mean_image" not in plain.to_dict()
    told = json.loads(json.dumps(one.to_dict()))
    assert told == {**plain.to_dict(), "mean_image": hashlib.sha256(image.astype("<f4").tobytes()).hexdigest()}
    assert Preprocessing.from_dict(told, image) == one
    wrong = [(told, None), (told, image + 1), (plain.to_dict(), image), ({**told, "mean_image": 3}, image)]
    for fields, picture in wrong:
        with pytest.raises(UserError, match="is not the one whose SHA-256"):
            Preprocessing.from_dict(fields, picture)


@pytest.mark.parametrize(
    "wrong", [np.zeros((6, 6, 1)), np.zeros((5, 6, 3)), np.zeros((6, 6, 3)), np.full((6, 6, 3), np.nan)]
)
def test_a_mean_image_that_does_not_fit_is_refused(wrong: npt.NDArray[Any]) -> None:
    image = wrong if wrong.shape == (6, 6, 3) and not np.isnan(wrong).any() else wrong.astype(np.float32)
    with pytest.raises(UserError, match=r"the mean image is float(32|64) \("):
        Preprocessing(6, 6, mean_image=image)


GOOD = {"image_size": 24, "resize": 32, "channels": 3, "mean": [0.5, 0.5, 0.5], "std": [1, 1, 1]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_sise": 3}, "unknown field 'image_sise'. Did you mean 'image_size'"),
        ({"image_size": None}, "image_size is None"),
        ({"image_size": 24.0}, "image_size is 24.0"),
        ({"image_size": True}, "image_size is True"),
        ({"resize": 0}, "resize is 0"),
        ({"resize": 23}, "cannot be cut"),
        ({"channels": 4}, "channels is 4"),
        ({"mean": [0.5]}, "mean is"),
        ({"mean": 0.5}, "mean is"),
        ({"mean": ["a", "b", "c"]}, "mean is"),
        ({"std": [1, 1, math.nan]}, "std is"),
        ({"std": [1, 0, 1]}, "above 0"),
        ({"interpolation": "cubic"}, "'cubic' is none of"),
        ({"interpolation": ["bilinear"]}, "is none of"),
        ({"interpolation": {}}, "is none of"),
    ],
)
def test_bad_fields_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Preprocessing.from_dict({**GOOD, **change})


@pytest.mark.parametrize("name", ["image_size", "resize"])
def test_missing_fields_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"'{name}' is missing"):
        Preprocessing.from_dict({key: value for key, value in GOOD.items() if key != name})


def test_from_dict_takes_a_mapping_only() -> None:
    with pytest.raises(UserError, match="no table of fields"):
        Preprocessing.from_dict([1, 2])  # type: ignore[arg-type]
