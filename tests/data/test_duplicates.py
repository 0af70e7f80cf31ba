"""Near copies: what a picture's copies go through leaves them found, and different pictures are left alone."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageEnhance

from making import picture
from resnext.data import duplicates
from resnext.data.thumbnails import colour_difference, contrast, difference, smoothed, thumbnail

Pictures = list[Image.Image]


def encoded(image: Image.Image, form: str, **options: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, form, **options)
    return Image.open(file).convert("RGB")


def cropped(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    width, height = image.size
    box = (left * width, top * height, width - right * width, height - bottom * height)
    return image.resize((width, height), Image.Resampling.BICUBIC, box=box)


COPIES: dict[str, tuple[Callable[[Image.Image], Image.Image], float]] = {
    "JPEG of quality 60": (lambda image: encoded(image, "JPEG", quality=60), 0.99),
    "PNG": (lambda image: encoded(image, "PNG"), 1),
    "WebP of quality 70": (lambda image: encoded(image, "WEBP", quality=70), 0.98),
    "three quarters": (lambda image: image.resize((image.width * 3 // 4, image.height * 3 // 4)), 0.99),
    "twice": (lambda image: image.resize((image.width * 2, image.height * 2), Image.Resampling.BICUBIC), 0.99),
    "made square": (lambda image: image.resize((300, 300), Image.Resampling.BICUBIC), 0.99),
    "a tenth brighter": (lambda image: ImageEnhance.Brightness(image).enhance(1.1), 0.96),
    "less contrast": (lambda image: ImageEnhance.Contrast(image).enhance(0.8), 0.97),
    "2 % off each side": (lambda image: cropped(image, 0.02, 0.02, 0.02, 0.02), 0.97),
    "4 % off left and top": (lambda image: cropped(image, 0.04, 0.04, 0, 0), 0.95),
    "3 % off right, 5 % off the bottom": (lambda image: cropped(image, 0, 0, 0.03, 0.05), 0.95),
}
"""What is done to a picture, and the share of copies that must be found."""


def thumbnails(pictures: Pictures) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    pairs = [thumbnail(each) for each in pictures]
    return np.stack([grey for grey, _ in pairs]), np.stack([colour for _, colour in pairs])


def near(pictures: Pictures) -> set[tuple[int, int]]:
    return {(int(a), int(b)) for a, b in duplicates.near(*thumbnails(pictures))}


@pytest.fixture(scope="module")
def pictures(cifar10: Path) -> Pictures:
    """500 images of CIFAR-10 and 100 drawn ones of the size of photos, none near another."""
    files = [file for folder in sorted((cifar10 / "train").iterdir()) for file in sorted(folder.iterdir())[:50]]
    images = [Image.open(file).convert("RGB") for file in files]
    images += [picture(number, (320, 240)) for number in range(100)]
    twice = {b for _, b in near(images)}  # of CIFAR-10, which has some
    return [image for number, image in enumerate(images) if number not in twice]


@pytest.mark.parametrize("how", COPIES)
def test_copies_are_found_and_nothing_else(pictures: Pictures, how: str) -> None:
    change, share = COPIES[how]
    count = len(pictures)
    assert count > 590
    found = near([*pictures, *map(change, pictures)])
    copies = {(number, number + count) for number in range(count)}
    assert len(found & copies) >= share * count
    assert {tuple(sorted((a % count, b % count))) for a, b in found - copies} == set()


def test_a_turned_recoloured_or_much_cropped_picture_is_another(pictures: Pictures) -> None:
    drawn = pictures[-100:]  # colourful all over
    changes: list[Callable[[Image.Image], Image.Image]] = [
        lambda image: image.transpose(Image.Transpose.ROTATE_90),
        lambda image: Image.merge("YCbCr", [image.convert("YCbCr").split()[i] for i in (0, 2, 1)]).convert("RGB"),
        lambda image: cropped(image, 0.2, 0, 0, 0.2),
    ]
    for change in changes:
        assert near([*drawn, *map(change, drawn)]) == set()


def test_flat_pictures_and_skies_are_no_copies_of_each_other() -> None:
    generator = np.random.default_rng(0)
    flat = [Image.new("RGB", (64, 48), tuple(generator.integers(0, 256, 3))) for _ in range(50)]
    rising = np.linspace(0, 1, 48)[:, None, None] * np.ones((1, 64, 1))
    skies = []
    for _ in range(50):
        low, high = generator.uniform(80, 140, 3), generator.uniform(180, 250, 3)
        noise = generator.normal(0, 3, (48, 64, 3))
        skies.append(Image.fromarray(np.clip(low + (high - low) * rising + noise, 0, 255).astype(np.uint8)))
    assert near(flat + skies) == set()


def test_one_picture_there_many_times_is_linked_in_one_set() -> None:
    original = picture(1, (64, 48))
    copies = [encoded(original, "JPEG", quality=quality) for quality in range(60, 96)] * 10
    parent = list(range(len(copies)))
    for a, b in sorted(near(copies)):
        parent[b] = min(parent[b], parent[a])
    assert {min(parent[number], parent[parent[number]]) for number in range(len(copies))} == {0}


def test_few_or_no_images(pictures: Pictures) -> None:
    nothing = duplicates.near(np.zeros((0, 16, 16), np.uint8), np.zeros((0, 4, 4, 2), np.uint8))
    assert nothing.shape == (0, 2)
    assert near(pictures[:1]) == set()
    assert near([pictures[0], pictures[0]]) == {(0, 1)}


def test_candidates_are_what_comparing_every_pair_finds(pictures: Pictures) -> None:
    """The search by keys against brute force over all pairs: nothing more, and hardly anything less."""
    copies = [cropped(image, 0.015, 0.015, 0.015, 0.015) for image in pictures[:150]]
    grey, colour = thumbnails([*pictures[:150], *copies])
    every = np.stack(np.triu_indices(300, 1), axis=1)
    wanted = {(int(a), int(b)) for a, b in every[duplicates._are_copies(grey, colour, every)]}
    found = {(int(a), int(b)) for a, b in duplicates.near(grey, colour)}
    assert found <= wanted
    assert len(found) >= 0.97 * len(wanted) > 140


def test_the_contrast_leaves_out_a_plane() -> None:
    generator = np.random.default_rng(3)
    grey = generator.integers(0, 256, (5, 16, 16), dtype=np.uint8)
    y, x = np.mgrid[:16, :16].reshape(2, -1)
    plane = np.stack([np.ones(256), x, y], axis=1)
    for image, found in zip(smoothed(grey).reshape(5, -1), contrast(grey), strict=True):
        rest = image - plane @ np.linalg.lstsq(plane, image, rcond=None)[0]
        assert found == pytest.approx(np.sqrt(np.square(rest).mean()))


def test_the_difference_sees_through_brightness_and_small_moves_only() -> None:
    large = np.asarray(picture(7, (640, 640)).convert("L"), np.float64)

    def view(left: int, top: int, size: int, gain: float = 1.0, offset: float = 0.0) -> npt.NDArray[np.uint8]:
        part = Image.fromarray((gain * large[top : top + size, left : left + size] + offset).astype(np.uint8))
        return np.asarray(part.resize((16, 16), Image.Resampling.BILINEAR))[None]

    whole = view(50, 50, 500)
    assert difference(whole, whole)[0] < 1e-6
    assert difference(whole, view(50, 50, 500, 0.8, 20))[0] < 0.02
    assert difference(whole, view(65, 40, 500))[0] < 0.05  # 3 and 2 per cent aside
    assert difference(whole, view(60, 60, 480))[0] < 0.05
    assert difference(whole, view(90, 90, 460))[0] < 0.05  # 8 per cent aside, which one step does not see through
    assert difference(whole, view(50, 50, 500, 0.5, 20))[0] == np.inf  # half the contrast
    assert difference(whole, view(120, 50, 500))[0] > 0.11
    assert difference(whole, 255 - whole)[0] == np.inf
    assert colour_difference(np.zeros((1, 4, 4, 2), np.uint8), np.full((1, 4, 4, 2), 9, np.uint8))[0] == 9
