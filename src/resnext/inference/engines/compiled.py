"""The torch engine in its fastest form: batch norm folded, groups merged, weights in the precision, compiled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from textwrap import shorten

import numpy as np
import torch
from torch import nn

from resnext.data.preprocessing import Preprocessing
from resnext.engine import BATCH_SHAPES, TorchEngine
from resnext.equivalence.folding import fold
from resnext.equivalence.merging import merge
from resnext.equivalence.sharing import share
from resnext.errors import UserError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
MOST_COMPILED = 256
"""Engines and batch shapes that one process may compile; beyond its own 8 torch quietly runs a network eagerly."""


class CompiledEngine(TorchEngine):
    """Run a network, rewritten, in torch; with `compile` through torch's compiler, else eagerly.

    `merged` is how many groups of a convolution become one, by its name in the network, as `merge` takes it; with
    `shared` convolutions that read the same input are one. The network that is given stays as it is. The rest is as
    for `TorchEngine`: with `compile`, the first batch of each shape takes seconds to a minute, and raises UserError
    where torch's compiler does not work, as it is without a C++ compiler.
    """

    def __init__(
        self,
        network: nn.Module,
        preprocessing: Preprocessing,
        *,
        merged: Mapping[str, int] | None = None,
        shared: bool = False,
        compile: bool = True,
        device: str = "auto",
        precision: str = "fp32",
        batch_shapes: Sequence[int] = BATCH_SHAPES,
    ) -> None:
        rewritten = merge(fold(network), merged or {})
        if shared:
            rewritten = share(rewritten)
        super().__init__(rewritten, preprocessing, device=device, precision=precision, batch_shapes=batch_shapes)
        if self.precision in DTYPES:
            _cast_weights(self.network, DTYPES[self.precision])
        self.compiled = compile
        if compile:
            self.network.compile(dynamic=False)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Map uint8 pixels N×S×S×C to float32 logits N×K."""
        if not self.compiled:
            return super().__call__(pixels)
        import torch._dynamo
        import torch._inductor.config

        with ExitStack() as settings:  # of this thread alone, and of this call
            settings.enter_context(torch._dynamo.config.patch(recompile_limit=MOST_COMPILED))
            if self.device.type == "cpu":
                # Weights become constants, laid out for the processor once, and ReLUs go into convolutions.
                settings.enter_context(torch._inductor.config.patch(freezing=True))
            try:
                return super().__call__(pixels)
            except torch._dynamo.exc.TorchDynamoException as error:
                reason = shorten(str(error).partition("\n")[0], 250)
                raise UserError(
                    f"torch.compile does not work here: {reason}\n"
                    "Run the network uncompiled; if a C++ compiler is missing, install one (Debian: apt install g++)."
                ) from error


def _cast_weights(network: nn.Module, dtype: torch.dtype) -> None:
    """Round the weights once; autocast, which casts the rest, would round them again for every batch."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.to(dtype)
