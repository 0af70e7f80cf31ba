"""k groups of a grouped convolution as one: weights laid out block-diagonally, zeros off the diagonal.

A convolution of g groups is one of g/k groups, each k times as wide, in which every number that would join two of the
old groups is zero. It does k times the arithmetic on as much data, and is faster where narrow groups leave the
processor's vectors or tiles empty (the equivalent blocks of arXiv:1611.05431 Fig. 3 are the same step, for a whole
block). Depthwise convolutions, whose groups have one input channel, stay as they are.

Not-finite numbers: 0 × Inf and 0 × NaN are NaN. A place where one group reads Inf or NaN gives NaN in all the groups
merged with it as well, forward (outputs) and backward (gradients of the input); other merged groups, and places beyond
the kernel's reach, are as they were. Gradients of weights and biases do not mix groups: those of the zeros are
dropped. So nothing that is not finite in the grouped form is ever finite in the merged one, and the spread ends at
the merged group.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import MethodType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnext.errors import UserError, did_you_mean

WIDEST = 128
"""Channels of a merged group, at most: wide enough to fill any vector or tile, and beyond only work is added."""


def block_diagonal(weight: Tensor, groups: int, factor: int) -> Tensor:
    """Lay weights of `groups` groups out for groups/factor groups: O×(I/groups)×h×w → O×(factor·I/groups)×h×w.

    What joins two of the old groups is zero. Keeps dtype, device and memory format; differentiable, and the gradient
    of the weights is the diagonal blocks of the result's. `factor` divides `groups`.
    """
    assert groups % factor == 0, (groups, factor)
    if factor == 1:
        return weight
    rows, columns, height, width = weight.shape
    channels_last = weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    # One write of the result, and nothing but a view of its gradient on the way back.
    laid = weight.permute(0, 2, 3, 1) if channels_last else weight
    split = laid.reshape(groups // factor, factor, rows // groups, *laid.shape[1:])  # G/k × k × O/g × …
    if channels_last:
        blocks = torch.diag_embed(split.movedim(1, -1), dim1=1, dim2=5)  # G/k × k × O/g × h × w × k × I/g
        return blocks.reshape(rows, height, width, factor * columns).permute(0, 3, 1, 2)
    blocks = torch.diag_embed(split.movedim(1, -1), dim1=1, dim2=3)  # G/k × k × O/g × k × I/g × h × w
    return blocks.reshape(rows, factor * columns, height, width)


def mergeable(network: nn.Module) -> dict[str, nn.Conv2d]:
    """Return the grouped convolutions that can be merged, by the name of their module.

    Left out are depthwise ones and modules whose forward pass, or whose weights, are not those of `nn.Conv2d`.
    """
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d) and 1 < module.groups < module.in_channels and _is_plain(module)
    }


def _is_plain(conv: nn.Conv2d) -> bool:
    kind = type(conv)
    as_usual = kind.forward is nn.Conv2d.forward and kind._conv_forward is nn.Conv2d._conv_forward
    return as_usual and conv._parameters.get("weight") is not None


def factors(conv: nn.Conv2d) -> list[int]:
    """Return how many groups could be worth merging: 1, and the divisors whose merged groups have ≤ 128 channels.

    Counted on the narrower side, input or output.
    """
    narrow = min(conv.in_channels, conv.out_channels) // conv.groups
    return [k for k in range(1, conv.groups + 1) if conv.groups % k == 0 and (k == 1 or k * narrow <= WIDEST)]


def merge(network: nn.Module, chosen: Mapping[str, int]) -> nn.Module:
    """Return a copy for inference whose convolutions, those named, have `chosen` groups merged into one.

    The merged weights are built once and need no gradient; strides, biases, classes and the modes stay as they are. A
    choice that `merge_in_training` made does not come with the copy. Raises UserError as that does.
    """
    twin = copy.deepcopy(network)
    merge_in_training(twin, {})
    for name, factor in _checked(twin, chosen).items():
        conv = twin.get_submodule(name)
        assert isinstance(conv, nn.Conv2d)
        laid_out = block_diagonal(conv.weight.detach(), conv.groups, factor)
        conv.weight = nn.Parameter(laid_out, requires_grad=False)
        conv.groups //= factor
    return twin


def merge_in_training(network: nn.Module, chosen: Mapping[str, int]) -> None:
    """Let the convolutions named compute with `chosen` groups merged into one, from the next forward pass on.

    The parameters stay grouped, and with them names, bits and layout of the state dict and the optimiser's state; every
    forward pass lays them out anew, in autocast's precision. The choice replaces an earlier one, {} is the network
    as it was, and copies of the network have it too.
    Raises UserError for a name that is no mergeable convolution, and for a factor that does not divide its groups;
    the network then is as it was.
    """
    checked = _checked(network, chosen)
    for conv in network.modules():
        if isinstance(conv, nn.Conv2d) and "merge_factor" in vars(conv):
            del conv.merge_factor, conv._conv_forward
    for name, factor in checked.items():
        conv = network.get_submodule(name)
        conv.merge_factor = factor  # type: ignore[assignment]
        conv._conv_forward = MethodType(_merged_forward, conv)  # type: ignore[assignment]


def merged(network: nn.Module) -> dict[str, int]:
    """Return the choice that `merge_in_training` put in force: how many groups are merged, by the convolution's name.

    A copy that `merge` made has none: its convolutions simply have fewer groups.
    """
    return {name: factor for name, module in network.named_modules() if (factor := vars(module).get("merge_factor"))}


def _checked(network: nn.Module, chosen: Mapping[str, int]) -> dict[str, int]:
    """Return the choice without its ones; raises UserError for what cannot be merged."""
    known = mergeable(network) if chosen else {}
    for name, factor in chosen.items():
        if name not in known:
            near = did_you_mean(name, known) or " Take one of `mergeable(network)`."
            raise UserError(f"The network has no grouped convolution {name!r} that can be merged.{near}")
        if type(factor) is not int or factor < 1 or known[name].groups % factor:
            raise UserError(
                f"{name!r} has {known[name].groups} groups; they cannot be merged by {factor!r}. Take a divisor."
            )
    return {name: factor for name, factor in chosen.items() if factor > 1}


def _merged_forward(conv: nn.Conv2d, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve as `nn.Conv2d` does, with the weights laid out block-diagonally first."""
    kind = images.device.type
    autocasts = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    # Cast first: the zeros need no casting, and the gradient is cast back without them.
    if autocasts and weight.dtype != torch.float64:
        weight = weight.to(torch.get_autocast_dtype(kind))
    factor = conv.merge_factor
    assert isinstance(factor, int)
    padding: str | tuple[int, ...] = conv.padding
    if conv.padding_mode != "zeros":
        images, padding = F.pad(images, conv._reversed_padding_repeated_twice, mode=conv.padding_mode), (0, 0)
    laid_out = block_diagonal(weight, conv.groups, factor)
    return F.conv2d(images, laid_out, bias, conv.stride, padding, conv.dilation, conv.groups // factor)
