"""What suits the data and the machine, where the caller does not say: network, sizes, schedule, and why."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from resnext import catalog, complexity, machine
from resnext.data import statistics
from resnext.data.images import read_image
from resnext.data.loader import Files
from resnext.data.manifest import Split
from resnext.data.parallel import in_order
from resnext.data.preprocessing import Preprocessing
from resnext.errors import ImageError, UserError
from resnext.layers import Network

SAMPLE = 64
SAMPLE_OF_COLOURS = 1_000
SMALL_IMAGE = 48  # up to this side, CIFAR's networks, which halve the map twice instead of five times
FEW_IMAGES = 200  # a class; below that, training from scratch seldom generalises
MINUTES = 30  # a first run should end within about this time
IMAGES_SEEN = 1_500_000
RGB = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
GREY = {"mean": (0.449,), "std": (0.226,)}

# Training throughput in multiply-adds a second, forward and backward counted as three forwards: cores of 2024 with
# bf16 instructions and without reach about this in eager torch, as a first guess; the run then measures its own.
MACS_A_CORE = {True: 80e9, False: 40e9}
MACS_OF_DEVICE = {"cuda": 20e12, "mps": 1e12}

SMALL_NETWORKS = ("cifar_resnet20", "cifar_resnet32", "cifar_resnet56", "cifar_resnext29_8x64d")
PHOTO_NETWORKS = ("resnet18", "resnext50_32x4d")
PHOTO_SIZES = (64, 96, 128, 160, 224)
RATE, RATE_WITHOUT_NORM = 0.2, 0.01  # for batches of 128; the second is that of AlexNet and VGG
PARAMETERS_AN_IMAGE = 1_000  # a network with more than this for each training image mostly learns them by heart


@dataclass(frozen=True)
class Sample:
    """What a few training images look like: median shorter side in pixels, and whether all are grey."""

    side: int
    grey: bool


def sample(split: Split) -> Sample:
    """Read up to 64 images, evenly spread; raises UserError where none of them can be read."""
    sides, grey, last = [], True, None
    for index in np.linspace(0, len(split) - 1, min(SAMPLE, len(split))).astype(int):
        try:
            image = read_image(split.path(int(index)))
        except ImageError as error:
            last = error
            continue
        sides.append(min(image.size))
        pixels = np.asarray(image)
        grey = grey and bool((pixels == pixels[..., :1]).all())
    if not sides:
        raise UserError(f"None of the images tried can be read, for example {last}. Check the files.")
    return Sample(int(np.median(sides)), grey)


def colour_axes(split: Split, preprocessing: Preprocessing) -> tuple[float, ...]:
    """Measure the axes along which the colours of up to 1,000 images vary, evenly spread, centre crops.

    The numbers are those of `statistics.colour_axes`. Raises UserError where none of the images can be read.
    """
    files = Files(split, preprocessing)

    def read(index: int) -> npt.NDArray[np.uint8] | None:
        try:
            return preprocessing.crop(files.read(index))
        except ImageError:
            return None

    rows = np.linspace(0, len(split) - 1, min(SAMPLE_OF_COLOURS, len(split))).astype(int).tolist()
    workers = machine.cores()
    with closing(in_order(read, rows, workers=workers, ahead=2 * workers)) as images:
        return statistics.colour_axes(image for image in images if image is not None)


def propose(
    images: int, classes: int, looks: Sample, device: str, said: dict[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Return recipe fields that suit the data and the machine, and one sentence for each choice.

    `said` is what the caller decided already; it is respected in what depends on it and not proposed again.
    """
    epochs = said.get("epochs") or int(np.clip(IMAGES_SEEN / images, 15, 100))
    budget = MINUTES * 60 * throughput(device, said) / (3 * images * epochs)
    network, image_size, why = _network_and_size(looks.side, images, budget, said)
    small = catalog.resolve(network).image_size <= SMALL_IMAGE
    batch_size = said.get("batch_size") or _batch_size(images, small, device)
    normalised = _blank(network, said).normalises
    rate = float(f"{(RATE if normalised else RATE_WITHOUT_NORM) * batch_size / 128:.3g}")
    channels = said.get("data", {}).get("channels") or (1 if looks.grey else 3)
    proposal = {
        "network": network,
        "epochs": epochs,
        "batch_size": batch_size,
        "label_smoothing": 0.0 if small else 0.1,
        "data": {
            "image_size": image_size,
            "resize": image_size if small else round(image_size * 256 / 224),
            "channels": channels,
            **(GREY if channels == 1 else RGB),
        },
        "augmentation": _augmentation(image_size, small),
        "optimizer": {"learning_rate": rate},
        "schedule": {"name": "one-cycle"},
    }
    reasons = _reasons(images, classes, why, proposal, said)
    if not normalised and "learning_rate" not in said.get("optimizer", {}):
        reasons.append(f"The learning rate is only {rate:g}, since {network} has hidden layers without batch norm.")
    return proposal, reasons


