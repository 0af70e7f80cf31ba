"""A learning rate by trying: train a little while the rate rises, and see where the loss falls fastest.

L. N. Smith, "Cyclical Learning Rates for Training Neural Networks", arXiv:1506.01186 section 3.3: the range test.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import count, islice
from pathlib import Path

import numpy as np

from resnext import durable
from resnext.data.loader import Batch, Loader
from resnext.errors import UserError
from resnext.training.journal import Observer
from resnext.training.plan import Plan
from resnext.training.session import Session

STEPS = 150
FIRST, LAST = 1e-6, 10.0
SMOOTHING = 0.95  # the curve is a moving average of the losses, corrected for its beginning
DIVERGED = 4.0  # times the least loss: from here on nothing is learned from the curve
LEAST = 10  # steps whose losses are too few to trust their average: no rate of theirs is suggested
WINDOW = 5  # a slope is taken over so many steps to either side
PICTURE, CURVE = "learning-rate.png", "learning-rate.json"


@dataclass(frozen=True)
class Found:
    """The rates that were tried, the smoothed loss of each, and the rate at which it fell fastest."""

    rates: list[float]
    losses: list[float]
    suggestion: float


def find(planned: Plan, observer: Observer) -> Found:
    """Train for up to 150 steps of a plan, at rates from 10⁻⁶ up to 10, and keep nothing of it but the curve.

    Raises UserError where the loss is not finite, or falls at no rate.
    """
    session = Session(planned, observer)
    step, recipe = session.step, planned.recipe
    step.begin_epoch(recipe.transfer.head_epochs)
    rates, losses, average = [], [], 0.0
    for number, (epoch, batch) in enumerate(islice(_batches(session.train_loader), STEPS)):
        rate = FIRST * (LAST / FIRST) ** (number / (STEPS - 1))
        outcome = step(batch, epoch, number, rate)
        observer({"event": "progress", "of": "learning rates", "done": number + 1, "total": STEPS})
        if outcome.skipped or not math.isfinite(outcome.loss):
            break
        average = SMOOTHING * average + (1 - SMOOTHING) * outcome.loss
        rates.append(rate)
        losses.append(average / (1 - SMOOTHING ** (number + 1)))
        if number > LEAST and losses[-1] > DIVERGED * min(losses):
            break
    if len(losses) <= LEAST:
        raise UserError("The loss was not finite from the beginning. Take --precision fp32, or look at the images.")
    return Found(rates, losses, _steepest(rates, losses))


def _batches(loader: Loader) -> Iterator[tuple[int, Batch]]:
    for epoch in count():
        for batch in loader.epoch(epoch):
            yield epoch, batch


def _steepest(rates: list[float], losses: list[float]) -> float:
    """Return the rate, up to that of the least loss, at which the loss falls fastest in the rate's logarithm."""
    until = int(np.argmin(losses)) + 1
    slopes = {
        at: losses[min(at + WINDOW, len(losses) - 1)] - losses[at - WINDOW]
        for at in range(LEAST, max(until, LEAST + 1))
    }
    at = min(slopes, key=lambda each: slopes[each])
    if slopes[at] >= 0:
        raise UserError("The loss fell at no rate. Look at the images and labels, or take another network.")
    return float(f"{rates[at]:.2g}")


def place_for(run: Path) -> Path:
    """Return where the curve of a run is written: beside its directory, which is left to the run."""
    return run.with_name(f"{run.name}-learning-rate")


def write(found: Found, place: Path) -> list[Path]:
    """Write the curve as JSON, and as a picture where matplotlib is installed; return what was written."""
    durable.make_directory(place)
    durable.write_text(place / CURVE, json.dumps(asdict(found)))
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return [place / CURVE]
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(found.rates, found.losses, color="#1f77b4")
    axes.axvline(found.suggestion, color="#d62728", linestyle="--", label=f"falls fastest at {found.suggestion:g}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss, smoothed", title="Learning rates tried")
    top = found.losses[0] + 0.3 * (found.losses[0] - min(found.losses))
    axes.set_ylim(top=max(top, min(found.losses) + 1e-6))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(place / PICTURE, dpi=120)
    return [place / CURVE, place / PICTURE]
