"""Batch norm, ReLU and the residual sum as one operation in training on a CPU: the same function, less memory traffic.

PyTorch passes over the images once for each of mean, variance, normalisation, sum and ReLU, and again backward. Here
each direction is two passes (`kernels/normalise.cpp`): what a step computes is the same up to rounding, of which there
is less, because sums stay in float32 until the end.

`fuse` works where the kernel can: in training mode, on channels_last images in fp32 or bf16 on a CPU, outside
`torch.compile`, with an open gate; everywhere else the modules do what they did. Where a batch norm is fused with the
ReLU behind it, the two are not called one by one, and forward hooks on them do not run. Second derivatives are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from resnext.kernels import normalising
from resnext.residual import ResidualBlock, add_and_rectify


def reason_unavailable() -> str | None:
    """Return None where the kernel is compiled and loaded, which the first call does, or else why not, in words."""
    return normalising.reason_unavailable()


def fuse(network: nn.Module) -> None:
    """Fuse every batch norm of a network with what follows it, in place; without the kernel, change nothing.

    Parameters, buffers and their names, what the network computes in eval mode, and `copy.deepcopy` stay as they are.
    """
    if reason_unavailable() is None:
        for module in network.modules():
            kind = _kind(module)
            if kind is not None:
                module.__class__ = _fused_class(kind, type(module))  # type: ignore[arg-type]  # classes have a hash


def unfuse(network: nn.Module) -> None:
    """Undo `fuse`, in place."""
    for module in network.modules():
        plain = getattr(type(module), "plain", None)
        if plain is not None:
            module.__class__ = plain


def _kind(module: nn.Module) -> type[nn.Module] | None:
    """Return which fused module takes this one's place, if any."""
    kind = type(module)
    if kind is nn.BatchNorm2d:
        return _Norm
    if isinstance(module, nn.Sequential) and kind.forward is nn.Sequential.forward and any(_pairs(module)):
        return _Sequence
    return _Block if isinstance(module, ResidualBlock) and kind.forward is ResidualBlock.forward else None


def _pairs(sequence: nn.Sequential) -> Iterator[bool]:
    """Yield, for each child but the last, whether it is a batch norm with a ReLU behind it."""
    return (isinstance(one, nn.BatchNorm2d) and type(next_one) is nn.ReLU for one, next_one in pairwise(sequence))


@cache
def _fused_class(kind: type, plain: type) -> type[nn.Module]:
    """Return `plain` with the forward pass of `kind`, under its own name."""
    about = {"__module__": plain.__module__, "__doc__": plain.__doc__, "plain": plain}
    return type(plain.__name__, (kind, plain), about)


@dataclass
class _Ending:
    """What a residual block hands to the batch norm that ends its branch, and gets back if that computed the sum."""

    skip: Tensor | None
    output: Tensor | None = None


class _Norm(nn.BatchNorm2d):
    """Batch norm in one operation; at the end of a residual block with the sum and the ReLU."""

    ending: _Ending | None = None

    def forward(self, images: Tensor) -> Tensor:
        ending = self.ending
        skip = None if ending is None else ending.skip
        if not _fits(self, images, skip):
            return super().forward(images)
        output = _normalise(self, images, skip, relu=ending is not None)
        if ending is not None:
            ending.output = output
        return output


class _Sequence(nn.Sequential):
    """A sequence in which batch norm and the ReLU behind it are one operation."""

    def forward(self, images: Tensor) -> Tensor:
        children = iter([*self, None])
        module = next(children)
        while module is not None:
            behind = next(children)
            if isinstance(module, _Norm) and type(behind) is nn.ReLU and _fits(module, images, None):
                images = _normalise(module, images, None, relu=True)
                behind = next(children)
            else:
                images = module(images)
            module = behind
        return images


