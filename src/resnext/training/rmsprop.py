"""RMSProp as TensorFlow has it, which the Inception papers trained with.

T. Tieleman and G. Hinton, "Lecture 6.5: RMSProp", COURSERA 2012, in the reading of TensorFlow's RMSPropOptimizer:

    m ← ρ·m + (1 − ρ)·g²,  m = 1 at first
    v ← momentum·v + rate·g / √(m + ε),  v = 0 at first
    w ← w − v

Departures and readings: torch.optim.RMSprop adds ε to the root instead, starts m at 0, and multiplies by the rate
outside of v. With ε = 1 (arXiv:1512.00567 section 8) the first two change the size of every step; the third matters
whenever the rate changes. Weight decay is added to the gradient, as the L2 loss of the authors' code is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch


class RMSProp(torch.optim.Optimizer):
    """RMSProp with ε inside the root; its state has `square` (m) and `velocity` (v), in the parameter's shape."""

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        rho: float = 0.9,
        epsilon: float = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "rho": rho, "epsilon": epsilon, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; the gradients are left as they are."""
        assert closure is None, "the loss is computed before the step"
        for group in self.param_groups:
            parameters = [each for each in group["params"] if each.grad is not None]
            if not parameters:
                continue
            for each in parameters:
                if not self.state[each]:
                    self.state[each] = {"square": torch.ones_like(each), "velocity": torch.zeros_like(each)}
            squares = [self.state[each]["square"] for each in parameters]
            velocities = [self.state[each]["velocity"] for each in parameters]
            gradients = [each.grad for each in parameters]
            if group["weight_decay"]:
                gradients = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))
            torch._foreach_mul_(squares, group["rho"])
            torch._foreach_addcmul_(squares, gradients, gradients, value=1 - group["rho"])
            roots = torch._foreach_add(squares, group["epsilon"])
            torch._foreach_sqrt_(roots)
            torch._foreach_mul_(velocities, group["momentum"])
            torch._foreach_addcdiv_(velocities, gradients, roots, value=group["lr"])
            torch._foreach_sub_(parameters, velocities)
