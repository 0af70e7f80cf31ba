"""From files to labels: how much of what decoder and engine together allow does `resnext evaluate` reach?

    python benchmarks/files.py [BUNDLE] [--network resnext50_32x4d] [--precision int8] [--photos 1000] [--rounds 5]

JPEG files of 500×375 pixels. Core time to decode, resize and crop one image, in one thread; core time to infer one, the
engine alone on pixels in memory; then `evaluate` as a whole, all three in turn, the first round left out. What is
allowed is cores / (the one + the other); the wanted ratio is 0.85 or more. The whole command, with its start, and
`resnext predict` of one photo are timed as processes. All files are in the page cache.

Without BUNDLE one is made of a network with random weights, and optimised on the spot.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from environment import print_environment

from resnext import machine
from resnext.data.loader import Loader
from resnext.data.manifest import scan
from resnext.evaluation import metrics
from resnext.inference.classifier import Classifier
from resnext.inference.files import load, reader

ENOUGH = 256
"""Photos whose pixels the engine alone is fed with, again and again."""


def write_bundle(place: Path, network: str) -> Path:
    """Write a bundle of a network with random weights, for 1,000 classes and images of 224 pixels."""
    import torch

    from resnext import bundle, catalog
    from resnext.data.preprocessing import Preprocessing

    torch.manual_seed(0)
    names = tuple(f"class{number}" for number in range(1000))
    state = catalog.create(network, num_classes=len(names), in_channels=3).state_dict()
    contents = bundle.Contents(network, {}, names, Preprocessing(224, 256))
    bundle.write(place, contents, {name: value.numpy() for name, value in state.items()})
    return place


def write_photos(folder: Path, count: int, classes: tuple[str, ...]) -> Path:
    """Write the photos that the training benchmark uses, in folders of the bundle's first two classes."""
    import training

    training.write_photos(folder, count)
    for number, name in enumerate(classes[:2]):
        (folder / f"class{number}").rename(folder / f"renamed{number}")
        (folder / f"renamed{number}").rename(folder / name)
    return folder


def command(*words: object) -> float:
    """Run a `resnext` command in a process of its own, and return its seconds; its output is shown if it fails."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "resnext", *map(str, words)], capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"resnext {' '.join(map(str, words))}\n{done.stderr}{done.stdout}")
    return seconds


def core_time_to_read(loader: Loader) -> float:
    """Decode, resize and crop every photo in this thread; seconds of processor time an image."""
    started = time.thread_time()
    for index in range(len(loader.split)):
        loader.preprocessing.crop(loader.source.read(index))
    return (time.thread_time() - started) / len(loader.split)


def times_to_infer(classifier: Classifier, pixels: np.ndarray, count: int, size: int) -> tuple[float, float]:
    """Run the engine alone on `count` images at least; seconds an image of processor time, and of all cores' time."""
    done, started, busy = 0, time.perf_counter(), time.process_time()
    while done < count:
        for start in range(0, len(pixels), size):
            classifier.engine(pixels[start : start + size])
        done += len(pixels)
    taken = time.perf_counter() - started
    return (time.process_time() - busy) / done, taken * machine.cores() / done


def measure(classifier: Classifier, photos: Path, rounds: int) -> dict[str, list[float]]:
    """Measure the parts and the whole in turn; seconds an image, whole and allowed per machine, the others per core."""
    split = scan(photos, purpose="evaluate", classes=classifier.classes).split("test")
    loader = reader(classifier, split)
    few = [loader.preprocessing.crop(loader.source.read(index)) for index in range(min(ENOUGH, len(split)))]
    pixels, count, figures = np.stack(few), len(split), defaultdict[str, list[float]](list)
    for number in range(rounds + 1):
        read = core_time_to_read(loader)
        infer, infer_wall = times_to_infer(classifier, pixels, count, loader.batch_size)
        started, busy = time.perf_counter(), time.process_time()
        metrics.evaluate(classifier.engine, reader(classifier, split))
        whole = (time.perf_counter() - started) / count
        if number:  # the first round warms up
            figures["read"].append(read)
            figures["infer"].append(infer)
            figures["infer_wall"].append(infer_wall)
            figures["whole"].append(whole)
            figures["busy"].append((time.process_time() - busy) / count / whole / machine.cores())
    return figures


def show(figures: dict[str, list[float]], count: int, evaluating: list[float], predicting: list[float]) -> None:
    """Print the table."""
    cores = machine.cores()
    middle = {name: statistics.median(values) for name, values in figures.items()}
    allowed = cores / (middle["read"] + middle["infer"])

    def row(name: str, values: list[float], digits: int) -> None:
        middle, least, most = (f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
        print(f"| {name} | {middle} ({least} to {most}) |")

    print("| what | median (range) |\n|---|---|")
    row("decode, resize, crop: core ms an image", [1e3 * seconds for seconds in figures["read"]], 2)
    row("engine: core ms an image, busy", [1e3 * seconds for seconds in figures["infer"]], 2)
    row(f"engine: core ms an image, wall × {cores}", [1e3 * seconds for seconds in figures["infer_wall"]], 2)
    row("evaluate: img/s", [1 / seconds for seconds in figures["whole"]], 1)
    row("evaluate: share of the cores that is busy", figures["busy"], 2)
    row("resnext evaluate, whole process: img/s", [count / seconds for seconds in evaluating], 1)
    row("resnext predict of one photo, whole process: s", predicting, 2)
    print(f"\nallowed: {cores} / ({1e3 * middle['read']:.2f} + {1e3 * middle['infer']:.2f}) ms = {allowed:.1f} img/s")
    print(f"reached: {1 / middle['whole'] / allowed:.3f} of it  (wanted: 0.85 or more)")
    print(f"the whole process: {count / statistics.median(evaluating) / allowed:.3f} of it")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--network", default="resnext50_32x4d")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--minutes", type=float, default=2.0, help="for optimising the network")
    parser.add_argument("--photos", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = options.bundle or write_bundle(Path(folder) / "bundle", options.network)
        classes = load(place, engine="torch").classes
        photos = write_photos(Path(folder) / "photos", options.photos, classes)
        if options.bundle is None:
            words = ("--precision", options.precision, "--calibration", photos, "--minutes", options.minutes)
            command("optimize", place, *words, "--unproved")
        classifier = load(place)
        figures = measure(classifier, photos, options.rounds)
        evaluating = [command("evaluate", place, photos) for _ in range(options.rounds + 1)][1:]
        photo = next(photos.rglob("*.jpg"))
        predicting = [command("predict", place, photo) for _ in range(6)][1:]
    print_environment()
    size = classifier.preprocessing.image_size
    print(f"{classifier.bundle.contents.network}, {size} px, {options.photos} photos, {options.rounds} rounds, seed 0")
    for note in classifier.notes:
        print(note)
    print()
    show(figures, options.photos, evaluating, predicting)


if __name__ == "__main__":
    main()
