"""Batch norm over the images of all processes of a run: each channel's mean and variance are those of the whole batch.

S. Ioffe and C. Szegedy, arXiv:1502.03167 section 3, with the batch spread over processes. Torch's own SyncBatchNorm
does this on GPUs only. Processes exchange means, variances and counts, in one exchange a layer and direction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn


@dataclass
class Presence:
    """Whether this process has images in the present step; one that has none goes through the motions only."""

    silent: bool = False


def synchronise(network: nn.Module) -> Presence:
    """Let every batch norm of a network see the images of all processes, in place; needs a joined process group."""
    presence = Presence()
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = _Synchronised
            cast(_Synchronised, module).presence = presence
    return presence


class _Synchronised(nn.BatchNorm2d):
    """Batch norm whose statistics in training are those of all processes' images."""

    presence: Presence

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return super().forward(images)
        values = images.float()  # N×C×H×W
        count = values.new_tensor([0.0 if self.presence.silent else values.numel() / values.shape[1]])
        local = torch.cat([values.mean((0, 2, 3)), values.var((0, 2, 3), correction=0), count])
        gathered = cast(Tensor, _Gathered.apply(local))  # processes×(2C+1)
        means, variances = gathered[:, :-1].chunk(2, dim=1)
        shares = gathered[:, -1:].detach() / gathered[:, -1].sum().detach()
        mean = (shares * means).sum(0)
        variance = (shares * (variances + (means - mean).square())).sum(0)
        self._move(mean.detach(), variance.detach(), float(gathered[:, -1].sum()))
        scale, shift = self.weight * torch.rsqrt(variance + self.eps), self.bias
        result = torch.addcmul(_by_channel(shift - mean * scale), values, _by_channel(scale))
        return result.to(images.dtype)

    def _move(self, mean: Tensor, variance: Tensor, count: float) -> None:
        """Move the running statistics as `nn.BatchNorm2d` does: towards the unbiased variance."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance * (count / max(1.0, count - 1)), momentum)


def _by_channel(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1)


class _Gathered(torch.autograd.Function):
    """A vector of each process → all of them, one a row. What any process makes of a row comes back to its owner."""

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        from torch import distributed

        rows = [torch.empty_like(local) for _ in range(distributed.get_world_size())]
        distributed.all_gather(rows, local.contiguous())
        return torch.stack(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        from torch import distributed

        total = gradient.contiguous()
        distributed.all_reduce(total)
        return total[distributed.get_rank()]
