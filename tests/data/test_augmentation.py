"""Augmentation against brute force, torchvision's own draws and hand computation; and nothing has a state."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from scipy import stats
from torchvision.transforms import v2

from resnext.data import augmentation as module
from resnext.data import crops
from resnext.data.augmentation import Augmentation, augment, mix
from resnext.data.order import uniforms
from resnext.data.preprocessing import Preprocessing
from resnext.errors import UserError

Pixels = npt.NDArray[np.uint8]

AXES = (0.12, 0.13, 0.11, 0.014, 0.0, -0.013, 0.002, -0.004, 0.003)
EVERYTHING = Augmentation(crop="random-resized", flip=0.5, colour_jitter=0.4, rand_augment=2, magnitude=15, erasing=0.5)
KINDS = {
    "pad": Augmentation(crop="pad", flip=0.5),
    "reflect": Augmentation(crop="pad", padding_mode="reflect", flip=0.5),
    "mean": Augmentation(crop="pad", padding_mode="mean"),
    "random-resized": Augmentation(crop="random-resized", flip=0.5),
    "shorter-side": Augmentation(crop="shorter-side", shorter_side=(32, 36)),
    "jitter": Augmentation(colour_jitter=0.4),
    "rand_augment": Augmentation(crop="pad", rand_augment=2),
    "erasing": Augmentation(erasing=0.5),
    "lighting": Augmentation(crop="pad", erasing=0.5, lighting=0.1, colour_axes=AXES),
    "everything": EVERYTHING,
}


def noise(*shape: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def places(height: int, width: int) -> Pixels:
    """An image whose channel 0 is the row of each pixel, channel 1 its column, channel 2 all 255."""
    image = np.full((height, width, 3), 255, np.uint8)
    image[:, :, 0], image[:, :, 1] = np.arange(height)[:, None], np.arange(width)
    return image


def run(pixels: Any, augmentation: Augmentation, size: int = 32, epoch: int = 0, **options: Any) -> Pixels:
    images = options.pop("images", np.arange(len(pixels)))
    channels = pixels[0].shape[2]
    if augmentation.colour_axes and channels == 1:
        augmentation = replace(augmentation, colour_axes=AXES[:1])
    return augment(  # type: ignore[return-value]  # float32 with lighting
        pixels,
        images,
        augmentation=augmentation,
        image_size=size,
        mean=(0.4, 0.5, 0.6)[:channels],
        seed=options.get("seed", 0),
        epoch=epoch,
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop": "centre"},
        {"padding_mode": "edge"},
        {"shorter_side": (0, 32)},
        {"shorter_side": (40, 32)},
        {"shorter_side": (32.0, 40)},
        {"lighting": -0.1},
        {"lighting": float("nan")},
        {"colour_axes": (0.1, 0.2)},
        {"colour_axes": (float("inf"),)},
        {"padding": -1},
        {"padding": 1.5},
        {"area": (0.0, 1.0)},
        {"area": (0.5, 0.4)},
        {"area": (0.5, 1.1)},
        {"aspect": (0.0, 1.0)},
        {"aspect": (2.0, 1.0)},
        {"flip": 1.1},
        {"flip": float("nan")},
        {"colour_jitter": -0.1},
        {"colour_jitter": 1.5},
        {"rand_augment": -1},
        {"magnitude": 31},
        {"magnitude": 4.5},
        {"erasing": 2},
        {"mixup": -0.1},
        {"cutmix": float("inf")},
    ],
)
def test_an_impossible_value_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"Augmentation: {next(iter(wrong))} is .* must be"):
        Augmentation(**wrong)


@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 32), (40, 33, 32), (37, 61, 32), (5, 6, 4)])
def test_the_default_is_the_centre_crop_of_the_preprocessing(height: int, width: int, size: int) -> None:
    pixels = noise(3, height, width, 3)
    expected = [Preprocessing(size, size).crop(one) for one in pixels]
    assert np.array_equal(run(pixels, Augmentation(), size), np.stack(expected))


def _padded(image: Pixels, padding: int, mode: str) -> Pixels:
    """Pad by looking up each pixel on its own."""
    height, width, channels = image.shape
    result = np.zeros((height + 2 * padding, width + 2 * padding, channels), np.uint8)

    def source(place: int, length: int) -> int | None:
        if 0 <= place < length:
            return place
        if mode == "constant":
            return None
        return -place if place < 0 else 2 * (length - 1) - place

    for row in range(result.shape[0]):
        for column in range(result.shape[1]):
            y, x = source(row - padding, height), source(column - padding, width)
            if y is not None and x is not None:
                result[row, column] = image[y, x]
    return result


@pytest.mark.parametrize("mode", ["constant", "reflect"])
@pytest.mark.parametrize(("shape", "size"), [((9, 9, 3), 9), ((12, 10, 1), 8), ((9, 16, 3), 9)])
def test_pad_and_crop_takes_each_window_equally_often(mode: Any, shape: tuple[int, ...], size: int) -> None:
    image = noise(*shape)
    padded = _padded(image, 2, mode)
    windows = {}
    for top in range(padded.shape[0] - size + 1):
        for left in range(padded.shape[1] - size + 1):
            window = padded[top : top + size, left : left + size]
            windows[window.tobytes()] = (top, left, False)
            windows[np.ascontiguousarray(window[:, ::-1]).tobytes()] = (top, left, True)
    count = 50 * len(windows)
    augmentation = Augmentation(crop="pad", padding=2, padding_mode=mode, flip=0.5)
    result = run(np.broadcast_to(image, (count, *shape)), augmentation, size)
    found = [windows[one.tobytes()] for one in result]  # a KeyError is a wrong picture
    counts = np.unique(found, axis=0, return_counts=True)[1]
    assert len(counts) == len(windows)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_a_recorded_crop_never_changes() -> None:
    result = run(np.stack([places(32, 32)] * 4), KINDS["pad"], epoch=3)
    centre = result[:, 16, 16, :2].tolist()
    assert centre == [[15, 11], [14, 13], [13, 16], [16, 20]]


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_images_are_mirrored_as_often_as_asked_for(probability: float) -> None:
    pixels = np.stack([places(4, 4)] * 2000)
    mirrored = run(pixels, Augmentation(flip=probability), 4)[:, 0, 0, 1] == 3
    assert stats.binomtest(int(mirrored.sum()), 2000, probability).pvalue > 1e-3
    assert mirrored.all() or probability < 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_is_changed_alike_in_any_batch(kind: str, channels: int) -> None:
    pixels, images = noise(12, 40, 36, channels), np.arange(100, 112)
    before = pixels.copy()
    whole = run(pixels, KINDS[kind], images=images, seed=4, epoch=2)
    assert whole.shape == (12, 32, 32, channels)
    assert whole.dtype == (np.float32 if KINDS[kind].lighting else np.uint8)
    assert np.array_equal(pixels, before)
    order = np.random.default_rng(1).permutation(12)
    assert np.array_equal(run(pixels[order], KINDS[kind], images=images[order], seed=4, epoch=2), whole[order])
    assert np.array_equal(run(list(pixels), KINDS[kind], images=images, seed=4, epoch=2), whole)
    one = run([pixels[5]], KINDS[kind], images=images[5:6], seed=4, epoch=2)
    assert np.array_equal(one[0], whole[5])
    for other in ({"seed": 5, "epoch": 2}, {"seed": 4, "epoch": 3}):
        assert not np.array_equal(run(pixels, KINDS[kind], images=images, **other), whole)


def test_images_of_several_shapes_make_one_batch() -> None:
    pixels = [noise(40, 32, 3), noise(32, 50, 3), noise(33, 33, 3)]
    for augmentation in KINDS.values():
        assert run(pixels, augmentation).shape == (3, 32, 32, 3)


def test_read_only_pixels_are_fine() -> None:
    pixels = noise(2, 32, 32, 3)
    pixels.flags.writeable = False
    assert run(pixels, EVERYTHING).flags.writeable


def test_no_global_generator_is_read_or_moved() -> None:
    def states() -> tuple[str, str, bytes]:
        return str(random.getstate()), str(np.random.get_state()), torch.get_rng_state().numpy().tobytes()

    results = []
    for seed in (0, 1):
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        before = states()
        inputs = torch.arange(2.0 * 3 * 8 * 8).reshape(2, 3, 8, 8)
        blended = mix(
            inputs,
            torch.tensor([0, 1]),
            augmentation=Augmentation(mixup=0.5, cutmix=0.5),
            num_classes=2,
            seed=0,
            epoch=0,
            step=0,
        )
        results.append((run(noise(4, 40, 40, 3), EVERYTHING).tobytes(), blended[0].numpy().tobytes()))
        assert states() == before
    assert results[0] == results[1]


def test_the_fast_path_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['torchvision'] = None\n"
        "import numpy as np\n"
        "from resnext.data import cache, loader, order\n"
        "from resnext.data.augmentation import Augmentation, augment\n"
        "augment(np.zeros((2, 8, 8, 3), np.uint8), np.arange(2), image_size=8, seed=0, epoch=0,\n"
        "        augmentation=Augmentation(crop='pad', flip=0.5, erasing=1.0))\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


@pytest.mark.parametrize(("height", "width"), [(256, 256), (256, 341), (300, 120)])
def test_random_resized_crops_are_torchvisions(height: int, width: int) -> None:
    """Areas, ratios and places are distributed as in torchvision's RandomResizedCrop."""
    count, area, aspect = 4000, (0.08, 1.0), (3 / 4, 4 / 3)
    shapes = np.tile([height, width], (count, 1))
    boxes, found = crops.boxes(shapes, uniforms(0, 0, np.arange(count), 22), area, aspect)
    boxes[~found] = crops.centred(shapes[~found], aspect)
    torch.manual_seed(0)
    transform = v2.RandomResizedCrop(224, area, aspect)
    peer = [transform.make_params([torch.empty(3, height, width, dtype=torch.uint8)]) for _ in range(count)]
    theirs = np.array([[p["top"], p["left"], p["height"], p["width"]] for p in peer])
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= shapes).all()
    for column in range(4):
        assert stats.ks_2samp(boxes[:, column], theirs[:, column]).pvalue > 1e-3
    for measure in (np.prod, lambda sides, axis: sides[:, 1] / sides[:, 0]):
        assert stats.ks_2samp(measure(boxes[:, 2:], axis=1), measure(theirs[:, 2:], axis=1)).pvalue > 1e-3


