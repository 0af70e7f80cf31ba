"""Batch norm folded into the convolution before it, and the normalisation of pixels into the first convolution.

At test, batch norm is γ·(y − μ)/√(σ² + ε) + β with fixed numbers for each channel, and so is a convolution's rows and
bias with others: the pass over memory goes, the function stays. All of it is computed in float64 and rounded once.
"""

from __future__ import annotations

import copy
import operator
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from resnext.errors import UserError
from resnext.layers import Network


def fold(network: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode, each batch norm that directly follows a convolution folded into it.

    A sum of convolutions, such as form (a) of ResNeXt's block has, counts as one. `nn.Identity` stands where a norm
    stood. A norm stays where something lies between, where others read the convolution as well, and where it opens
    a child of a `Network` (a preactivated stage), so that `features` are what they were. Auxiliary classifiers,
    which serve in training alone, are left as they are. The copy's parameters need no gradient.
    """
    folded = copy.deepcopy(network).eval().requires_grad_(False)
    graph = flow(folded)
    calls = Counter(node.target for node in graph.nodes)
    for node in graph.nodes:
        norm = module_of(folded, node)
        if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None:
            continue
        behind = _summands(node.args[0])
        convs = [conv for each in behind if isinstance(conv := module_of(folded, each), nn.Conv2d)]
        run_once = all(calls[each.target] == 1 for each in (*behind, node))
        read_once = all(len(each.users) == 1 for each in behind)
        within_one = len({str(each.target).split(".")[0] for each in (*behind, node)}) == 1
        if len(convs) == len(behind) and run_once and read_once and (within_one or not isinstance(network, Network)):
            _fold_norm(norm, convs)
            folded.set_submodule(str(node.target), nn.Identity().eval())
    return folded


def _summands(node: fx.node.Argument) -> list[fx.Node]:
    """Return the nodes whose sum `node` is, those of sums that nobody else reads included; at least itself."""
    assert isinstance(node, fx.Node)
    is_sum = node.op == "call_function" and node.target in (operator.add, operator.iadd)
    if is_sum and len(node.users) == 1 and all(isinstance(each, fx.Node) for each in node.args):
        return [each for part in node.args for each in _summands(part)]
    return [node]


def _fold_norm(norm: nn.BatchNorm2d, convs: Sequence[nn.Conv2d]) -> None:
    """Let convolutions, one or several that are summed, compute what `norm` makes of their sum."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (_exact(norm.running_var) + norm.eps).rsqrt()
    if norm.weight is not None:
        scale *= _exact(norm.weight)
    shift = -_exact(norm.running_mean) * scale
    if norm.bias is not None:
        shift += _exact(norm.bias)
    for conv in convs:
        bias = shift if conv.bias is None else shift + _exact(conv.bias) * scale
        _set(conv, _exact(conv.weight) * scale[:, None, None, None], bias)
        shift = torch.zeros_like(shift)  # it is added once


def _set(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    """Give a convolution weights and a bias, rounded to what it computes in; one without bias needs none of zeros."""
    with torch.no_grad():
        conv.weight.copy_(weight)
        if conv.bias is not None or bias.any():
            conv.bias = nn.Parameter(bias.to(conv.weight), requires_grad=False)


def _exact(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().double()


def flow(network: nn.Module) -> fx.Graph:
    """Return which module reads the output of which in evaluation, without running any.

    Modules without convolution and batch norm are taken as a whole. The graph's nodes name modules of `network`.
    """
    with _one_at_a_time:
        return _Tracer().trace(network)


_one_at_a_time = threading.Lock()


class _Tracer(fx.Tracer):
    """Follows calls of modules in one thread: fx reroutes those of all threads, where networks may be running."""

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.get_ident()

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Take down a call, or in another thread simply make it."""
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is taken as a whole."""
        kinds = (nn.Conv2d, nn.BatchNorm2d)
        return isinstance(m, kinds) or not any(isinstance(each, kinds) for each in m.modules())


def module_of(network: nn.Module, node: fx.Node) -> nn.Module | None:
    """Return the module that a node of `flow` calls; None for other nodes."""
    return network.get_submodule(str(node.target)) if node.op == "call_module" else None


def fold_normalisation(
    network: nn.Module,
    mean: Sequence[float],
    std: Sequence[float],
    mean_image: npt.NDArray[np.float32] | None = None,
) -> nn.Module:
    """Return a copy of a network for normalised images that takes pixels of 0…255, uint8 or float, N×C×H×W.

    The images were (pixel / 255 − mean) / std, with `mean` and `std` one number a channel; those of the size of
    `mean_image` (H×W×C) are centred by it instead of `mean`, as in `Preprocessing`. Raises UserError where the images
    enter anything but one convolution.
    """
    folded = copy.deepcopy(network).eval().requires_grad_(False)
    images, *nodes = flow(folded).nodes
    readers = [node for node in nodes if node in images.users]
    conv = module_of(folded, readers[0])
    runs = [node.target for node in nodes].count(readers[0].target)
    if not (isinstance(conv, nn.Conv2d) and len(readers) == runs == 1):
        raise UserError(
            "Normalisation folds into a first convolution, and this network does not begin with one.\n"
            "Normalise the images outside of the network."
        )
    folded.set_submodule(str(readers[0].target), PixelConvolution(conv, mean, std, mean_image).eval())
    return folded


class PixelConvolution(nn.Module):
    """A convolution of normalised images, `conv`, as one of pixels 0…255: N×C×H×W → N×out_channels×….

    1 / (255·std) goes into the weights. The mean is taken from the pixels as they become floating-point numbers, which
    they must in any case. In a bias it would be wrong at the border, whose zeros are those of normalised images, and
    in bfloat16 the rounding of the weights would come out multiplied by all of it. `mean_image` (C×H×W) takes its
    place for images of that size.
    """

    mean: Tensor
    mean_image: Tensor | None

    def __init__(
        self,
        conv: nn.Conv2d,
        mean: Sequence[float],
        std: Sequence[float],
        mean_image: npt.NDArray[np.float32] | None = None,
    ) -> None:
        super().__init__()
        assert len(mean) == len(std) == conv.in_channels, (mean, std, conv)
        centre, unit = (255 * torch.tensor(values, dtype=torch.float64) for values in (mean, std))
        self.register_buffer("mean", centre[:, None, None].to(conv.weight))
        self.register_buffer("mean_image", None)
        if mean_image is not None:
            self.mean_image = (255 * torch.from_numpy(mean_image).double()).permute(2, 0, 1).to(conv.weight)
        by_group = unit.view(conv.groups, 1, -1).expand(-1, conv.out_channels // conv.groups, -1)
        with torch.no_grad():
            conv.weight.copy_(_exact(conv.weight) / by_group.reshape(*conv.weight.shape[:2], 1, 1))
        self.conv = conv

    def forward(self, pixels: Tensor) -> Tensor:
        """Return what the convolution makes of the normalised images."""
        has_image = self.mean_image is not None and self.mean_image.shape[1:] == pixels.shape[2:]
        centred = pixels - (self.mean_image if has_image else self.mean)  # type: ignore[operator]
        convolved: Tensor = self.conv(centred.to(self.conv.weight.dtype))
        return convolved
