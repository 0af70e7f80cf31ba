"""Weights carried among the three forms of ResNeXt's block: (a) summed, (b) concatenated, (c) grouped.

arXiv:1611.05431 Fig. 3. Path i of C has d channels, those from d·i to d·(i+1) of the C·d in form (c). With the
weights of (c)'s three convolutions W1 (C·d×in×1×1), W2 (C·d×d×3×3) and W3 (out×C·d×1×1),

- path i's first 1×1 is W1[d·i : d·(i+1)], in (a) and (b);
- path i's 3×3 is W2[d·i : d·(i+1)], in (a) and (b);
- path i's last 1×1 is W3[:, d·i : d·(i+1)], in (a); (b) has W3 itself.

The batch norms behind the first two are cut like their outputs; the last one is the same in all forms.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from resnext.errors import UserError
from resnext.networks.resnext import AggregatedBottleneck, Bottleneck, ConcatenatedBottleneck, SummedBottleneck


def convert(source: nn.Module, target: nn.Module) -> nn.Module:
    """Give `target` the weights and running statistics of `source`, and return it; then both compute the same.

    Both are networks or single blocks, of any forms, and alike in all else. Numbers are copied, never computed, so
    that every way there and back is bitwise the same. Training flags, gradients and gates are left alone. Raises
    UserError where the two are not forms of one network.
    """
    check_alike(source, target)
    blocks, own = _blocks(source), _blocks(target)
    with torch.no_grad():
        for name, block in blocks.items():
            _carry_block(_layers(block), _layers(own[name]))
        tensors = target.state_dict()
        for name, tensor in source.state_dict().items():
            if _is_outside(name, blocks):
                tensors[name].copy_(tensor)
    return target


def check_alike(source: nn.Module, target: nn.Module) -> None:
    """Raise UserError unless two networks or blocks differ in their forms alone."""
    one, other = _description(source), _description(target)
    for name in (*one, *other):
        here, there = one.get(name, "nothing"), other.get(name, "nothing")
        if here != there:
            raise UserError(
                f"These are not two forms of one network. {name or 'The whole'} is {here} in the first\n"
                f"and {there} in the second. Take two of one name and options, all but `form`."
            )


def _description(network: nn.Module) -> dict[str, object]:
    """Return what must be alike, by name: blocks but for their forms, all other modules and their tensors."""
    blocks = _blocks(network)
    told: dict[str, object] = {
        name: f"{type(module).__name__}({module.extra_repr()})"
        for name, module in network.named_modules()
        if _is_outside(name, blocks)
    }
    told |= {
        name: f"{_kind(tensor)} {tuple(tensor.shape)}"
        for name, tensor in network.state_dict().items()
        if _is_outside(name, blocks)
    }
    return told | {name: _block_description(block) for name, block in blocks.items()}


def _block_description(block: Bottleneck) -> str:
    layers = _layers(block)
    if "running_mean" not in layers.norm.state_dict():
        raise UserError("A block without batch norm, such as `fold` leaves, has one form. Convert first, then fold.")
    first, spatial, last = layers.reduce[0].conv, layers.spatial[0].conv, layers.expand[0]
    cardinality, width = spatial.groups * len(layers.spatial), first.out_channels * len(layers.reduce)
    norms = {(norm.eps, norm.momentum) for norm in block.modules() if isinstance(norm, nn.BatchNorm2d)}
    return (
        f"{cardinality}×{width // cardinality}d from {first.in_channels} to {last.out_channels} channels"
        f" (stride {spatial.stride[0]}, survival {block.survival}/{block.keep}, {_kind(last.weight)}, norms {norms})"
    )


def _kind(tensor: Tensor) -> str:
    return "meta" if tensor.is_meta else str(tensor.dtype)


def _blocks(network: nn.Module) -> dict[str, Bottleneck]:
    return {name: module for name, module in network.named_modules() if isinstance(module, Bottleneck)}


def _is_outside(name: str, blocks: Iterable[str]) -> bool:
    """Whether the module or tensor called `name` has its place in all forms: outside of blocks, or in a shortcut."""
    for block in blocks:
        prefix = f"{block}." if block else ""
        if name == block or (name.startswith(prefix) and not f"{name}.".startswith(f"{prefix}shortcut.")):
            return False
    return True


class Layers(NamedTuple):
    """The layers of a block in any form: where it has paths, one for each of them."""

    reduce: Sequence[Any]  # ConvNorm of 1×1
    spatial: Sequence[Any]  # ConvNorm of 3×3
    expand: Sequence[Any]  # Conv2d of 1×1
    norm: nn.Module


def _layers(block: Bottleneck) -> Layers:
    if isinstance(block, AggregatedBottleneck):
        return Layers([block.reduce], [block.spatial], [block.expand.conv], block.expand.norm)
    reduce, spatial = _of_each_path(block, "reduce"), _of_each_path(block, "spatial")
    if isinstance(block, SummedBottleneck):
        return Layers(reduce, spatial, _of_each_path(block, "expand"), block.norm)
    return Layers(reduce, spatial, [block.expand.conv], block.expand.norm)


def _of_each_path(block: SummedBottleneck | ConcatenatedBottleneck, name: str) -> list[nn.Module]:
    return [path.get_submodule(name) for path in block.paths.children()]


def _carry_block(source: Layers, target: Layers) -> None:
    _carry_all(source.reduce, target.reduce, dim=0)
    _carry_all(source.spatial, target.spatial, dim=0)
    _carry_all(source.expand, target.expand, dim=1)  # W3[:, d·i : d·(i+1)]
    _carry_all([source.norm], [target.norm], dim=0)


def _carry_all(sources: Sequence[nn.Module], targets: Sequence[nn.Module], dim: int) -> None:
    """Copy the tensors of layers side by side to as many others, or to one, or from one, cut along `dim`."""
    states, own = [each.state_dict() for each in sources], [each.state_dict() for each in targets]
    for name in states[0]:
        _carry([state[name] for state in states], [state[name] for state in own], dim)


def _carry(sources: Sequence[Tensor], targets: Sequence[Tensor], dim: int) -> None:
    if sources[0].ndim == 0:  # the number of batches that a norm has seen: one and the same for all paths
        if len({int(count) for count in sources}) > 1:
            raise UserError(
                "The batch norms of a block's paths have seen different numbers of batches, which no other form can\n"
                "tell apart. Give all paths of a block the same batches."
            )
        pieces = [sources[0]] * len(targets)
    else:
        pieces = list(torch.cat(tuple(sources), dim).tensor_split(len(targets), dim))
    for piece, target in zip(pieces, targets, strict=True):
        target.copy_(piece)