def test_a_recorded_random_resized_crop_never_changes() -> None:
    boxes, found = crops.boxes(
        np.tile([256, 341], (3, 1)), uniforms(0, 0, np.arange(3), 22), (0.08, 1.0), (3 / 4, 4 / 3)
    )
    assert found.all()
    assert boxes.tolist() == [[2, 23, 252, 258], [86, 164, 167, 160], [53, 229, 96, 97]]


@pytest.mark.parametrize(("height", "width", "box"), [(10, 90, (0, 38, 10, 13)), (90, 10, (38, 0, 13, 10))])
def test_where_no_crop_fits_it_is_the_centre(height: int, width: int, box: tuple[int, ...]) -> None:
    augmentation = Augmentation(crop="random-resized", area=(1.0, 1.0))
    top, left, rows, columns = box
    cut = Image.fromarray(places(height, width)[top : top + rows, left : left + columns])
    expected = np.asarray(cut.resize((8, 8), Image.Resampling.BILINEAR))
    assert np.array_equal(run([places(height, width)], augmentation, 8)[0], expected)


def test_a_random_resized_crop_is_pillows_antialiased_resize_of_a_part() -> None:
    image = noise(60, 80, 3)
    augmentation = Augmentation(crop="random-resized", area=(0.3, 0.6))
    result = run([image] * 5, augmentation, 24)
    boxes, _ = crops.boxes(np.tile([60, 80], (5, 1)), uniforms(0, 0, np.arange(5), 22, 1), (0.3, 0.6), (3 / 4, 4 / 3))
    for one, (top, left, height, width) in zip(result, boxes.tolist(), strict=True):
        part = Image.fromarray(image[top : top + height, left : left + width])
        assert np.array_equal(np.asarray(part.resize((24, 24), Image.Resampling.BILINEAR)), one)


