"""The OpenVINO engine: a network as a graph from pixels to logits, its groups merged, compiled for this processor.

This is the one place that holds OpenVINO's graphs. The library is imported at first use, and torch only to convert.
"""

from __future__ import annotations

import io
import sys
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import median
from threading import Lock
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from resnext.data.preprocessing import Preprocessing
from resnext.inference.engines.regrouping import with_merged_groups
from resnext.inference.engines.stacking import with_stacked_maps

if TYPE_CHECKING:
    import openvino as ov
    import torch

    Graph: TypeAlias = ov.Model
    CompiledModel: TypeAlias = ov.CompiledModel

Precision = Literal["fp32", "bf16", "int8"]

DEVICE = "CPU"
HINTS = {"fp32": "f32", "bf16": "bf16"}
FEWEST_PER_CALL = 32
QUEUED = 2
"""Requests a stream: one that runs, and one that waits, so that no stream stands still while results are copied."""
RUNS = 5
"""How often `layer_times` runs a model, after once to warm up."""


@cache
def library() -> ModuleType:
    """Import OpenVINO, and its telemetry not: that would call home at the import.

    Raises ImportError where it is not installed.
    """
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: not to be imported
    import openvino

    found: ModuleType = openvino
    return found


@cache
def core() -> Any:
    """Return the one `openvino.Core` of the process, which holds what runs on the processor."""
    return library().Core()


def is_available() -> bool:
    """Whether OpenVINO can be imported."""
    return reason_unavailable() is None


def reason_unavailable() -> str | None:
    """Return None where OpenVINO can be imported; else why not, and what to do."""
    try:
        library()
    except ImportError:
        return "OpenVINO is not installed: pip install 'resnext[cpu]'"
    return None


def version() -> str:
    """Return the version of OpenVINO, with its build."""
    return str(library().__version__)


@dataclass(frozen=True)
class Settings:
    """How a graph is compiled and run.

    `batch` is the images of one piece, `streams` how many pieces run at a time, and `threads` those of all streams
    together. With int8, `rest` is the precision of what is not quantised. Raises ValueError for what cannot be.
    """

    precision: Precision
    batch: int
    streams: int
    threads: int
    rest: Literal["fp32", "bf16"] = "fp32"

    def __post_init__(self) -> None:
        numbers = (self.batch, self.streams, self.threads)
        if self.precision not in (*HINTS, "int8") or self.rest not in HINTS:
            raise ValueError(f"no precision {self.precision!r} with {self.rest!r}")
        if not all(type(number) is int and number >= 1 for number in numbers):
            raise ValueError(f"batch, streams and threads are {numbers}")

    def for_one(self) -> Settings:
        """Return the settings of the model for single images: one stream that has all threads."""
        return replace(self, batch=1, streams=1)

    def options(self) -> dict[str, Any]:
        """Return OpenVINO's options."""
        return {
            "INFERENCE_PRECISION_HINT": HINTS[self.rest if self.precision == "int8" else self.precision],
            "NUM_STREAMS": self.streams,
            "INFERENCE_NUM_THREADS": self.threads,
            "ENABLE_CPU_PINNING": False,  # threads that decode the next images share the cores
        }


def convert(network: torch.nn.Module, preprocessing: Preprocessing) -> Graph:
    """Return a network as a graph from pixels uint8 N×S×S×C to float32 logits N×K; the network stays as it is.

    Normalisation is inside, batch norm is folded into the convolutions before it, and convolutions have the names
    of their modules. N is any, S and C are those of the preprocessing.
    """
    import torch

    from resnext.equivalence.folding import fold

    side, channels = preprocessing.image_size, preprocessing.channels
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, that tracing is old; and of the tracer, at every look at a shape
        model = library().convert_model(
            fold(network), example_input=torch.zeros(1, channels, side, side), input=[-1, channels, side, side]
        )
    _name_as_modules(model)
    _take_pixels(model, preprocessing)
    return model


def _name_as_modules(model: Graph) -> None:
    """Call what was traced from the convolution of module `stage1.block1.spatial.conv` just that."""
    for node in model.get_ordered_ops():
        module, _, operation = node.get_friendly_name().removeprefix("__module.").partition("/aten::")
        if operation and node.get_type_name() in ("Convolution", "GroupConvolution", "MatMul"):
            node.set_friendly_name(module)