def _reasons(images: int, classes: int, why: str, chosen: dict[str, Any], said: dict[str, Any]) -> list[str]:
    """Say why, for what the caller left open, and what to expect of few images."""
    reasons, pretrained = [], bool(said.get("transfer", {}).get("weights"))
    if "network" not in said or "image_size" not in said.get("data", {}):
        reasons.append(why)
    if not pretrained and ("epochs" not in said or "batch_size" not in said):
        epochs, batch_size = (said.get(name, chosen[name]) for name in ("epochs", "batch_size"))
        reasons.append(f"{epochs} epochs in batches of {batch_size}, for {images:,} training images.")
    if "augmentation" not in said:
        grey = chosen["data"]["channels"] == 1
        reasons.append(
            f"Images are {'grey' if grey else 'read as RGB'}; in training they are cropped at random and mirrored "
            "(--flip 0 where left and right matter)."
        )
    if not pretrained and images / classes < FEW_IMAGES:
        reasons.append(
            f"There are about {max(1, images // classes)} training images a class. Without weights learned "
            f"elsewhere, below about {FEW_IMAGES} expect a rough classifier; more images help most."
        )
    return reasons


def _blank(name: str, said: dict[str, Any]) -> Network:
    """Return a network without contents, to ask it what it is."""
    import torch

    with torch.device("meta"):
        network = catalog.create(name, **(said.get("options", {}) if name == said.get("network") else {}))
    assert isinstance(network, Network)
    return network


def throughput(device: str, said: dict[str, Any]) -> float:
    """Return a first guess of the multiply-adds a second of training here, forward and backward as three forwards."""
    if device in MACS_OF_DEVICE:
        return MACS_OF_DEVICE[device]
    fast = machine.has_fast_bfloat16() and said.get("machine", {}).get("precision", "auto") in ("auto", "bf16")
    return MACS_A_CORE[fast] * machine.cores()


def _network_and_size(side: int, images: int, budget: float, said: dict[str, Any]) -> tuple[str, int, str]:
    """Choose the largest pair of network and image size whose multiply-adds an image stay within the budget."""
    if "network" in said:
        small = catalog.resolve(said["network"]).image_size <= SMALL_IMAGE
        networks: tuple[str, ...] = (said["network"],)
    else:
        small = side <= SMALL_IMAGE
        first, *larger = SMALL_NETWORKS if small else PHOTO_NETWORKS
        networks = (first, *(name for name in larger if _parameters(name) <= PARAMETERS_AN_IMAGE * images))
    if chosen := said.get("data", {}).get("image_size"):
        sizes: tuple[int, ...] = (chosen,)
    elif small:
        sizes = (int(np.clip(-(-side // 4) * 4, 16, 32)),)
    else:
        smallest = max(_blank(network, said).smallest for network in networks)
        legal = [size for size in PHOTO_SIZES if size >= smallest]
        sizes = tuple(size for size in legal if size <= side) or (legal[0],)
    pairs = sorted((_macs(network, size), size, network) for network in networks for size in sizes)
    affordable = [pair for pair in pairs if pair[0] <= budget] or pairs[:1]
    macs, size, network = affordable[-1]
    why = (
        f"Network {network} at {size}×{size} pixels ({macs / 1e6:.0f} million multiply-adds an image): "
        f"images are about {side} pixels on the shorter side, and a first run should take at most {MINUTES} minutes"
        + ("." if macs <= budget else f"; this will take about {MINUTES * macs / budget:.0f}.")
    )
    return network, size, why


def _macs(network: str, image_size: int) -> float:
    resolved = catalog.resolve(network)
    if resolved.variant is None:
        told = complexity.describe(network, image_size=image_size)
        assert isinstance(told["macs"], int)
        return told["macs"]
    return resolved.variant.macs * (image_size / resolved.image_size) ** 2


def _parameters(network: str) -> int:
    variant = catalog.resolve(network).variant
    assert variant is not None
    return variant.parameters


def _batch_size(images: int, small: bool, device: str) -> int:
    largest = 128 if small or device != "cpu" else 32
    return int(np.clip(2 ** int(np.log2(max(2, images / 20))), 8, largest))


def _augmentation(image_size: int, small: bool) -> dict[str, Any]:
    if small:
        return {"crop": "pad", "padding": max(1, image_size // 8), "flip": 0.5}
    return {"crop": "random-resized", "area": (0.25, 1.0), "flip": 0.5}
