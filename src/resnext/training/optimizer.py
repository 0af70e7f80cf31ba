"""The optimiser, what weight decay acts on, and the moving average of weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from resnext.training import sections
from resnext.training.rmsprop import RMSProp

Rate = Callable[[str], float]
"""What the learning rate of a parameter is multiplied by, by its name."""


def build(
    network: nn.Module, options: sections.Optimizer, device: torch.device, rate: Rate = lambda name: 1.0
) -> torch.optim.Optimizer:
    """Build the optimiser over all parameters of the network, fused where torch has a fused form.

    Its groups have the key `rate`, by which whoever sets their `lr` multiplies the learning rate.
    """
    fused = device.type in ("cpu", "cuda")
    groups = parameter_groups(network, options, rate)
    if options.name == "adamw":
        return torch.optim.AdamW(groups, lr=options.learning_rate, betas=options.betas, fused=fused)
    if options.name == "rmsprop":
        return RMSProp(
            groups, lr=options.learning_rate, rho=options.rho, epsilon=options.epsilon, momentum=options.momentum
        )
    return torch.optim.SGD(
        groups,
        lr=options.learning_rate,
        momentum=options.momentum,
        nesterov=options.nesterov and options.momentum > 0,
        fused=fused,
    )


def parameter_groups(
    network: nn.Module, options: sections.Optimizer, rate: Rate = lambda name: 1.0
) -> list[dict[str, object]]:
    """Split parameters by rate and weight decay; `decay="weights"` spares one-dimensional ones, biases and norms."""
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        spared = options.decay == "weights" and parameter.ndim <= 1
        groups.setdefault((spared, rate(name)), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": 0.0 if spared else options.weight_decay, "rate": multiple}
        for (spared, multiple), parameters in sorted(groups.items(), key=lambda item: item[0][0])
    ]


class MovingAverage:
    """An exponential moving average of a network's weights and running statistics.

    The decay rises with the number of updates, min(decay, (1 + n) / (10 + n)), so that early averages are not
    held back by random initial values.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.values = {name: value.detach().clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move the average towards the network's present values."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        present = network.state_dict()
        floating = [name for name, value in self.values.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.values[name] for name in floating], [present[name] for name in floating], 1 - decay)
        for name in self.values.keys() - set(floating):
            self.values[name].copy_(present[name])


def clip(parameters: Iterable[Tensor], norm: float | None) -> None:
    """Scale gradients down in place so that their joint L2 norm is at most `norm`; None leaves them."""
    if norm is not None:
        nn.utils.clip_grad_norm_(parameters, norm)
