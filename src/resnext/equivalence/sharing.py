"""Convolutions that read the same input in the same way, as one: the input is read once.

A projection shortcut and the first 1×1 of a bottleneck of equal stride are such, and the 1×1 convolutions that open
the branches of an Inception module.
"""

from __future__ import annotations

import copy
import operator
from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import fx, nn

from resnext.equivalence.folding import flow, module_of
from resnext.layers import Network


def share(network: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode where convolutions that read the same input in the same way are one.

    They have one kernel size, stride, padding and dilation, and no groups, and all are within one child of a `Network`,
    so that `features` are what they were. Every number is computed as before. The smallest modules around them come
    back as `fx.GraphModule`, with the names of all other layers. Share what `fold` returns: batch norms need not be
    gone, but there is little to win while they stand behind the convolutions. The copy's parameters need no gradient.
    """
    shared = copy.deepcopy(network).eval().requires_grad_(False)
    places = {_around([str(node.target) for node in group]) for group in _groups(shared)}
    if isinstance(network, Network):
        places.discard("")
    for place in sorted(places, key=len, reverse=True):  # what is inside comes first
        rewritten = _rewritten(shared.get_submodule(place))
        if not place:
            return rewritten
        shared.set_submodule(place, rewritten)
    return shared


def _groups(network: nn.Module) -> Iterator[list[fx.Node]]:
    """Yield the convolutions, two or more, that can be one, in the order in which they run."""
    alike: dict[object, list[fx.Node]] = defaultdict(list)
    for node in flow(network).nodes:
        conv = module_of(network, node)
        if isinstance(conv, nn.Conv2d) and conv.groups == 1 and conv.padding_mode == "zeros":
            alike[(node.args[0], conv.kernel_size, conv.stride, conv.padding, conv.dilation)].append(node)
    return (group for group in alike.values() if len(group) > 1)


def _around(names: Sequence[str]) -> str:
    """Return the name of the smallest module that holds all those named."""
    parts = [name.split(".")[:-1] for name in names]
    common = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    return ".".join(common)


def _rewritten(module: nn.Module) -> nn.Module:
    """Return the module with each group of convolutions as one, and its output cut for their readers."""
    groups = list(_groups(module))
    graph = groups[0][0].graph
    for number, nodes in enumerate(groups, 1):
        convs = [conv for node in nodes if isinstance(conv := module_of(module, node), nn.Conv2d)]
        module.add_module(f"joint{number}", _joint(convs))
        with graph.inserting_before(nodes[0]):
            joint = graph.call_module(f"joint{number}", nodes[0].args)
            pieces = graph.call_function(torch.split, (joint, [conv.out_channels for conv in convs], 1))
            for index, node in enumerate(nodes):
                piece = graph.call_function(operator.getitem, (pieces, index))
                node.replace_all_uses_with(piece)
                _keep_pieces(module, piece)
        for node in nodes:
            graph.erase_node(node)
    return fx.GraphModule(module, graph).eval()


def _joint(convs: Sequence[nn.Conv2d]) -> nn.Conv2d:
    """Return the convolution that puts out what `convs` do, side by side."""
    joint = copy.copy(convs[0])
    joint._parameters = dict(joint._parameters)
    joint.out_channels = sum(conv.out_channels for conv in convs)
    joint.weight = nn.Parameter(torch.cat([conv.weight for conv in convs]), requires_grad=False)
    if any(conv.bias is not None for conv in convs):
        biases = [conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias for conv in convs]
        joint.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
    return joint


def _keep_pieces(module: nn.Module, piece: fx.Node) -> None:
    """Let ReLUs of a piece write to memory of their own: the next convolution would copy a piece to read it."""
    for user in piece.users:
        reader = module_of(module, user)
        if isinstance(reader, nn.ReLU):
            reader.inplace = False
        elif isinstance(reader, nn.Identity):
            _keep_pieces(module, user)