class _Block(ResidualBlock):
    """A residual block whose branch ends in a batch norm that computes the block's end as well."""

    def forward(self, images: Tensor) -> Tensor:
        norm = _last_norm(self)
        if norm is None or not self.training or self.gate is not True or torch.compiler.is_compiling():
            return super().forward(images)
        skip: Tensor | None = None if self.shortcut is None else self.shortcut(getattr(images, "again", images))
        norm.ending = ending = _Ending(skip)
        try:
            branch = self.residual(images)
        finally:
            del norm.ending
        if ending.output is None:
            return add_and_rectify(branch, skip)
        assert branch is ending.output, f"the last norm of {type(self).__name__} does not end its branch"
        return branch


def _last_norm(block: ResidualBlock) -> _Norm | None:
    """Return the batch norm that the branch ends in, if it does: children are in the order of execution."""
    last: nn.Module | None = block
    while last is block or isinstance(last, nn.Sequential):
        last = next((child for name, child in reversed([*last.named_children()]) if name != "shortcut"), None)
    return last if isinstance(last, _Norm) else None


def _fits(norm: nn.BatchNorm2d, images: Tensor, skip: Tensor | None) -> bool:
    """Whether the kernel computes this; what torch refuses, such as one number a channel, is left to torch."""
    return (
        norm.training
        and not torch.compiler.is_compiling()
        and type(images) is Tensor
        and normalising.fits(images)
        and images.shape[1] == norm.num_features < images.numel()
        and _is_plain(norm.weight)
        and _is_plain(norm.bias)
        and (norm.running_mean is None or (_is_plain(norm.running_mean) and _is_plain(norm.running_var)))
        and (skip is None or (normalising.fits(skip) and skip.dtype == images.dtype and skip.shape == images.shape))
    )


def _is_plain(values: Tensor | None) -> bool:
    """Whether these are numbers a channel as the kernel reads them."""
    return values is not None and values.dtype == torch.float32 and values.is_cpu and values.is_contiguous()


def _normalise(norm: nn.BatchNorm2d, images: Tensor, skip: Tensor | None, *, relu: bool) -> Tensor:
    """Return relu?(norm(images) + skip?), and move the running statistics as `nn.BatchNorm2d` does."""
    momentum = norm.momentum
    if norm.track_running_stats and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if momentum is None:
            momentum = 1.0 / float(norm.num_batches_tracked)
    running = None if norm.running_mean is None else (norm.running_mean, norm.running_var)
    output, again = _Normalise.apply(
        images, skip, norm.weight, norm.bias, running, {"momentum": momentum or 0.0, "epsilon": norm.eps, "relu": relu}
    )
    if again is not None:
        output.again = again
    return cast(Tensor, output)


class _Normalise(torch.autograd.Function):
    """The operation, as autograd sees it: images, skip, weight, bias → the output, and the end of a block twice.

    What a block puts out is read by the next one's branch and by its shortcut. Autograd would add their gradients in
    a pass of its own; with an output for each, the sum is made where they are read.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, skip: Tensor | None, *others: Any) -> tuple[Tensor, Tensor | None]:
        weight, bias, running, options = others
        output, statistics = normalising.forward(images, skip, weight, bias, running, **options)
        joins = skip is not None and options["relu"]
        ctx.save_for_backward(images, weight, bias, statistics, output if joins else None)
        ctx.relu = options["relu"]
        ctx.set_materialize_grads(False)
        # In memory of the first one, but no view of it: autograd may not know that they are the same.
        return output, output.data if joins else None

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, first: Tensor | None, second: Tensor | None) -> tuple[Tensor | None, ...]:
        images, weight, bias, statistics, output = ctx.saved_tensors
        gradient, *more = (_laid_out(each, images) for each in (first, second) if each is not None)
        by_images, by_skip, by_weight, by_bias = normalising.backward(
            gradient, next(iter(more), None), images, output, weight, bias, statistics, relu=ctx.relu
        )
        results = by_images, by_skip, by_weight, by_bias
        wanted = (each if needed else None for each, needed in zip(results, ctx.needs_input_grad, strict=False))
        return (*wanted, None, None)


def _laid_out(gradient: Tensor, images: Tensor) -> Tensor:
    """Return a gradient, which may be expanded or have another layout, as the images lie."""
    return gradient.to(images.dtype).contiguous(memory_format=torch.channels_last)