def test_jitter_scales_brightness_uniformly_within_its_strength() -> None:
    """On a grey image only brightness acts."""
    grey = np.full((2000, 4, 4, 3), 100, np.uint8)
    factors = run(grey, Augmentation(colour_jitter=0.4), 4)[:, 0, 0, 0] / 100
    assert 0.59 <= factors.min() < 0.61
    assert 1.38 < factors.max() <= 1.4
    assert stats.kstest(factors + 0.005, stats.uniform(0.6, 0.8).cdf).pvalue > 1e-3


def test_jitter_is_brightness_contrast_and_saturation_in_every_order() -> None:
    """Each result is what one of the six orders gives, worked out in floats; and each order comes."""
    colours = np.array([[[200, 60, 30], [40, 90, 160]], [[120, 120, 30], [90, 70, 140]]], np.uint8)
    numbers = uniforms(0, 0, np.arange(60), 4, 3)

    def luma(x: npt.NDArray[Any]) -> Any:
        return x @ np.array([0.299, 0.587, 0.114])

    changes = [
        lambda x, f: x * f,
        lambda x, f: luma(x).mean() + (x - luma(x).mean()) * f,
        lambda x, f: luma(x)[..., None] + (x - luma(x)[..., None]) * f,
    ]
    orders = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    result = run(np.stack([colours] * 60), Augmentation(colour_jitter=0.9), 2)
    chosen = set()
    for one, row in zip(result, numbers, strict=True):
        floats = colours.astype(float)
        order = orders[int(row[3] * 6)]
        for kind in order:
            floats = np.clip(changes[kind](floats, 1 + 0.9 * (2 * row[kind] - 1)), 0, 255)
        assert np.abs(floats - one).max() < 6  # Pillow cuts off what follows the point, three times
        chosen.add(order)
    assert len(chosen) == 6


