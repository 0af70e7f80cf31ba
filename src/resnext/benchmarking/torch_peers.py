"""PyTorch as people run it: eager, or compiled with frozen weights.

The network is this package's own, layer for layer what timm and torchvision build under the same name.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import torch

from resnext.benchmarking.contenders import LAST, Contender
from resnext.benchmarking.place import Place
from resnext.benchmarking.runner import Runner, Settings, in_batches, repeat

COMPILED_BATCH = 16
"""Every batch size is compiled anew, for up to a minute; this one alone, or the largest allowed below it, is."""


def prepare(contender: Contender, place: Place) -> list[Settings]:
    """Return the settings to try."""
    if contender.peer == "eager":
        return [{"batch": batch} for batch in place.batches]
    fitting = [batch for batch in place.batches if batch <= COMPILED_BATCH]
    return [{"batch": max(fitting or place.batches)}]


def start(contender: Contender, place: Place, settings: Settings) -> Runner:
    """Return the contender, ready to run."""
    return TorchRunner(contender, place, settings["batch"])


class TorchRunner(Runner):
    """A network in torch, its weights and images in the contender's precision and layout."""

    def __init__(self, contender: Contender, place: Place, batch: int) -> None:
        torch.set_num_threads(place.threads)
        bundle = place.open()
        self.preprocessing = bundle.contents.preprocessing
        self.batch = batch
        self.layout = torch.channels_last if contender.layout == LAST else torch.contiguous_format
        self.dtype = torch.bfloat16 if contender.precision == "bf16" else torch.float32
        self.network = bundle.build().to(self.dtype).to(memory_format=self.layout)
        if contender.peer == "compile":
            inductor: Any = import_module("torch._inductor.config")
            inductor.freezing = True  # given as an option of compile() it has no effect
            self.network.compile(dynamic=False)
        self.inputs = self._tensor(place.inputs(batch))
        self.single = self._tensor(place.inputs(1))

    def _tensor(self, images: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(images).to(dtype=self.dtype, memory_format=self.layout)

    @torch.inference_mode()
    def _run(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(images)
        return logits

    def stream(self, seconds: float) -> tuple[int, float]:
        """Run batches one after the other."""
        return repeat(lambda: self._run(self.inputs), self.batch, seconds)

    def one(self) -> None:
        """Run a single image."""
        self._run(self.single)

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        """Return the logits N×K in float32."""
        return in_batches(
            lambda images: self._run(self._tensor(images)).float().numpy(), pixels, self.batch, self.preprocessing
        )
