"""ONNX Runtime as its documentation has it: the network exported, quantised statically (QDQ), run on the CPU."""

from __future__ import annotations

import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from resnext.benchmarking.contenders import Contender
from resnext.benchmarking.place import CALIBRATION, Place
from resnext.benchmarking.runner import Runner, Settings, in_batches

BATCH = "batch"


def prepare(contender: Contender, place: Place) -> list[Settings]:
    """Export the network, quantise it where that is asked for, and return the settings to try."""
    import onnxruntime  # noqa: F401  (absent: said before the work begins)

    exported = place.file(f"{contender.key}-exported.onnx")
    _export(place, exported if contender.precision == "int8" else graph(contender, place))
    if contender.precision == "int8":
        _quantise(place, exported, graph(contender, place))
    return place.batches_and_streams()


def graph(contender: Contender, place: Place) -> Path:
    """Return where the graph of a contender is."""
    return place.file(f"{contender.key}.onnx")


def start(contender: Contender, place: Place, settings: Settings) -> Runner:
    """Return the contender, ready to run."""
    return OnnxRunner(contender, place, **settings)


def _export(place: Place, file: Path) -> None:
    import torch

    inputs = torch.from_numpy(place.inputs(2))
    with warnings.catch_warnings():
        # torch's newer exporter needs one package more, and gives the same graph for networks without control flow.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            place.open().build(),
            (inputs,),
            str(file),
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes={"images": {0: BATCH}, "logits": {0: BATCH}},
            dynamo=False,
        )


def _quantise(place: Place, source: Path, target: Path) -> None:
    """Quantise as the library advises for processors with VNNI: unsigned activations, weights signed, by channel."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    preprocessing, pixels = place.open().contents.preprocessing, place.pixels(CALIBRATION)

    class Images(CalibrationDataReader):  # type: ignore[misc]  # the library has no types
        def __init__(self) -> None:
            self.left = iter(pixels)

        def get_next(self) -> dict[str, np.ndarray] | None:
            one = next(self.left, None)
            return None if one is None else {"images": preprocessing.normalise(one[None])}

    ready = source.with_suffix(".ready.onnx")
    quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
    quantize_static(
        str(ready),
        str(target),
        Images(),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


class OnnxRunner(Runner):
    """A session that takes float images; with several streams that many threads run batches, each on its own core."""

    def __init__(self, contender: Contender, place: Place, batch: int, streams: int) -> None:
        self.preprocessing = place.open().contents.preprocessing
        self.batch, self.streams = batch, streams
        self.file, self.threads = str(graph(contender, place)), place.threads
        self.inputs = place.inputs(batch)
        self.session = self._session(batch, max(1, place.threads // streams))
        self.single: Any = None

    def _session(self, batch: int, threads: int) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_free_dimension_override_by_name(BATCH, batch)
        # Threads spin while a batch runs, as by default; afterwards they would take time from the others.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        return onnxruntime.InferenceSession(self.file, options, providers=["CPUExecutionProvider"])

    def _run(self, images: np.ndarray) -> np.ndarray:
        logits: np.ndarray = self.session.run(None, {"images": images})[0]
        return logits

    def stream(self, seconds: float) -> tuple[int, float]:
        """Run batches in every stream until the time is over, and wait for the last."""
        counts, ready = [0] * self.streams, threading.Barrier(self.streams + 1)

        def lane(number: int) -> None:
            ready.wait()
            while time.perf_counter() < deadline or not counts[number]:
                self._run(self.inputs)
                counts[number] += self.batch

        with ThreadPoolExecutor(self.streams) as pool:
            lanes = [pool.submit(lane, number) for number in range(self.streams)]
            started = time.perf_counter()
            deadline = started + seconds
            ready.wait()
            for each in lanes:
                each.result()
            return sum(counts), time.perf_counter() - started

    def one(self) -> None:
        """Run a single image with all threads."""
        if self.single is None:
            self.single = self._session(1, self.threads)
        self.single.run(None, {"images": self.inputs[:1]})

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        """Return the logits N×K."""
        return in_batches(self._run, pixels, self.batch, self.preprocessing)
