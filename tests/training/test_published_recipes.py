"""Every recipe of the package is read, built and run for three steps, by the same call as any other training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import resnext
from resnext import catalog
from resnext.training import recipe
from resnext.training.run import merge_said

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
    sizes = {}
    if name.startswith("imagenet"):
        sizes["image_size"] = SHRUNK
        if written["augmentation"]["crop"] == "shorter-side":
            low, high = written["augmentation"]["shorter_side"]
            share = SHRUNK / written["data"]["image_size"]
            sizes["augmentation"] = {"shorter_side": [round(low * share), round(high * share)]}
    run = resnext.train(
        random_photos,
        out=tmp_path / "run",
        recipe=name,
        epochs=1,
        batch_size=BATCH,
        precision="fp32",
        cache_gib=0,
        **sizes,
    )
    steps = [line for line in (run.path / "journal.jsonl").read_text().splitlines() if '"event": "step"' in line]
    assert len(steps) == STEPS
    assert all(np.isfinite(float(line.split('"loss": ')[1].split(",")[0])) for line in steps)
    kept = recipe.load(run.path / "recipe.toml")
    for section in ("optimizer", "schedule", "augmentation"):
        for key, value in written.get(section, {}).items():
            if key != "shorter_side":
                assert kept[section][key] == value


def test_rates_are_the_papers() -> None:
    rates = {name: recipe.load(name)["optimizer"]["learning_rate"] for name in NAMES}
    for name, rate in rates.items():
        if "alexnet" in name or "vgg" in name:
            assert rate == 0.01
        elif "inception" in name:
            assert rate == 0.045
        elif name.startswith(("imagenet_res", "imagenet_wide", "imagenet_preact")):
            assert rate == 0.1


def test_a_recipe_says_what_it_leaves_out() -> None:
    for name, path in recipe.published().items():
        if name.startswith("imagenet") or "wrn" in name or "resn" in name:
            assert "Departures:" in path.read_text("utf-8"), name


def test_flags_win_over_a_published_recipe() -> None:
    said = merge_said("cifar10_wrn_28_10", {"network": "wrn_16_4", "epochs": 2})
    assert (said["network"], said["epochs"], said["options"]) == ("wrn_16_4", 2, {"dropout": 0.3})