def test_erasing_puts_noise_in_a_rectangle() -> None:
    count, size = 3000, 24
    white = np.full((count, size, size, 3), 255, np.uint8)
    result = run(white, Augmentation(erasing=0.25), size)
    changed = (result != 255).any(axis=3)
    erased = changed.any(axis=(1, 2))
    assert stats.binomtest(int(erased.sum()), count, 0.25).pvalue > 1e-3
    values = []
    for one, mask in zip(result[erased], changed[erased], strict=True):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = one[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert 0.01 < box.shape[0] * box.shape[1] / size**2 < 0.43
        assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].mean() > 0.9  # noise may be white
        values.append(box.ravel())
    assert stats.chisquare(np.bincount(np.concatenate(values), minlength=256)).pvalue > 1e-3


def test_lighting_adds_one_colour_an_image_with_the_covariance_of_its_axes() -> None:
    """It is normal, as NIPS 2012 §4.1 has it: Σ p·α·λ with α of N(0, σ²), in levels of 255."""
    count, sigma = 20_000, 0.3
    pixels = np.broadcast_to(np.array([0, 40, 255], np.uint8), (count, 2, 2, 3))
    result = run(pixels, Augmentation(lighting=sigma, colour_axes=AXES), 2)
    shifts = result[:, 0, 0].astype(np.float64) - [0, 40, 255]
    assert np.abs(result - [0, 40, 255] - shifts[:, None, None]).max() < 1e-4  # one for all pixels, and not clipped
    axes = np.array(AXES).reshape(3, 3)
    expected = (255 * sigma) ** 2 * axes.T @ axes
    deviations = np.sqrt(np.diag(expected))
    assert (np.abs(shifts.mean(axis=0)) < 4 * deviations / np.sqrt(count)).all()
    np.testing.assert_allclose(np.cov(shifts.T) / np.outer(deviations, deviations), _correlation(expected), atol=0.04)
    amounts = shifts @ np.linalg.inv(axes) / 255 / sigma
    for one in amounts.T:
        assert stats.kstest(one, stats.norm.cdf).pvalue > 1e-3
    assert np.abs(np.corrcoef(amounts.T) - np.eye(3)).max() < 4 / np.sqrt(count)


