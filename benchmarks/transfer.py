"""Does it pay to begin with weights learned elsewhere, and what does a frozen body save?

    python benchmarks/transfer.py [--seeds 3] [--images 50] [--epochs 12] [--scratch-epochs 60]

A body is trained on six classes of CIFAR-10, all their 30,000 training images. Then, for each seed, a few images of
each of the other four classes are drawn, and the same network learns them twice: from random weights, by the defaults
of `resnext train` for so few images with as many epochs as given, and from the body, by the defaults of `resnext train
--weights`. Both are tested once, on the four classes' 4,000 test images. Besides, the seconds of an epoch in which only
the classifier learns, on vectors made once and with the frozen body run in every epoch.
RESNEXT_CIFAR10 names CIFAR-10 as image folders.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from environment import cifar10_place, print_environment

import resnext
from resnext.training import journal
from resnext.training.run import Run

NEW = ("bird", "cat", "ship", "truck")
NETWORK: dict[str, Any] = {"network": "cifar_resnet14", "options": {"width": 32}}
DATA = {
    "image_size": 32,
    "resize": 32,
    "channels": 3,
    "mean": [0.4914, 0.4824, 0.4467],
    "std": [0.2471, 0.2435, 0.2616],
}


def linked(source: Path, target: Path, classes: list[str]) -> Path:
    """Return a folder of links to some classes' folders."""
    target.mkdir(parents=True)
    for name in classes:
        (target / name).symlink_to((source / name).resolve(), target_is_directory=True)
    return target


def drawn(source: Path, target: Path, images: int, seed: int) -> Path:
    """Return a folder of links to so many images of each new class."""
    generator = np.random.default_rng(seed)
    for name in NEW:
        files = sorted((source / name).iterdir())
        (target / name).mkdir(parents=True)
        for index in generator.choice(len(files), images, replace=False):
            (target / name / files[index].name).symlink_to(files[index].resolve())
    return target


def body(train: Path, scratch: Path, epochs: int) -> Run:
    """Train the body on the six other classes."""
    known = sorted(place.name for place in train.iterdir() if place.name not in NEW)
    data = {**DATA, "early_size": [16, 24], "early_epochs": [round(0.4 * epochs), round(0.25 * epochs)]}
    return resnext.train(
        linked(train, scratch / "six", known),
        out=scratch / "body",
        epochs=epochs,
        batch_size=128,
        learning_rate=0.2,
        ema_decay=0.998,
        label_smoothing=0.1,
        validation=0.05,
        data=data,
        augmentation={"crop": "pad", "padding": 4, "flip": 0.5},
        schedule={"name": "one-cycle"},
        **NETWORK,
    )


def epoch_seconds(run: Run) -> list[float]:
    """Return what each epoch took, training and validation."""
    events = [event for event in journal.read(run.path / "journal.jsonl") if event["event"] == "epoch"]
    return [event["train_seconds"] + event["validate_seconds"] for event in events]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--scratch-epochs", type=int, default=60)
    options = parser.parse_args()
    print_environment()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        os.environ["RESNEXT_CACHE"] = str(scratch / "cache")
        place = cifar10_place(scratch / "cifar10")
        trained = body(place / "train", scratch, options.epochs)
        print(f"Body: {NETWORK['network']}, six classes, validation top-1 {trained.scores['top1']:.4f}\n")
        test = linked(place / "test", scratch / "test", list(NEW))
        print("| seed | from random weights | from the body | points gained |")
        print("|---|---|---|---|")
        gains = []
        for seed in range(options.seeds):
            few = drawn(place / "train", scratch / f"few{seed}", options.images, seed)
            common = {"seed": seed, "augmentation": {"crop": "pad", "padding": 4, "flip": 0.5}}
            fresh = resnext.train(
                few, out=scratch / f"fresh{seed}", epochs=options.scratch_epochs, data=DATA, **NETWORK, **common
            )
            tuned = resnext.train(few, out=scratch / f"tuned{seed}", weights=str(trained.path), **common)
            scores = [resnext.evaluate(run.path, test).top1 for run in (fresh, tuned)]
            gains.append(100 * (scores[1] - scores[0]))
            print(f"| {seed} | {scores[0]:.4f} | {scores[1]:.4f} | {gains[-1]:.1f} |", flush=True)
        print(f"\nGained, median of {options.seeds} seeds: {statistics.median(gains):.1f} points.\n")
        frozen_body(place, scratch, trained)


def frozen_body(place: Path, scratch: Path, trained: Run) -> None:
    """Time epochs of the classifier alone, with vectors made once and with the body run each time, by turns."""
    many = drawn(place / "train", scratch / "many", 500, 0)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for number in range(3):
        for cached in (True, False) if number % 2 else (False, True):
            run = resnext.train(
                many,
                out=scratch / f"frozen{number}{cached}",
                weights=str(trained.path),
                epochs=3,
                transfer={"head_epochs": 3, "cache_features": cached},
            )
            seconds[cached] += epoch_seconds(run)
    vectors, body_each_time = (statistics.median(seconds[cached]) for cached in (True, False))
    print("| an epoch of the classifier alone, 2,000 images less 10 % | seconds, median of 9 | |")
    print("|---|---|---|")
    print(f"| the frozen body in every epoch | {body_each_time:.3f} | 1 |")
    print(f"| on vectors made once | {vectors:.3f} | {body_each_time / vectors:.1f} × faster |")


if __name__ == "__main__":
    main()
