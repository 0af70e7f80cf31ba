"""OpenVINO as its documentation has it: the network converted, quantised by NNCF's defaults, compiled."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from resnext.benchmarking.contenders import Contender
from resnext.benchmarking.place import CALIBRATION, Place
from resnext.benchmarking.runner import Runner, Settings, in_batches
from resnext.errors import UserError
from resnext.inference.engines.openvino import library

# What is not quantised runs as OpenVINO chooses.
HINT = "INFERENCE_PRECISION_HINT"
HINTS = {"fp32": {HINT: "f32"}, "bf16": {HINT: "bf16"}, "int8": {}}
QUEUED = 2
"""Requests a stream: one that runs and one that waits."""


def prepare(contender: Contender, place: Place) -> list[Settings]:
    """Convert the network, quantise it where that is asked for, write it, and return the settings to try."""
    import torch

    bundle, ov = place.open(), library()
    preprocessing = bundle.contents.preprocessing
    side, channels = preprocessing.image_size, preprocessing.channels
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, that tracing is old
        model = ov.convert_model(
            bundle.build(), example_input=torch.zeros(1, channels, side, side), input=[-1, channels, side, side]
        )
    if contender.precision == "int8":
        import nncf

        images = nncf.Dataset(list(place.pixels(CALIBRATION)), lambda one: preprocessing.normalise(one[None]))
        model = nncf.quantize(model, images)
    ov.save_model(model, graph(contender, place), compress_to_fp16=False)
    return place.batches_and_streams()


def graph(contender: Contender, place: Place) -> Path:
    """Return where the graph of a contender is."""
    return place.file(f"{contender.key}.xml")


def start(contender: Contender, place: Place, settings: Settings) -> Runner:
    """Return the contender, ready to run."""
    return OpenVINORunner(contender, place, **settings)


class OpenVINORunner(Runner):
    """A compiled graph that takes float images, with a queue of requests over its streams."""

    def __init__(self, contender: Contender, place: Place, batch: int, streams: int) -> None:
        ov = library()
        self.preprocessing = place.open().contents.preprocessing
        self.batch, self.streams = batch, streams
        self.options = HINTS[contender.precision] | {"INFERENCE_NUM_THREADS": place.threads}
        self.model = ov.Core().read_model(graph(contender, place))
        self.inputs = place.inputs(batch)
        self.compiled = self._compile(batch, streams)
        if contender.precision == "bf16" and self.compiled.get_property(HINT) != ov.Type.bf16:
            raise UserError("OpenVINO has no bf16 on this processor, and would compute in fp32.")
        self.queue = ov.AsyncInferQueue(self.compiled, QUEUED * streams)
        self.request: Any = None

    def _compile(self, batch: int, streams: int) -> Any:
        fixed = self.model.clone()
        fixed.reshape([batch, *self.inputs.shape[1:]])
        return library().Core().compile_model(fixed, "CPU", self.options | {"NUM_STREAMS": streams})

    def stream(self, seconds: float) -> tuple[int, float]:
        """Keep every stream busy until the time is over, and wait for the last."""
        count, started = 0, time.perf_counter()
        while count < self.batch * self.streams or time.perf_counter() - started < seconds:
            self.queue.start_async({0: self.inputs}, share_inputs=True)
            count += self.batch
        self.queue.wait_all()
        return count, time.perf_counter() - started

    def one(self) -> None:
        """Run a single image with all threads."""
        if self.request is None:
            self.request = self._compile(1, 1).create_infer_request()
        self.request.infer({0: self.inputs[:1]}, share_inputs=True)

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        """Return the logits N×K."""
        return in_batches(lambda images: self.compiled({0: images})[0], pixels, self.batch, self.preprocessing)