def _correlation(covariance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    deviations = np.sqrt(np.diag(covariance))
    return np.asarray(covariance / np.outer(deviations, deviations))


def test_lighting_moves_grey_images_too_and_no_other_number() -> None:
    pixels = noise(6, 32, 32, 1)
    plain, lit = (run(pixels, Augmentation(crop="pad", flip=0.5, lighting=x, colour_axes=(0.2,))) for x in (0, 0.1))
    shifts = lit - plain
    assert np.ptp(shifts, axis=(1, 2)).max() < 1e-4
    assert len(np.unique(np.rint(1000 * shifts[:, 0, 0]))) == 6


def test_a_recorded_lighting_never_changes() -> None:
    axes = (0.1, 0.1, 0.1, 0.05, -0.05, 0.0, 0.01, 0.01, -0.02)
    result = run(np.zeros((3, 2, 2, 3), np.uint8), Augmentation(lighting=0.1, colour_axes=axes), 2, epoch=3)
    expected = [[-0.488838, -1.939821, -1.891533], [1.265069, 1.398678, 3.226283], [-0.739864, 1.26176, -0.607549]]
    np.testing.assert_allclose(result[:, 1, 1], expected, atol=1e-5)


def _mix(
    inputs: torch.Tensor, labels: list[int], classes: int = 4, step: int = 0, **alphas: float
) -> tuple[torch.Tensor, torch.Tensor]:
    return mix(
        inputs,
        torch.tensor(labels),
        augmentation=Augmentation(**alphas),  # type: ignore[arg-type]
        num_classes=classes,
        seed=3,
        epoch=1,
        step=step,
    )


def test_mixup_is_the_hand_computed_blend_with_the_image_before() -> None:
    inputs = torch.randn(5, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    labels = [0, 1, 2, 3, 3]
    for step in range(20):
        mixed, targets = _mix(inputs, labels, step=step, mixup=0.8)
        share = float(targets[0, 0])
        assert 0 <= share <= 1
        for i in range(5):
            assert torch.allclose(mixed[i], share * inputs[i] + (1 - share) * inputs[i - 1], atol=1e-6)
            expected = torch.zeros(4)
            expected[labels[i]] += share
            expected[labels[i - 1]] += 1 - share
            assert torch.allclose(targets[i], expected, atol=1e-6)
        assert torch.allclose(targets.sum(1), torch.ones(5), atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 7), (32, 32)])
def test_cutmix_weights_are_the_exact_shares_of_pixels(height: int, width: int) -> None:
    images = torch.arange(4.0)[:, None, None, None].expand(4, 3, height, width).contiguous()
    for step in range(60):
        mixed, targets = _mix(images, [0, 1, 2, 3], step=step, cutmix=1.0)
        for i in range(4):
            own, other = mixed[i] == i, mixed[i] == (i - 1) % 4
            assert bool((own | other).all())
            assert float(targets[i, i]) == pytest.approx(float(own.float().mean()), abs=1e-6)
            assert float(targets[i, (i - 1) % 4]) == pytest.approx(float(other.float().mean()), abs=1e-6)
            rows, columns = other[0].any(1), other[0].any(0)
            assert torch.equal(other, (rows[:, None] & columns[None]).expand_as(other))  # one rectangle


