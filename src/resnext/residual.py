"""The residual block, and stochastic depth for every network that is made of such blocks.

G. Huang, Y. Sun, Z. Liu, D. Sedra and K. Weinberger, "Deep Networks with Stochastic Depth", arXiv:1603.09382.
In training, gate b_l of block l is open with probability p_l, one draw for a whole mini-batch, and a block whose
gate is closed does not compute its branch; at test the branch is multiplied by p_l (equations 2 and 5). Nothing
here draws: the training step sets the gates before each forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from resnext.errors import UserError
from resnext.variant import check_choice

SurvivalRule = Literal["linear", "uniform"]


@dataclass(frozen=True, kw_only=True)
class StochasticDepth:
    """The fields that the config of every residual network has.

    `final_survival` is p_L, the probability that the last block's branch is computed in training; 1 is a network
    of constant depth. `survival_rule` "linear" is p_l = 1 − (l/L)(1 − p_L) for l = 1 … L (equation 4), so that
    the first block already has p < 1; "uniform" is p_l = p_L. `drop_path` is another method that often goes by
    the same name: a branch is dropped for each image by itself, and divided by its survival in training, so that
    nothing changes at test; `drop_path` is the probability for the last block, and rises linearly from 0 for the
    first (timm's rule).
    """

    final_survival: float = 1.0
    survival_rule: SurvivalRule = "linear"
    drop_path: float = 0.0

    def check_depth_options(self) -> None:
        """Raise UserError for values that make no network."""
        check_choice("survival_rule", self.survival_rule, SurvivalRule)
        if not (_is_number(self.final_survival) and 0 < self.final_survival <= 1):
            raise UserError(f"final_survival={self.final_survival!r} is no probability above 0. Take up to 1.")
        if not (_is_number(self.drop_path) and 0 <= self.drop_path < 1):
            raise UserError(f"drop_path={self.drop_path!r} is no probability below 1. Take 0 (off) or more.")
        if self.final_survival < 1 and self.drop_path > 0:
            raise UserError("final_survival and drop_path are two ways to drop branches. Take one of them.")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class ResidualBlock(nn.Module):
    """H(x) = ReLU(b·F(x) + shortcut(x)) of x ≥ 0, such as a ReLU puts out; subclasses hold `shortcut` and give F.

    `survival` is p_l. `gate` is b_l: True, False, or for `drop_path` one 0 or 1 an image (N), with `keep` the
    probability of 1. The training step sets the gate; a network that nobody sets gates for has them open.
    """

    shortcut: nn.Module | None
    survival: float = 1.0
    keep: float = 1.0
    gate: bool | Tensor = True

    def residual(self, images: Tensor) -> Tensor:
        """Return F(x), the branch, in memory of its own."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Return the block's output; with a closed gate in training, without computing the branch."""
        skip: Tensor | None = None if self.shortcut is None else self.shortcut(images)
        if self.is_closed:
            assert skip is not None
            # What comes out of a ReLU is not changed by another one.
            return images if isinstance(self.shortcut, nn.Identity) else F.relu(skip)
        return add_and_rectify(self.gated(self.residual(images)), skip)

    @property
    def is_closed(self) -> bool:
        """Whether this pass leaves the branch out."""
        return self.training and self.gate is False

    def gated(self, residual: Tensor) -> Tensor:
        """Return the branch as it enters the sum: p_l·F(x) at test, F(x) in training (equations 5 and 2)."""
        if not self.training:
            return residual if self.survival == 1.0 else residual * self.survival
        if isinstance(self.gate, Tensor):
            return residual * (self.gate / self.keep).to(residual.dtype).view(-1, 1, 1, 1)
        return residual


def add_and_rectify(residual: Tensor, skip: Tensor | None) -> Tensor:
    """Return ReLU(residual + skip), the end of a residual block, written over `residual`.

    H(x) = F(x) + x of arXiv:1512.03385 section 3.1; plain networks have no `skip`. `skip` is left as it is.
    """
    if skip is not None:
        residual += skip
    return F.relu(residual, inplace=True)


def survivals(count: int, final: float, rule: SurvivalRule = "linear") -> list[float]:
    """Return p_1 … p_L for L = `count` blocks and p_L = `final` (arXiv:1603.09382 section 3, equation 4)."""
    if rule == "uniform":
        return [final] * count
    return [1 - number / count * (1 - final) for number in range(1, count + 1)]


def residual_blocks(network: nn.Module) -> list[ResidualBlock]:
    """Return the residual blocks in the order in which they run."""
    return [module for module in network.modules() if isinstance(module, ResidualBlock)]


def set_survivals(network: nn.Module, options: StochasticDepth) -> None:
    """Give every residual block of a network its survival, as the options say; called once, when it is built."""
    blocks = residual_blocks(network)
    drops = _ramp(len(blocks), options.drop_path)
    for block, survival, drop in zip(
        blocks, survivals(len(blocks), options.final_survival, options.survival_rule), drops, strict=True
    ):
        if block.shortcut is None and (survival < 1 or drop > 0):
            raise UserError(
                "A plain network has no way around a block, so none can be dropped.\n"
                "Take final_survival=1 and drop_path=0."
            )
        block.survival, block.keep = survival, 1 - drop


def _ramp(count: int, last: float) -> list[float]:
    return [last * index / max(1, count - 1) for index in range(count)]
