"""What a network costs: parameters, multiply-adds and activations, per layer, per stage and in all.

Counted by running the network on the meta device, where tensors have shapes and no contents, with the formulas of
torch's own FLOP counter.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakTensorKeyDictionary

from resnext import catalog
from resnext.errors import UserError
from resnext.layers import Network

LARGEST_IMAGE = 65_536  # pixels on a side: beyond, counts of bytes no longer fit a machine's words


@dataclass(frozen=True)
class LayerCost:
    """One layer that ran: `output` is its shape without the batch; `macs` are those of one image.

    `activations` are the numbers that it puts out if it is a convolution, and otherwise 0.
    """

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    macs: int
    activations: int


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
    parameters, macs, activations). `options` are those of `catalog.create`; image size and classes are the
    published ones where None.
    Raises UserError as `catalog.create` and `count` do.
    """
    found = catalog.resolve(name)
    image_size = found.image_size if image_size is None else image_size
    if type(image_size) is not int or image_size > LARGEST_IMAGE:
        raise UserError(f"The image size is {image_size!r}. Give a side from 1 to {LARGEST_IMAGE:,} pixels.")
    with torch.device("meta"):
        network = catalog.create(name, num_classes=num_classes, in_channels=in_channels, **options)
    cost = _count(network, image_size, in_channels)
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

    The network stays as it is. Raises UserError for an image smaller than it can take.
    """
    return _count(_meta_twin(network), image_size, in_channels)


def _meta_twin(network: nn.Module) -> nn.Module:
    """Return a copy with its tensors on the meta device; their contents are not copied."""
    memo: dict[int, object] = {
        id(parameter): nn.Parameter(parameter.to("meta"), requires_grad=False) for parameter in network.parameters()
    }
    memo |= {id(buffer): buffer.to("meta") for buffer in network.buffers()}
    return copy.deepcopy(network, memo)


def _count(network: nn.Module, image_size: int, in_channels: int) -> Complexity:
    """Return what a network on the meta device costs, and leave hooks in it."""
    if isinstance(network, Network):
        network.check_image_size(image_size)
    network.eval()
    counter = _Counter()
    passes = _record_passes(network, counter)
    with torch.no_grad(), counter:
        logits = network(torch.empty(1, in_channels, image_size, image_size, device="meta"))
    layers = tuple(_layer_costs(network, passes))
    stages = tuple(_stage_costs(network, passes, layers))
    return Complexity(
        parameters=sum(layer.parameters for layer in layers),
        training_parameters=sum(parameter.numel() for parameter in network.parameters()),
        macs=counter.macs,
        depth=counter.depth_of(logits),
        activations=sum(layer.activations for layer in layers),
        stages=stages,
        layers=layers,
    )


def _broadcast(*arguments: object, **options: object) -> Tensor:
    first, *others = (tensor.shape for tensor in _tensors((*arguments, *options.values())))
    shape = first if all(other == first for other in others) else torch.broadcast_shapes(first, *others)  # type: ignore[no-untyped-call]
    return torch.empty(shape, device="meta")


def _concatenation(tensors: list[Tensor], dim: int = 0) -> Tensor:
    shape = list(tensors[0].shape)
    shape[dim] = sum(tensor.shape[dim] for tensor in tensors)
    return torch.empty(shape, device="meta")


def _normalised(images: Tensor, *arguments: object) -> tuple[Tensor, Tensor, Tensor]:
    return images.new_empty(images.shape), images.new_empty(0), images.new_empty(0)


# On the meta device torch runs these, and all that works number by number, in Python, and imports its compiler first,
# which takes a second. What stands in for them has the same shapes; there are no contents.
_STAND_INS: dict[OpOverload[..., Any], Callable[..., Any]] = {
    torch.ops.aten.addmm.default: lambda bias, left, right, **scales: left @ right,
    torch.ops.aten.cat.default: _concatenation,
    torch.ops.aten.mean.dim: torch.sum,
    torch.ops.aten.native_batch_norm.default: _normalised,
}


def _stand_in(func: OpOverload[..., Any]) -> Callable[..., Any]:
    """Return what gives the shapes that `func` does: itself, or something faster."""
    if torch.Tag.pointwise in func.tags and not func._schema.is_mutable:
        return _broadcast
    return _STAND_INS.get(func, func)


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, adds up multiply-adds, and follows how many weighted layers lie behind each tensor, at most.

    The formulas are those of torch's FlopCounterMode; the mode itself would import torch's compiler, and keep a
    count for every module at every level.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._formulas = FlopCounterMode(display=False).flop_registry
        self._behind: MutableMapping[Tensor, int] = WeakTensorKeyDictionary()
        self._flops = 0

    @property
    def macs(self) -> int:
        """Multiply-adds until now."""
        return self._flops // 2

    def depth_of(self, tensor: Tensor) -> int:
        """Return the number of convolutions and linear layers on the longest path to `tensor`."""
        return self._behind.get(tensor, 0)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to skip it, torch would import it

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run `func`, count what it does and note what it puts out."""
        kwargs = kwargs or {}
        output = _stand_in(func)(*args, **kwargs)
        formula = self._formulas.get(func.overloadpacket)
        if formula is not None:
            self._flops += formula(*args, **kwargs, out_val=output)
        behind = max(map(self.depth_of, _tensors((*args, *kwargs.values()))), default=0)
        for tensor in _tensors((output,)):
            self._behind[tensor] = behind + (formula is not None)
        return output


