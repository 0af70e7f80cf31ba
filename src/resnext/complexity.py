"""What a network costs: parameters, multiply-adds and activations, per layer, per stage and in all.

Counted by running the network on the meta device, where tensors have shapes and no contents.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakTensorKeyDictionary

from resnext import catalog
from resnext.layers import Network


@dataclass(frozen=True)
class LayerCost:
    """One layer that ran: `output` is its shape without the batch; `macs` are those of one image."""

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    macs: int


@dataclass(frozen=True)
class StageCost:
    """One child of the network: stem, stage1 … stageN or head; `activations` as in `Complexity`."""

    name: str
    output: tuple[int, ...]
    parameters: int
    macs: int
    activations: int


@dataclass(frozen=True)
class Complexity:
    """What one image costs.

    `parameters` are those of the layers that ran; `training_parameters` also those that did not (auxiliary
    heads); `macs` multiply-adds of convolutions and linear layers; `depth` these layers on the longest path;
    `activations` the numbers that convolutions put out (arXiv:2003.13678 section 3.2).
    """

    parameters: int
    training_parameters: int
    macs: int
    depth: int
    activations: int
    stages: tuple[StageCost, ...]
    layers: tuple[LayerCost, ...]


def describe(
    name: str,
    *,
    image_size: int | None = None,
    num_classes: int | None = None,
    in_channels: int = 3,
    **options: object,
) -> dict[str, Any]:
    """Return what the network called `name` costs, ready for JSON.

    Keys: name, paper, image_size, parameters, training_parameters, macs, depth, activations, stages (each
    with name, output [C, H, W], parameters, macs, activations) and layers (each with name, kind, output,
    parameters, macs). `options` are those of `catalog.create`; image size and classes are the published ones
    where None.
    Raises UserError as `catalog.create` and `count` do.
    """
    found = catalog.resolve(name)
    image_size = found.image_size if image_size is None else image_size
    with torch.device("meta"):
        network = catalog.create(name, num_classes=num_classes, in_channels=in_channels, **options)
    cost = count(network, image_size, in_channels)
    return {
        "name": name,
        "paper": found.paper,
        "image_size": image_size,
        "parameters": cost.parameters,
        "training_parameters": cost.training_parameters,
        "macs": cost.macs,
        "depth": cost.depth,
        "activations": cost.activations,
        "stages": [{**asdict(stage), "output": list(stage.output)} for stage in cost.stages],
        "layers": [{**asdict(layer), "output": list(layer.output)} for layer in cost.layers],
    }


def count(network: nn.Module, image_size: int, in_channels: int = 3) -> Complexity:
    """Return what `network` costs for one image of in_channels×image_size×image_size.

    The network stays as it is. Raises UserError for an image smaller than its stride.
    """
    if isinstance(network, Network):
        network.check_image_size(image_size)
    twin = _meta_twin(network)
    outputs = _record_outputs(twin)
    flops, depths = FlopCounterMode(display=False), _LongestPath()
    with torch.no_grad(), flops, depths:
        depth = depths.of(twin(torch.empty(1, in_channels, image_size, image_size, device="meta")))
    macs = {name: sum(kinds.values()) // 2 for name, kinds in flops.get_flop_counts().items()}
    layers = tuple(_layer_costs(twin, outputs, macs))
    stages = tuple(_stage_costs(twin, outputs, layers))
    return Complexity(
        parameters=sum(layer.parameters for layer in layers),
        training_parameters=sum(parameter.numel() for parameter in network.parameters()),
        macs=flops.get_total_flops() // 2,
        depth=depth,
        activations=sum(stage.activations for stage in stages),
        stages=stages,
        layers=layers,
    )


def _meta_twin(network: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode with its tensors on the meta device; their contents are not copied."""
    memo: dict[int, object] = {
        id(parameter): nn.Parameter(parameter.to("meta"), requires_grad=False) for parameter in network.parameters()
    }
    memo |= {id(buffer): buffer.to("meta") for buffer in network.buffers()}
    return copy.deepcopy(network, memo).eval()


def _record_outputs(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return a dict that fills, as the modules run, with their names and the shapes that they put out."""
    outputs: dict[str, tuple[int, ...]] = {}

    def recorder(name: str) -> Callable[[nn.Module, object, object], None]:
        def record(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor):
                outputs[name] = tuple(output.shape[1:])

        return record

    for name, module in network.named_modules():
        module.register_forward_hook(recorder(name))
    return outputs


def _layer_costs(
    network: nn.Module, outputs: Mapping[str, tuple[int, ...]], macs: Mapping[str, int]
) -> Iterable[LayerCost]:
    """Yield, in the order in which they ran, the layers: modules that hold parameters or no other modules."""
    modules = dict(network.named_modules())
    for name, output in outputs.items():
        module = modules[name]
        parameters = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        is_leaf = not any(module.children()) and not isinstance(module, nn.Identity)
        if parameters or is_leaf:
            own_macs = macs.get(f"{type(network).__name__}.{name}", 0)
            yield LayerCost(name, type(module).__name__, output, parameters, own_macs)


def _stage_costs(
    network: nn.Module, outputs: Mapping[str, tuple[int, ...]], layers: Iterable[LayerCost]
) -> Iterable[StageCost]:
    """Yield the sums over the layers of each child that ran."""

    def is_convolution(layer: LayerCost) -> bool:
        return isinstance(network.get_submodule(layer.name), nn.Conv2d)

    for name, _ in network.named_children():
        if name in outputs:
            own = [layer for layer in layers if layer.name.split(".")[0] == name]
            yield StageCost(
                name,
                outputs[name],
                parameters=sum(layer.parameters for layer in own),
                macs=sum(layer.macs for layer in own),
                activations=sum(math.prod(layer.output) for layer in own if is_convolution(layer)),
            )


class _LongestPath(TorchFunctionMode):
    """While active, follows how many convolutions and linear layers lie behind each tensor, at most."""

    def __init__(self) -> None:
        super().__init__()
        self._behind: MutableMapping[Tensor, int] = WeakTensorKeyDictionary()

    def of(self, tensor: Tensor) -> int:
        """Return the number of weighted layers behind `tensor`."""
        return self._behind.get(tensor, 0)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run `func` and note its output."""
        output = func(*args, **(kwargs or {}))
        behind = max(map(self.of, _tensors((args, kwargs))), default=0)
        for tensor in _tensors(output):
            self._behind[tensor] = behind + (func in (F.conv2d, F.linear))
        return output


def _tensors(value: object) -> Iterable[Tensor]:
    """Yield the tensors in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from chain.from_iterable(map(_tensors, value.values()))
    elif isinstance(value, tuple | list):
        yield from chain.from_iterable(map(_tensors, value))
