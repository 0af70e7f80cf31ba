"""Does the loader keep up? Images a second from cached, augmented pixels against the same loop fed one batch.

    python benchmarks/loader.py [--network cifar_resnet20] [--batch-size 128] [--rounds 12] [--steps 20]

Data: CIFAR-10 as image folders or a zip of them, named by RESNEXT_CIFAR10. Both loops run in this process in turn;
the ratio is of medians. The wanted ratio is 0.92 or more.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from environment import cifar10_place, print_environment

from resnext import machine
from resnext.data.loader import Batch
from resnext.training.plan import Wish, plan
from resnext.training.session import Session


def batches(session: Session) -> Iterator[Batch]:
    """Yield augmented batches, epoch after epoch."""
    epoch = 0
    while True:
        yield from session.train_loader.epoch(epoch)
        epoch += 1


def images_a_second(session: Session, feed: Iterator[Batch], steps: int) -> float:
    """Train some steps and return images a second."""
    images, started = 0, time.perf_counter()
    for step, batch in enumerate(islice(feed, steps)):
        session.step(batch, 0, step, 0.01)
        images += len(batch.labels)
    return images / (time.perf_counter() - started)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="cifar_resnet20")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        fields: dict[str, Any] = {
            "network": options.network,
            "batch_size": options.batch_size,
            "image_size": 32,
            "resize": 32,
            "augmentation": {"crop": "pad", "padding": 4, "flip": 0.5},
        }
        data = cifar10_place(Path(folder))
        planned = plan(data, wish=Wish(Path(folder) / "run"), recipe=None, fields=fields)
        session = Session(planned, lambda event: None)
        session.step.network.train()
        loaded = batches(session)
        one = next(loaded)
        figures: dict[str, list[float]] = {"one batch": [], "loader": []}
        for feed in (loaded, iter([one] * 5)):
            images_a_second(session, feed, 5)
        for _ in range(options.rounds):
            figures["one batch"].append(images_a_second(session, iter([one] * options.steps), options.steps))
            figures["loader"].append(images_a_second(session, loaded, options.steps))
    print_environment()
    print(f"{options.network}, batch {options.batch_size}, {session.description}, {machine.cores()} loader threads")
    for name, values in figures.items():
        print(f"{name:10s} median {statistics.median(values):7.1f} img/s  ({min(values):.1f} to {max(values):.1f})")
    ratio = statistics.median(figures["loader"]) / statistics.median(figures["one batch"])
    print(f"ratio      {ratio:.3f}  (wanted: 0.92 or more)")


if __name__ == "__main__":
    main()