def _tensors(values: Iterable[object]) -> Iterator[Tensor]:
    """Yield the tensors among an operator's arguments or results, and those in lists there."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from (each for each in value if isinstance(each, Tensor))


@dataclass
class _Pass:
    """What became of the images in one module."""

    output: tuple[int, ...]
    macs: int = 0
    activations: int = 0


def _record_passes(network: nn.Module, counter: _Counter) -> dict[str, _Pass]:
    """Return a dict that fills, as the modules run, with their names and what they did."""
    passes: dict[str, _Pass] = {}
    before: list[int] = []

    def start(module: nn.Module, inputs: object) -> None:
        before.append(counter.macs)

    def stop(name: str) -> Callable[[nn.Module, object, object], None]:
        def record(module: nn.Module, inputs: object, output: object) -> None:
            macs = counter.macs - before.pop()
            if isinstance(output, Tensor):
                own = passes.setdefault(name, _Pass(()))
                own.output = tuple(output.shape[1:])
                own.macs += macs
                own.activations += math.prod(own.output) if isinstance(module, nn.Conv2d) else 0

        return record

    for name, module in network.named_modules():
        module.register_forward_pre_hook(start)
        module.register_forward_hook(stop(name))
    return passes


def _layer_costs(network: nn.Module, passes: dict[str, _Pass]) -> Iterator[LayerCost]:
    """Yield, in the order in which they ran, the layers: modules that hold parameters or no other modules."""
    modules = dict(network.named_modules())
    for name, own in passes.items():
        module = modules[name]
        parameters = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        is_leaf = not any(module.children()) and not isinstance(module, nn.Identity)
        if parameters or is_leaf:
            yield LayerCost(name, type(module).__name__, own.output, parameters, own.macs, own.activations)


def _stage_costs(network: nn.Module, passes: dict[str, _Pass], layers: Iterable[LayerCost]) -> Iterator[StageCost]:
    """Yield the sums over the layers of each child that ran."""
    for name, _ in network.named_children():
        if name in passes:
            own = [layer for layer in layers if layer.name.split(".")[0] == name]
            yield StageCost(
                name,
                passes[name].output,
                parameters=sum(layer.parameters for layer in own),
                macs=sum(layer.macs for layer in own),
                activations=sum(layer.activations for layer in own),
            )
