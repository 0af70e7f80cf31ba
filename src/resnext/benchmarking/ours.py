"""Ours, as `predict` runs it: the optimised engine of a bundle, or one that is tuned on the spot."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import cast

import numpy as np

from resnext import machine
from resnext.benchmarking.contenders import Contender
from resnext.benchmarking.place import CALIBRATION, CHECK, Place
from resnext.benchmarking.runner import Runner, Settings, repeat
from resnext.bundle import ENGINES, Bundle
from resnext.errors import UserError
from resnext.inference.engines import stored

LEAST = 64
"""Images of a turn at least: what an engine runs at a time shall not show at its ends."""


def prepare(contender: Contender, place: Place) -> list[Settings]:
    """Take the bundle's engine, or tune one into a copy of the bundle; return its settings, the only ones to try."""
    bundle = place.open()
    engine, _ = stored.open(bundle)
    record = None if engine is None else engine.record
    # Peers run on the processor: so must ours. What was tuned elsewhere is tuned anew.
    if record is None or record.precision != contender.precision or record.settings.get("device", "cpu") != "cpu":
        bundle = _copy(bundle, place.file(contender.key))
        record = _tune(bundle, contender, place)
    return [{**record.settings, "kind": record.kind, "merged": len(record.merged), "stacked": record.stacked}]


def start(contender: Contender, place: Place, settings: Settings) -> Runner:
    """Return the engine, ready to run."""
    tuned = place.file(contender.key)
    return OurRunner(place, Bundle.open(tuned) if tuned.exists() else place.open())


def _copy(bundle: Bundle, target: Path) -> Bundle:
    """Return a bundle of the same files, which an engine may be written into."""
    shutil.copytree(
        bundle.path.resolve(), target, copy_function=os.symlink, ignore=shutil.ignore_patterns(f"{ENGINES}*")
    )
    target.chmod(0o700)  # the bundle's own folder may be read-only
    return Bundle.open(target)


class OurRunner(Runner):
    """An engine that takes uint8 pixels and normalises them itself."""

    def __init__(self, place: Place, bundle: Bundle) -> None:
        engine, why_not = stored.open(bundle)
        if engine is None:
            raise UserError(why_not or "There is no engine.")
        self.engine = engine
        self.batch = engine.batch_size * -(-LEAST // engine.batch_size)
        self.inputs = place.pixels(CHECK, self.batch)

    def stream(self, seconds: float) -> tuple[int, float]:
        """Run many images at a time."""
        return repeat(lambda: self.engine(self.inputs), self.batch, seconds)

    def one(self) -> None:
        """Run a single image."""
        self.engine(self.inputs[:1])

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        """Return the logits N×K."""
        return self.engine(pixels)


def _tune(bundle: Bundle, contender: Contender, place: Place) -> stored.Record:
    """Tune on the spot, as `resnext optimize` does; of the proof there is only the benchmark's own check."""
    from resnext.inference import quantization, tuning
    from resnext.inference.engines import openvino
    from resnext.inference.options import Workshop

    network, preprocessing = bundle.build(), bundle.contents.preprocessing
    if (why := openvino.reason_unavailable()) is not None:
        raise UserError(why)
    if contender.precision == "bf16" and not machine.has_fast_bfloat16():
        raise UserError("resnext optimize offers no bf16 on this processor, which does not multiply it.")
    graph = openvino.convert(network, preprocessing)
    if contender.precision == "int8":
        pixels = place.pixels(CALIBRATION)
        graph = quantization.quantise(graph, iter([pixels]), len(pixels))
    workshop = Workshop(network, preprocessing, graph)
    choice = tuning.tune(workshop, cast(openvino.Precision, contender.precision), minutes=place.minutes)
    option = choice.option
    rewritten = workshop.graph_of(option.merged, option.stacked) if option.kind == "openvino" else None
    record = stored.Record(
        option.kind,
        contender.precision,
        dict(option.settings),
        dict(option.merged),
        stacked=option.stacked,
        tried=list(choice.tried),
    )
    return stored.write(bundle, record, rewritten)
