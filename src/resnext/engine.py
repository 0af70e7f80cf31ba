"""The protocol batch → logits, the eager torch engine behind it, and `rank`.

Everything that infers (validation, `evaluate`, `predict`) holds an `Engine` and does not know which one it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from resnext import machine
from resnext.data.preprocessing import Preprocessing
from resnext.errors import UserError

if TYPE_CHECKING:
    import torch

BATCH_SHAPES = (1, 8, 32)
DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")


class Engine(Protocol):
    """A function from a batch of pixels to logits."""

    batch_size: int

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Map uint8 pixels N×S×S×C, for any N ≥ 1, to float32 logits N×K; rows do not depend on each other."""
        ...


class TorchEngine:
    """Run a network eagerly in torch.

    Batches are cut and padded with zeros to one of a few fixed sizes, so that an image's logits have the same
    bits whichever images travel with it in a batch of that size.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        preprocessing: Preprocessing,
        *,
        device: str = "auto",
        precision: str = "fp32",
        batch_shapes: Sequence[int] = BATCH_SHAPES,
    ) -> None:
        import torch

        self.device = torch.device(choose_device(device))
        self.precision = choose_precision(precision, self.device.type)
        self.network = network.to(self.device).to(memory_format=torch.channels_last).eval()
        self.preprocessing = preprocessing
        self.batch_shapes = tuple(sorted(batch_shapes))
        self.batch_size = self.batch_shapes[-1]

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Map uint8 pixels N×S×S×C to float32 logits N×K."""
        starts = range(0, len(pixels), self.batch_size)
        return np.concatenate([self._run(pixels[start : start + self.batch_size]) for start in starts])

    def _run(self, pixels: np.ndarray) -> np.ndarray:
        import torch

        count = len(pixels)
        size = next(shape for shape in self.batch_shapes if shape >= count)
        if size > count:
            padding = np.zeros((size - count, *pixels.shape[1:]), np.uint8)
            pixels = np.concatenate([pixels, padding])
        inputs = to_inputs(pixels, self.preprocessing, self.device)
        # TF32, which CUDA would use for fp32 convolutions, keeps 10 bits of the mantissa.
        exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=self.precision != "fp32")
        with torch.inference_mode(), autocast(self.device, self.precision), exact:
            logits: torch.Tensor = self.network(inputs)
        result: np.ndarray = logits[:count].float().cpu().numpy()
        return result


def to_inputs(pixels: np.ndarray, preprocessing: Preprocessing, device: torch.device) -> torch.Tensor:
    """Normalise uint8 pixels N×S×S×C and bring them to the device as float32 N×C×S×S, channels last in memory."""
    import torch

    inputs = torch.from_numpy(preprocessing.normalise(pixels))
    return inputs.to(device, memory_format=torch.channels_last)


def choose_device(device: str) -> str:
    """Return the device to run on: `auto` is CUDA, else MPS, else the CPU.

    Raises UserError for a device that is unknown or not here.
    """
    import torch

    if device not in DEVICES:
        raise UserError(f"There is no device {device!r}. Choose one of {', '.join(DEVICES)}.")
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if here[name])
    if not here[device]:
        raise UserError(f"This machine has no {device} device that torch can use. Use --device auto.")
    return device


def choose_precision(precision: str, device: str) -> str:
    """Return fp32, bf16 or fp16; `auto` is the fastest that this device computes in hardware and trains well.

    Raises UserError for an unknown precision and for fp16 on the CPU, where it would overflow unscaled.
    """
    import torch

    if precision not in PRECISIONS:
        raise UserError(f"There is no precision {precision!r}. Choose one of {', '.join(PRECISIONS)}.")
    if precision == "fp16" and device == "cpu":
        raise UserError("fp16 is not for CPUs: it is slow there and overflows. Use --precision bf16 or auto.")
    if precision != "auto":
        return precision
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return "bf16" if device == "cpu" and machine.has_fast_bfloat16() else "fp32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context in which a forward pass runs in this precision; in fp32 it changes nothing."""
    import torch

    dtype = {"fp32": torch.bfloat16, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return torch.autocast(device.type, dtype, enabled=precision != "fp32")


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis in float64: logits N×K → probabilities N×K."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    exponentials = np.exp(shifted)
    result: np.ndarray = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return result


def rank(logits: np.ndarray, top: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the best classes of each row and their probabilities, best first.

    Takes logits N×K; gives class indices N×top and probabilities N×top (`top` None or above K means K). Equal
    logits are ordered by class index, so that the answer is the same everywhere.
    """
    order = np.argsort(-logits, axis=-1, kind="stable")[:, :top]
    return order, np.take_along_axis(probabilities(logits), order, axis=-1)
