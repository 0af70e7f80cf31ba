"""Grad-CAM and occlusion on squares in known corners, and the negative control; and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import resnext
from resnext import catalog
from resnext.cli import run
from resnext.data.preprocessing import Preprocessing
from resnext.evaluation import explain
from resnext.layers import Network
from resnext.training.run import Run, train

SIDE = 32
CORNERS = {"blue": ((30, 60, 230), (2, 2)), "green": ((30, 200, 60), (2, 18)), "red": ((230, 40, 30), (18, 10))}
SQUARE = 12


def write(folder: Path, count: int, seed: int = 0) -> Path:
    """Noise everywhere, and a square of the class's colour at a place that is one of four, at random."""
    generator = np.random.default_rng(seed)
    for name, (colour, _) in CORNERS.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 256, (SIDE, SIDE, 3)).astype(np.float64) * 0.5 + 60
            top, left = generator.integers(0, 2, 2) * (SIDE - SQUARE)
            pixels[top : top + SQUARE, left : left + SQUARE] = colour
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}-{top}-{left}.png")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("squares")
    return train(
        write(folder / "data", 60),
        out=folder / "run",
        network="cifar_resnet8",
        epochs=8,
        batch_size=16,
        image_size=SIDE,
        resize=SIDE,
        learning_rate=0.1,
        augmentation={"crop": "none", "flip": 0.0},
        workers=1,
        cache_gib=0.1,
    )


@pytest.fixture(scope="module")
def fresh_images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return sorted(write(tmp_path_factory.mktemp("fresh") / "data", 12, seed=9).rglob("*.png"))


def mass_on_square(heat: np.ndarray, path: Path) -> float:
    """The share of heat on the square or within half a cell of the network's last map from it."""
    _, top, left = (int(part) for part in path.stem.split("-"))
    around = 4
    area = heat[max(0, top - around) : top + SQUARE + around, max(0, left - around) : left + SQUARE + around]
    return float(area.sum() / heat.sum()) if heat.sum() else 0.0


def masses(network: Network, preprocessing: Preprocessing, paths: list[Path], classes: tuple[str, ...]) -> list[float]:
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths])
    targets = np.array([classes.index(path.parent.name) for path in paths])
    heat = explain.grad_cam(network, preprocessing, pixels, targets)
    return [mass_on_square(each, path) for each, path in zip(heat, paths, strict=True)]


def test_the_network_looks_at_the_square(trained: Run, fresh_images: list[Path]) -> None:
    assert trained.scores["top1"] > 0.95
    classifier = resnext.load(trained.path)
    network = classifier.network
    assert isinstance(network, Network)
    found = masses(network, classifier.preprocessing, fresh_images, classifier.classes)
    assert np.mean(found) >= 0.8
    torch.manual_seed(1)
    blind = catalog.create("cifar_resnet8", num_classes=3).eval()
    assert isinstance(blind, Network)
    assert np.mean(masses(blind, classifier.preprocessing, fresh_images, classifier.classes)) < 0.65


def test_occlusion_agrees(trained: Run, fresh_images: list[Path]) -> None:
    classifier = resnext.load(trained.path, engine="torch")
    found = []
    for path in fresh_images[::9]:
        pixels = np.asarray(Image.open(path))
        target = classifier.classes.index(path.parent.name)
        heat = explain.occlusion(classifier.engine, classifier.preprocessing, pixels, target)
        found.append(mass_on_square(heat, path))
    assert np.mean(found) >= 0.8


@pytest.mark.parametrize(
    "name",
    [
        "alexnet",
        "vgg11",
        "googlenet",
        "inception_v3",
        "resnet18",
        "cifar_preact_resnet20",
        "wrn_16_1",
        "resnext50_32x4d",
    ],
)
def test_every_kind_of_network_can_be_asked(name: str) -> None:
    torch.manual_seed(0)
    resolved = catalog.resolve(name)
    network = catalog.create(name, num_classes=4)
    assert isinstance(network, Network)
    side = resolved.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), np.uint8)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    heat = explain.grad_cam(network, Preprocessing(side, side), pixels, np.array([2]))
    assert heat.shape == (1, side, side)
    assert 0 <= heat.min() <= heat.max() <= 1
    assert network.training
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_the_command_writes_a_picture_an_image(
    trained: Run, fresh_images: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    line = ["explain", str(trained.path), str(fresh_images[0]), str(broken), "--out", str(tmp_path / "out"), "--json"]
    assert run(line) == 0
    told = [json.loads(row) for row in capfd.readouterr().out.splitlines()]
    assert told[0]["label"] == fresh_images[0].parent.name
    with Image.open(told[0]["picture"]) as picture:
        assert picture.size[0] > 2 * picture.size[1] * 0.9
    assert "error" in told[1]
    assert run([*line[:-1], "--label", "purple"]) == 2
    assert "knows no class 'purple'" in capfd.readouterr().err
    assert run([*line[:-1], "--method", "occlusion", "--label", "red"]) == 0
