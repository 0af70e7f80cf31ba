"""How long candidates take here: equal complexity is not equal time.

A training step is what `resnext train` would run, in the form that its stopwatch chooses; inference is the eager
engine. They take turns, so that what disturbs the machine disturbs all.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from resnext import catalog
from resnext.data.loader import Batch
from resnext.data.preprocessing import Preprocessing
from resnext.engine import TorchEngine, choose_device, choose_precision
from resnext.training import forms, memory
from resnext.training.recipe import Recipe
from resnext.training.step import TrainingStep

ROUNDS = 5
STEPS = 100_000
"""The form is chosen as for a run of so many steps."""

RATE = 1e-3
SMALL, BATCH_OF_SMALL, BATCH = 64, 64, 16
"""Images of up to so many pixels on a side are computed so many at once, and larger ones so many."""


@dataclass(frozen=True)
class Subject:
    """What is timed: a network by its name and options, and a side in pixels."""

    name: str
    options: Mapping[str, Any]
    image_size: int


@dataclass(frozen=True)
class Times:
    """Median seconds of an image, in a training step and in inference, and the images computed at once."""

    step: float
    inference: float
    batch_size: int


def measure(subjects: Sequence[Subject], tell: Callable[[str, int, int], None], *, device: str = "auto") -> list[Times]:
    """Time a training step and inference of subjects by turns; `tell` is told what is done and how far it is.

    In the precision that is fastest here, fp32 where no other is.
    """
    device = choose_device(device)
    with memory.kept(device):
        ways = []
        for number, one in enumerate(subjects):
            tell("preparing", number, len(subjects))
            ways.append(_ways(one, device))
        taken: list[tuple[list[float], list[float]]] = [([], []) for _ in subjects]
        for turn in range(ROUNDS):
            for number, (ready, into) in enumerate(zip(ways, taken, strict=True)):
                tell("timing", turn * len(subjects) + number, ROUNDS * len(subjects))
                for way, seconds in zip(ready, into, strict=True):
                    seconds.append(_timed(way, device))
    sizes = [_batch_size(one) for one in subjects]
    return [
        Times(statistics.median(steps) / size, statistics.median(inferences) / size, size)
        for (steps, inferences), size in zip(taken, sizes, strict=True)
    ]


def _batch_size(one: Subject) -> int:
    return BATCH_OF_SMALL if one.image_size <= SMALL else BATCH


def _ways(one: Subject, device: str) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return a training step and a pass of inference, each run once before."""
    size, side = _batch_size(one), one.image_size
    recipe = Recipe.from_dict(
        {
            "network": one.name,
            "options": dict(one.options),
            "epochs": 1,
            "batch_size": size,
            "data": {"image_size": side, "resize": side, "mean": Preprocessing.mean, "std": Preprocessing.std},
            "optimizer": {"learning_rate": RATE},
            "machine": {"device": device},
        }
    )
    pixels = np.random.default_rng(0).integers(0, 256, (size, side, side, recipe.data.channels), np.uint8)
    preprocessing = recipe.data.preprocessing()
    network = catalog.create(one.name, **one.options)
    classes = catalog.resolve(one.name).num_classes
    step = TrainingStep(network, recipe, preprocessing, classes)
    forms.settle(step, steps=STEPS, recorded=None)
    batch = Batch(np.arange(size), pixels, np.arange(size) % classes, 0)
    numbers: Iterator[int] = iter(range(STEPS))
    step.begin_epoch(0)
    engine = TorchEngine(
        catalog.create(one.name, **one.options),
        preprocessing,
        device=device,
        precision=choose_precision("auto", device),
        batch_shapes=(size,),
    )

    def learn() -> object:
        return step(batch, 0, next(numbers), RATE)

    def infer() -> object:
        return engine(pixels)

    for way in (learn, infer):
        way()
    return learn, infer


def _timed(way: Callable[[], object], device: str) -> float:
    if device != "cpu":
        torch.accelerator.synchronize()
    began = time.perf_counter()
    way()
    if device != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - began
