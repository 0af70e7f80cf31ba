"""The gates of stochastic depth and drop path: drawn, set, and opened again, for each training step.

G. Huang and others, "Deep Networks with Stochastic Depth", arXiv:1603.09382 section 3, for the blocks of
`residual.py`. A gate is a function of (seed, step, block), and for drop path of the image's place in the batch, so
that a resumed run has the same gates, and so have all processes of a run that is split over several.

Departures and readings: a block that was left out has gradients of zero, not none, as in the authors' code, so that
weight decay and momentum move its weights all the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from resnext.data import order
from resnext.errors import UserError
from resnext.residual import residual_blocks

STREAM_OF_GATES = 101  # the step itself has 100


class Gates:
    """The gates of those blocks of a network that may be left out; without any, nothing is drawn or filled."""

    def __init__(self, network: nn.Module, seed: int, device: torch.device) -> None:
        self.seed, self.device = seed, device
        numbered = [pair for pair in enumerate(residual_blocks(network)) if pair[1].survival < 1 or pair[1].keep < 1]
        self.blocks = [block for _, block in numbered]
        self.rows = np.array([number for number, _ in numbered], np.int64)

    @contextmanager
    def drawn(self, step: int, images: int, start: int = 0) -> Iterator[None]:
        """Set the gates of one step for so many images of its batch, around their forward and backward pass.

        `start` is the place of the first one in the batch. Afterwards parameters that got no gradient have one of
        zeros, and all gates are open.
        """
        if not self.blocks:
            yield
            return
        try:
            self._draw(step, images, start)
            yield
            self._fill_gradients()
        finally:
            for block in self.blocks:
                block.gate = True

    def _draw(self, step: int, images: int, start: int) -> None:
        by_image = any(block.keep < 1 for block in self.blocks)
        draws = start + images if by_image else 1
        uniforms = order.uniforms(self.seed, step, self.rows, draws, stream=STREAM_OF_GATES)
        if by_image:
            keeps = np.array([[block.keep] for block in self.blocks])
            by_block = torch.from_numpy((uniforms[:, start:] < keeps).astype(np.float32)).to(self.device)  # blocks×N
        for row, block in enumerate(self.blocks):
            block.gate = bool(uniforms[row, 0] < block.survival) if block.survival < 1 else by_block[row]

    def _fill_gradients(self) -> None:
        for block in self.blocks:
            if block.gate is False:
                for parameter in block.parameters():
                    if parameter.requires_grad and parameter.grad is None:
                        parameter.grad = torch.zeros_like(parameter)


def refuse_compiling(network: nn.Module) -> None:
    """Raise UserError for a network with gates: what it computes changes with every step."""
    if any(block.survival < 1 or block.keep < 1 for block in residual_blocks(network)):
        raise UserError(
            'compile = "on" is not for stochastic depth or drop path: the gates change the computation at every step.'
            "\nUse --compile off, or take final_survival=1 and drop_path=0."
        )
