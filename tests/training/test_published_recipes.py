"""Every recipe of the package is read, built and run for three steps, by the same call as any other training."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import resnext
from resnext import catalog
from resnext.errors import UserError
from resnext.training import recipe
from resnext.training.said import merge_said

NAMES = sorted(recipe.published())
STEPS, BATCH = 3, 2

SHRUNK = 96  # pixels: at their own sizes three steps of ImageNet's networks would take too long


@pytest.fixture(scope="module")
def random_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write two classes of random images, and a validation image for each."""
    folder = tmp_path_factory.mktemp("random")
    generator = np.random.default_rng(0)
    for split, count in (("train", STEPS), ("val", 1)):
        for name in ("a", "b"):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (40, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder


def test_there_is_a_recipe_for_every_family() -> None:
    networks = {catalog.resolve(recipe.load(name)["network"]).network.__module__ for name in NAMES}
    families = {Path(file).stem for file in (Path(catalog.__file__).parent / "networks").glob("[!_]*.py")}
    variants = {recipe.load(name)["network"] for name in NAMES}
    missing = families - {module.rpartition(".")[2] for module in networks}
    # The networks of stochastic depth are ResNets with a schedule of survival.
    assert missing <= {"stochastic_depth"}
    assert any("stochastic_depth" in name for name in variants)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_trains_for_three_steps(name: str, random_photos: Path, tmp_path: Path) -> None:
    written = recipe.load(name)
    sizes = {"image_size": SHRUNK} if name.startswith("imagenet") else {}
    place = tmp_path / "run"
    fields = {"epochs": 1, "batch_size": BATCH, "precision": "fp32", "cache_gib": 0, **sizes}
    # After three steps the running statistics of very deep networks are no use yet; the training steps are.
    overflows = name in ("imagenet_preact_resnet200", "imagenet_resnet152_stochastic_depth")
    with pytest.raises(UserError, match="was not finite") if overflows else nullcontext():
        resnext.train(random_photos, out=place, recipe=name, **fields)
    steps = [line for line in (place / "journal.jsonl").read_text().splitlines() if '"event": "step"' in line]
    assert len(steps) == STEPS
    assert all(np.isfinite(float(line.split('"loss": ')[1].split(",")[0])) for line in steps)
    kept = recipe.load(place / "recipe.toml")
    if written["augmentation"].get("crop") == "shorter-side":
        share = SHRUNK / written["data"]["image_size"]
        assert kept["augmentation"]["shorter_side"] == [
            round(e * share) for e in written["augmentation"]["shorter_side"]
        ]
    for section in ("optimizer", "schedule", "augmentation"):
        for key, value in written.get(section, {}).items():
            if key != "shorter_side":
                assert kept[section][key] == value


# As the papers and the authors' code have it: network, epochs, batch, learning rate, weight decay, Nesterov's momentum,
# schedule and its numbers.
STEP, PLATEAU, EXPONENTIAL = "step", "plateau", "exponential"
PUBLISHED = {
    "imagenet_alexnet": ("alexnet", 90, 128, 0.01, 5e-4, False, (PLATEAU, 0.1, 5)),
    "imagenet_vgg11": ("vgg11", 74, 256, 0.01, 5e-4, False, (PLATEAU, 0.1, 5)),
    "imagenet_vgg16": ("vgg16", 74, 256, 0.01, 5e-4, False, (PLATEAU, 0.1, 5)),
    "imagenet_googlenet": ("googlenet", 80, 32, 0.01, 2e-4, False, (EXPONENTIAL, 0.96, 8)),
    "imagenet_bn_inception": ("bn_inception", 75, 32, 0.045, 4e-5, False, (EXPONENTIAL, 0.96, 4 / 3)),
    "imagenet_inception_v2": ("inception_v2", 100, 1600, 0.045, 4e-5, None, (EXPONENTIAL, 0.94, 2)),
    "imagenet_inception_v3": ("inception_v3", 100, 1600, 0.045, 4e-5, None, (EXPONENTIAL, 0.94, 2)),
    "imagenet_inception_v4": ("inception_v4", 100, 640, 0.045, 4e-5, None, (EXPONENTIAL, 0.94, 2)),
    "imagenet_inception_resnet_v1": ("inception_resnet_v1", 100, 640, 0.045, 4e-5, None, (EXPONENTIAL, 0.94, 2)),
    "imagenet_inception_resnet_v2": ("inception_resnet_v2", 100, 640, 0.045, 4e-5, None, (EXPONENTIAL, 0.94, 2)),
    "imagenet_resnet50_v1": ("resnet50_v1", 120, 256, 0.1, 1e-4, False, (PLATEAU, 0.1, 5)),
    "imagenet_preact_resnet200": ("preact_resnet200", 90, 256, 0.1, 1e-4, True, (STEP, 0.1, [30, 60])),
    "imagenet_resnet152_stochastic_depth": (
        "resnet152_stochastic_depth", 120, 128, 0.1, 1e-4, True, (STEP, 0.1, [30, 60, 90]),
    ),
    "imagenet_wide_resnet50_2": ("wide_resnet50_2", 90, 256, 0.1, 1e-4, True, (STEP, 0.1, [30, 60])),
    "imagenet_resnext50_32x4d": ("resnext50_32x4d", 100, 256, 0.1, 1e-4, True, (STEP, 0.1, [30, 60, 90])),
    "imagenet_resnext101_64x4d": ("resnext101_64x4d", 100, 256, 0.1, 1e-4, True, (STEP, 0.1, [30, 60, 90])),
    "cifar10_resnet20": ("cifar_resnet20", 182, 128, 0.1, 1e-4, False, (STEP, 0.1, [91, 136.5])),
    "cifar10_resnet110": ("cifar_resnet110", 182, 128, 0.1, 1e-4, False, (STEP, 0.1, [91, 136.5])),
    "cifar10_preact_resnet164": ("cifar_preact_resnet164", 182, 128, 0.1, 1e-4, True, (STEP, 0.1, [91, 136.5])),
    "cifar10_resnet110_stochastic_depth": (
        "cifar_resnet110_stochastic_depth_authors", 500, 128, 0.1, 1e-4, True, (STEP, 0.1, [250, 375]),
    ),
    "cifar10_resnet1202_stochastic_depth": (
        "cifar_resnet1202_stochastic_depth_authors", 300, 128, 0.1, 1e-4, True, (STEP, 0.1, [150, 225]),
    ),
    "cifar10_wrn_28_10": ("wrn_28_10", 200, 128, 0.1, 5e-4, True, (STEP, 0.2, [60, 120, 160])),
    "cifar10_resnext29_8x64d": ("cifar_resnext29_8x64d", 300, 128, 0.1, 5e-4, True, (STEP, 0.1, [150, 225])),
}  # fmt: skip
INCEPTIONS = {"name": "rmsprop", "rho": 0.9, "epsilon": 1.0, "momentum": 0.9, "clip_norm": 2.0}
SECTIONS: list[tuple[str, str, dict[str, object]]] = [
    *((name, "optimizer", INCEPTIONS) for name, row in PUBLISHED.items() if row[5] is None),
    *((name, "optimizer", {"name": "sgd", "momentum": 0.9}) for name, row in PUBLISHED.items() if row[5] is not None),
    ("imagenet_alexnet", "augmentation", {"crop": "shorter-side", "shorter_side": [256, 256], "lighting": 0.1}),
    ("imagenet_vgg11", "augmentation", {"crop": "shorter-side", "shorter_side": [256, 256], "lighting": 0.1}),
    ("imagenet_vgg16", "augmentation", {"crop": "shorter-side", "shorter_side": [256, 512], "lighting": 0.1}),
    ("imagenet_resnet50_v1", "augmentation", {"crop": "shorter-side", "shorter_side": [256, 480], "lighting": 0.1}),
    ("imagenet_resnext50_32x4d", "augmentation", {"area": [0.08, 1.0], "colour_jitter": 0.4, "lighting": 0.1}),
    ("imagenet_googlenet", "augmentation", {"crop": "random-resized", "area": [0.08, 1.0]}),
    ("cifar10_wrn_28_10", "augmentation", {"crop": "pad", "padding": 4, "padding_mode": "reflect"}),
    ("cifar10_resnet20", "augmentation", {"crop": "pad", "padding": 4, "padding_mode": "mean"}),
    ("cifar10_resnext29_8x64d", "augmentation", {"crop": "pad", "padding": 4, "padding_mode": "mean"}),
    ("cifar10_wrn_28_10", "options", {"dropout": 0.3}),
    ("cifar10_resnet110", "schedule", {"warmup_rate": 0.1, "warmup_until_error": 0.8}),
    ("cifar10_preact_resnet164", "schedule", {"warmup_rate": 0.1, "warmup_epochs": 1.1363}),
    ("cifar10_resnet1202_stochastic_depth", "schedule", {"warmup_rate": 0.1, "warmup_epochs": 10}),
    ("cifar10_resnet20", "data", {"per_pixel_mean": True, "validation": 0.1}),
    ("imagenet_alexnet", "data", {"per_pixel_mean": True}),
    ("imagenet_resnet50_v1", "data", {"per_pixel_mean": True, "train_resize": 480}),
]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_numbers_are_those_published(name: str) -> None:
    written = recipe.load(name)
    network, epochs, batch_size, rate, decay, nesterov, (schedule, factor, number) = PUBLISHED[name]
    assert (written["network"], written["epochs"], written["batch_size"]) == (network, epochs, batch_size)
    optimizer = written["optimizer"]
    assert (optimizer["learning_rate"], optimizer["weight_decay"]) == (rate, decay)
    assert optimizer.get("nesterov") == nesterov
    assert (written["schedule"]["name"], written["schedule"]["factor"]) == (schedule, factor)
    key = {STEP: "milestones", PLATEAU: "patience", EXPONENTIAL: "every"}[schedule]
    assert written["schedule"][key] == (number if isinstance(number, list) else pytest.approx(number))
    is_inception = "inception" in name and name != "imagenet_bn_inception"
    assert written.get("label_smoothing", 0) == (0.1 if is_inception else 0)
    assert written.get("ema_decay") == (0.9999 if "inception" in name or "googlenet" in name else None)


def test_every_recipe_is_compared() -> None:
    assert set(PUBLISHED) | {"cifar10_quick", "cifar10_resnext11_4x4d", "cifar10_wrn_16_6", "digits"} == set(NAMES)


@pytest.mark.parametrize(("name", "section", "values"), SECTIONS)
def test_the_ingredients_are_those_published(name: str, section: str, values: dict[str, object]) -> None:
    written = recipe.load(name)[section]
    assert {key: written.get(key) for key in values} == values


def test_a_recipe_says_what_it_leaves_out() -> None:
    for name, path in recipe.published().items():
        if name.startswith("imagenet") or "wrn" in name or "resn" in name:
            assert "Departures:" in path.read_text("utf-8"), name


def test_flags_win_over_a_published_recipe() -> None:
    said = merge_said("cifar10_wrn_28_10", {"network": "wrn_16_4", "epochs": 2})
    assert (said["network"], said["epochs"], said["options"]) == ("wrn_16_4", 2, {"dropout": 0.3})