def _take_pixels(model: Graph, preprocessing: Preprocessing) -> None:
    """Put `Preprocessing.normalise` before a graph that takes what it gives, with its very constants."""
    ov = library()
    ops, side, channels = ov.opset13, preprocessing.image_size, preprocessing.channels
    black, white = (np.full((1, side, side, channels), value, np.uint8) for value in (0, 1))
    colours_alone = Preprocessing(side, side, channels, mean=(0.0,) * channels, std=preprocessing.std)
    # By rows S·C long, which fill vectors; the C colours of one pixel would not.
    scale, shift = (
        image.transpose(0, 2, 3, 1).reshape(1, side, side * channels)
        for image in (colours_alone.normalise(white), -preprocessing.normalise(black))
    )
    if preprocessing.mean_image is None:
        shift = shift[:, :1]
    pixels = ops.parameter([-1, side, side, channels], np.uint8, name="pixels")
    pixels.output(0).set_names({"pixels"})
    rows = ops.convert(ops.reshape(pixels, np.array([0, 0, -1]), True), np.float32)
    centred = ops.subtract(ops.multiply(rows, scale[:, :1].copy()), shift.copy())
    centred.set_friendly_name("normalise")
    images = ops.reshape(centred, np.array([-1, side, side, channels]), False)
    inputs = ops.transpose(images, np.array([0, 3, 1, 2]))  # last: so it costs nothing where channels are last
    before = model.get_parameters()[0]
    for target in before.output(0).get_target_inputs():
        target.replace_source_output(inputs.output(0))
    model.remove_parameter(before)
    model.add_parameters([pixels])
    model.output(0).set_names({"logits"})
    model.validate_nodes_and_infer_types()


def grouped_layers(model: Graph) -> dict[str, tuple[int, int]]:
    """Return the grouped convolutions by name: groups, and channels a group; depthwise ones are left out."""
    shapes = {
        node.get_friendly_name(): tuple(node.input(1).get_shape())
        for node in model.get_ordered_ops()
        if node.get_type_name() == "GroupConvolution"
    }
    return {name: (shape[0], shape[2]) for name, shape in shapes.items() if shape[0] > 1 and shape[2] > 1}


def merge_groups(model: Graph, chosen: Mapping[str, int]) -> Graph:
    """Return a copy in which each layer named has so many groups at a time merged into one, block-diagonally.

    The function stays the same: what is new are zeros off the diagonal, in a quantised weight the integer that
    means zero; scales and zero points of channels go with them.
    """
    there = grouped_layers(model)
    assert chosen.keys() <= there.keys(), sorted(chosen.keys() - there.keys())
    assert all(there[name][0] % factor == 0 for name, factor in chosen.items()), chosen
    merged = model.clone()
    for node in merged.get_ordered_ops():
        factor = chosen.get(node.get_friendly_name(), 1)
        if factor > 1 and node.get_type_name() == "GroupConvolution":
            library().utils.replace_node(node, with_merged_groups(node, factor, library().opset13))
    merged.validate_nodes_and_infer_types()
    return merged


def stack_maps(model: Graph, side: int) -> Graph:
    """Return a copy whose 1×1 convolutions on maps of at most side×side pixels see a batch as one tall map.

    The function stays the same, to the bit where it is quantised.
    """
    return with_stacked_maps(model, side, library().opset13)


def compile_model(model: Graph, settings: Settings, *, profiled: bool = False) -> CompiledModel:
    """Compile a graph for batches of `settings.batch` on this processor."""
    fixed = model.clone()
    fixed.reshape([settings.batch, *model.input(0).get_partial_shape().get_max_shape()[1:]])
    return core().compile_model(fixed, DEVICE, {**settings.options(), "PERF_COUNT": profiled})


def export_model(compiled: CompiledModel) -> bytes:
    """Return what was compiled as bytes, for `import_model` on this machine."""
    stream = io.BytesIO()
    compiled.export_model(stream)
    return stream.getvalue()


def read_model(xml: bytes, weights: bytes) -> Graph:
    """Read a graph from the two files that `save_model` wrote; raises RuntimeError where they are none."""
    ov = library()
    return core().read_model(xml, ov.Tensor(np.frombuffer(weights, np.uint8)))


def save_model(model: Graph, xml: Path) -> None:
    """Write a graph as OpenVINO's two files, `xml` and `.bin` beside it, with its weights as they are."""
    library().save_model(model, xml, compress_to_fp16=False)