def test_cutmix_cuts_squares_of_the_drawn_area_around_any_place() -> None:
    """Uncut by the border, a side is √(1 − λ) of the image's; centres are uniform."""
    inputs = torch.zeros(2, 1, 64, 64)
    inputs[1] = 1
    centres = []
    for step in range(1500):
        _, u, v, y, x = uniforms(3, 1, np.array([step]), 5, 7)[0].tolist()
        side = 2 * (int(64 * np.sqrt(1 - module._beta(0.7, u, v))) // 2)
        mixed, _ = _mix(inputs, [0, 1], 2, step, cutmix=0.7)
        rows, columns = (np.flatnonzero(mixed[0, 0].numpy().any(axis=axis)) for axis in (1, 0))
        for found in (rows, columns):
            if len(found) and found[0] > 0 and found[-1] < 63:
                assert len(found) == side
        centres += [int(y * 64), int(x * 64)]
    assert stats.chisquare(np.bincount(centres, minlength=64)).pvalue > 1e-3


@pytest.mark.parametrize("alpha", [0.01, 0.2, 0.5, 1.0, 2.0, 8.0, 500.0])
def test_shares_follow_the_beta_distribution(alpha: float) -> None:
    numbers = uniforms(0, 0, np.arange(20_000), 2)
    shares = np.array([module._beta(alpha, u, v) for u, v in numbers.tolist()])
    assert ((shares >= 0) & (shares <= 1)).all()
    # Near its ends, where a small α has nearly all of its mass, a float cannot tell 1 − ε from 1.
    inner = np.clip(shares, 1e-9, 1 - 1e-9)
    assert abs(inner.mean() - 0.5) < 4 * np.sqrt(0.25 / (2 * alpha + 1) / 20_000)
    for low, high in ((1e-9, 0.1), (0.1, 0.3), (0.3, 0.5), (0.5, 0.7), (0.7, 0.9), (0.9, 1 - 1e-9)):
        within = int(((inner > low) & (inner < high)).sum())
        probability = float(stats.beta(alpha, alpha).cdf(high) - stats.beta(alpha, alpha).cdf(low))
        assert stats.binomtest(within, 20_000, probability).pvalue > 1e-3
    for corner in ((0.0, 0.0), (1 - 2**-53, 0.0), (1 - 2**-53, 0.5), (0.5, 0.25)):
        assert 0 <= module._beta(alpha, *corner) <= 1


def test_with_both_each_step_takes_one_of_them() -> None:
    inputs = torch.arange(2.0)[:, None, None, None].expand(2, 1, 16, 16).contiguous()
    cut = 0
    for step in range(400):
        mixed, _ = _mix(inputs, [0, 1], 2, step, mixup=1.0, cutmix=1.0)
        cut += bool(((mixed == 0) | (mixed == 1)).all())
    assert stats.binomtest(cut, 400, 0.5).pvalue > 1e-3


def test_mixing_keeps_type_and_memory_format_and_the_inputs() -> None:
    inputs = torch.randn(4, 3, 8, 8).to(memory_format=torch.channels_last)
    before = inputs.clone()
    for alphas in ({"mixup": 1.0}, {"cutmix": 1.0}):
        mixed, targets = _mix(inputs, [0, 1, 2, 3], **alphas)
        assert mixed.is_contiguous(memory_format=torch.channels_last)
        assert targets.dtype == torch.float32
        half, _ = _mix(inputs.bfloat16(), [0, 1, 2, 3], **alphas)
        assert half.dtype == torch.bfloat16
        assert torch.equal(inputs, before)
    assert Augmentation(mixup=0.1).mixes
    assert Augmentation(cutmix=0.1).mixes
    assert not Augmentation(flip=0.5).mixes


def test_recorded_shares_never_change() -> None:
    inputs = torch.zeros(2, 1, 8, 8)
    shares = [float(_mix(inputs, [0, 1], 2, step, mixup=0.2)[1][0, 0]) for step in range(3)]
    assert shares == pytest.approx([0.99999, 0.001359, 0.935814], abs=1e-6)
