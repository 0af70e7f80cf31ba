"""How fast is our training loop against the loops people use?

    python benchmarks/training.py [--network resnet18] [--image-size 96] [--batch-size 64] [--rounds 7] [--steps 8]

The same architecture, image size, batch, augmentation and JPEG files for everybody, in one process, a few steps of
each in turn; ratios are of medians. The peers:

- torchvision: the loop of its classification reference: its network, ImageFolder, DataLoader, transforms, SGD with
  momentum, cross-entropy, float32 NCHW. "tuned" adds what its users can switch on by hand: bf16 autocast,
  channels_last, transforms v2.
- timm: its network, dataset, loader, optimiser and loss as its training script puts them together; "tuned" likewise.

Ours is `training.session.Session` as `resnext train` runs it: cached pixels, precision auto. Everyone has one loading
worker a core. A step is everything: waiting for data, forward, backward, update.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import print_environment
from PIL import Image
from torch import nn

from resnext import machine
from resnext.training.plan import Wish, plan
from resnext.training.session import Session

Step = Callable[[], int]
RATE = 0.01


def write_photos(folder: Path, count: int) -> Path:
    """Write JPEG files of 500×375 pixels, cut at random from scikit-learn's two photos, in two classes."""
    from sklearn.datasets import load_sample_images

    generator = np.random.default_rng(0)
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    for number in range(count):
        photo = photos[number % 2]
        side = int(generator.integers(200, 400))
        left, top = generator.integers(0, photo.width - side), generator.integers(0, photo.height - side)
        place = folder / f"class{number % 2}" / f"{number:04d}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        photo.crop((left, top, left + side, top + side)).resize((500, 375)).save(place, quality=90)
    return folder


def ours(photos: Path, scratch: Path, options: argparse.Namespace) -> Step:
    """Return our step, as `resnext train` runs it."""
    fields: dict[str, Any] = {
        "network": options.network,
        "image_size": options.image_size,
        "resize": options.image_size * 256 // 224,
        "batch_size": options.batch_size,
        "augmentation": {"crop": "random-resized", "area": (0.08, 1.0), "flip": 0.5},
        "label_smoothing": 0.0,
    }
    session = Session(plan(photos, wish=Wish(scratch / "run"), recipe=None, fields=fields), lambda event: None)
    session.step.network.train()
    feed = endless(session.train_loader.epoch)
    counter = iter(range(1 << 60))

    def step() -> int:
        batch = next(feed)
        session.step(batch, 0, next(counter), RATE)
        return len(batch.labels)

    return step


def torchvision_loop(photos: Path, options: argparse.Namespace, *, tuned: bool) -> Step:
    """Return a step as torchvision's classification reference writes it."""
    import torchvision
    from torchvision import transforms
    from torchvision.transforms import v2

    kind = v2 if tuned else transforms
    to_tensor = (
        [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
        if tuned
        else [transforms.PILToTensor(), transforms.ConvertImageDtype(torch.float)]
    )
    transform = kind.Compose(
        [
            kind.RandomResizedCrop(options.image_size, antialias=True),
            kind.RandomHorizontalFlip(0.5),
            *to_tensor,
            kind.Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        ]
    )
    dataset = torchvision.datasets.ImageFolder(str(photos), transform)
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size=options.batch_size,
        sampler=torch.utils.data.RandomSampler(dataset),
        num_workers=machine.cores(),
        drop_last=True,
        persistent_workers=True,
    )
    network = torchvision.models.get_model(options.network, num_classes=len(dataset.classes))
    optimizer = torch.optim.SGD(network.parameters(), lr=RATE, momentum=0.9, weight_decay=1e-4)
    return plain_step(network, endless(lambda epoch: iter(loader)), optimizer, nn.CrossEntropyLoss(), tuned=tuned)


def timm_loop(photos: Path, options: argparse.Namespace, *, tuned: bool) -> Step:
    """Return a step as timm's training script puts it together."""
    import timm
    from timm.data import create_dataset, create_loader
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2

    dataset = create_dataset("", root=str(photos))
    loader = create_loader(
        dataset,
        input_size=(3, options.image_size, options.image_size),
        batch_size=options.batch_size,
        is_training=True,
        use_prefetcher=False,
        num_workers=machine.cores(),
        color_jitter=0.0,
        interpolation="bilinear",
        persistent_workers=True,
        device=torch.device("cpu"),
    )
    network = timm.create_model(options.network, num_classes=2)
    optimizer = create_optimizer_v2(network, opt="sgd", lr=RATE, momentum=0.9, weight_decay=2e-5)
    loss = LabelSmoothingCrossEntropy(smoothing=0.1)
    return plain_step(network, endless(lambda epoch: iter(loader)), optimizer, loss, tuned=tuned)


def plain_step(
    network: nn.Module,
    feed: Iterator[Any],
    optimizer: torch.optim.Optimizer,
    loss_of: nn.Module,
    *,
    tuned: bool,
) -> Step:
    """Return the step both references have in common: forward, loss, backward, update, read the loss."""
    network.train()
    if tuned:
        network = network.to(memory_format=torch.channels_last)

    def step() -> int:
        images, labels = next(feed)
        if tuned:
            images = images.to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=tuned):
            loss = loss_of(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        return len(labels)

    return step


def endless(epoch_of: Callable[[int], Iterator[Any]]) -> Iterator[Any]:
    """Yield the batches of one epoch after another."""
    epoch = 0
    while True:
        yield from epoch_of(epoch)
        epoch += 1


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--photos", type=int, default=640)
    parser.add_argument("--pause", type=float, default=2.0, help="seconds before each slice")
    options = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        photos = write_photos(Path(folder) / "photos", options.photos)
        loops: dict[str, Step] = {
            "resnext": ours(photos, Path(folder), options),
            "torchvision, defaults": torchvision_loop(photos, options, tuned=False),
            "torchvision, tuned": torchvision_loop(photos, options, tuned=True),
            "timm, defaults": timm_loop(photos, options, tuned=False),
            "timm, tuned": timm_loop(photos, options, tuned=True),
        }
        speeds: dict[str, list[float]] = {name: [] for name in loops}
        names = list(loops)
        for number in range(options.rounds + 1):
            # Loaders refill their queues while they wait: let them, and let nobody always follow the same loop.
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                time.sleep(options.pause)
                step = loops[name]
                started = time.perf_counter()
                images = sum(step() for _ in islice(iter(int, 1), options.steps))
                speeds[name].append(images / (time.perf_counter() - started))
    print_environment()
    print(f"{options.network}, {options.image_size} px, batch {options.batch_size}, seed 0, {options.rounds} rounds\n")
    print("| loop | img/s, median (range) | ours is |")
    print("|---|---|---|")
    mine = statistics.median(speeds["resnext"][1:])
    for name, values in speeds.items():
        kept = values[1:]  # the first round warms up
        middle = statistics.median(kept)
        print(f"| {name} | {middle:.1f} ({min(kept):.1f} to {max(kept):.1f}) | {mine / middle:.2f} × |")


if __name__ == "__main__":
    main()