def import_model(blob: bytes, settings: Settings) -> CompiledModel:
    """Take back what `export_model` gave; raises RuntimeError where OpenVINO refuses it."""
    return core().import_model(blob, DEVICE, settings.options())


def layer_times(model: Graph, settings: Settings) -> dict[str, float]:
    """Return the milliseconds of each layer for a batch, by name: the median of a few runs in one stream."""
    alone = replace(settings, streams=1, threads=max(1, settings.threads // settings.streams))
    request = compile_model(model, alone, profiled=True).create_infer_request()
    pixels = np.random.default_rng(0).integers(0, 256, tuple(request.get_input_tensor().shape), np.uint8)
    times: dict[str, list[float]] = {}
    for run in range(RUNS + 1):
        request.infer({0: pixels})
        for layer in request.profiling_info if run else ():
            times.setdefault(layer.node_name, []).append(layer.real_time.total_seconds() * 1e3)
    return {name: median(each) for name, each in times.items() if max(each) > 0}


class Compiled:
    """A compiled model of one batch size, and the requests that run or wait in its streams."""

    def __init__(self, model: CompiledModel, streams: int) -> None:
        self.batch = int(model.input(0).get_shape()[0])
        self.classes = int(model.output(0).get_shape()[1])
        self.requests = [model.create_infer_request() for _ in range(QUEUED * streams)]
        self.lock = Lock()  # a request holds one call's results at a time

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Map uint8 pixels N×S×S×C to float32 logits N×K, in pieces; the last one is padded with zeros."""
        with self.lock:
            return self._run(pixels)

    def _run(self, pixels: np.ndarray) -> np.ndarray:
        logits = np.empty((len(pixels), self.classes), np.float32)
        free, running = deque(self.requests), deque[tuple[Any, int]]()

        def collect() -> None:
            request, start = running.popleft()
            request.wait()
            rows = logits[start : start + self.batch]
            rows[:] = request.get_output_tensor(0).data[: len(rows)]
            free.append(request)

        try:
            for start in range(0, len(pixels), self.batch):
                if not free:
                    collect()
                request = free.popleft()
                request.start_async({0: self._piece(pixels, start)}, share_inputs=True)
                running.append((request, start))
            while running:
                collect()
        finally:
            for request, _ in running:
                request.wait()
        return logits

    def _piece(self, pixels: np.ndarray, start: int) -> np.ndarray:
        piece = np.ascontiguousarray(pixels[start : start + self.batch])
        missing = self.batch - len(piece)
        return np.concatenate([piece, np.zeros((missing, *piece.shape[1:]), np.uint8)]) if missing else piece


class OpenVINOEngine:
    """Run a graph in OpenVINO: one model for single images, and one for batches in several streams.

    Threads may share it; their calls take turns.

    `for_one` and `for_many` make them when they are first needed.
    """

    def __init__(
        self, settings: Settings, for_one: Callable[[], CompiledModel], for_many: Callable[[], CompiledModel]
    ) -> None:
        self.settings = settings
        step = settings.batch * settings.streams
        self.batch_size = step * -(-FEWEST_PER_CALL // step)
        self._makers = {"one": for_one, "many": for_many}
        self._compiled: dict[str, Compiled] = {}
        self._lock = Lock()

    @classmethod
    def from_model(cls, model: Graph, settings: Settings) -> OpenVINOEngine:
        """Return the engine of a graph, to be compiled when it is first needed."""
        return cls(settings, lambda: compile_model(model, settings.for_one()), lambda: compile_model(model, settings))

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Map uint8 pixels N×S×S×C to float32 logits N×K."""
        assert pixels.dtype == np.uint8, pixels.dtype
        return self._fitting(len(pixels))(pixels)

    def open_for(self, count: int) -> None:
        """Open what so many images need, which the first call does otherwise."""
        self._fitting(count)

    def _fitting(self, count: int) -> Compiled:
        """Return the model to run so many images with: a few run one by one, unless that means one more to open."""
        few = 2 * count <= self.settings.batch
        if count == 1 or (few and ("one" in self._compiled or "many" not in self._compiled)):
            return self._open("one", streams=1)
        return self._open("many", self.settings.streams)

    def _open(self, name: str, streams: int) -> Compiled:
        with self._lock:
            if name not in self._compiled:
                self._compiled[name] = Compiled(self._makers[name](), streams)
            return self._compiled[name]
