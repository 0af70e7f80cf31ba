"""What a module does to its images, step by step: traced from the module itself, never written down twice."""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from resnext.layers import GlobalAveragePool, LocalResponseNorm, PublishedSize, ZeroPadShortcut
from resnext.networks.stochastic_depth import AveragedShortcut
from resnext.residual import ResidualBlock

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """One step: what it is in a few words, `details`, and what comes with it right before and after."""

    kind: Literal["convolution", "linear", "pool", "shortcut", "small"]
    name: str
    details: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fork:
    """Branches of the same images, and what brings them together; `output` is the shape behind it, C×H×W."""

    branches: tuple[Series, ...]
    join: Literal["sum", "concatenation"]
    output: Shape


Series = tuple[Step | Fork, ...]


@dataclass(frozen=True)
class Flow:
    """All steps of a module, and the shapes of one image before and behind it."""

    series: Series
    input: Shape
    output: Shape


def follow(module: nn.Module, shape: Shape) -> Flow:
    """Return what `module`, in evaluation, does to one image of `shape` C×H×W."""
    graph = _Graph(module, shape)
    series = graph.series(graph.first)
    return Flow(_merged(series, early=_starts_with_norm(series)), shape, graph.shapes[graph.last])


class _Tracer(fx.Tracer):
    """Looks into modules that hold others, and takes the rest as steps."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether `m` is a step."""
        return not any(m.children())


class _Shapes(fx.Interpreter):
    """Runs a traced module and keeps the shape of one image behind every step."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: dict[fx.Node, Shape] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one step."""
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.found[n] = tuple(result.shape[1:])
        return result


class _Graph:
    """The steps of a module as nodes, without those that change nothing."""

    def __init__(self, module: nn.Module, shape: Shape) -> None:
        module = module.to("meta").eval()
        traced = fx.GraphModule(module, _Tracer().trace(module))
        shapes = _Shapes(traced)
        with torch.no_grad():
            shapes.run(torch.empty(1, *shape, device="meta"))
        self.shapes = shapes.found
        self._modules = dict(traced.named_modules())
        self._survival = module.survival if isinstance(module, ResidualBlock) else None
        nodes = [node for node in traced.graph.nodes if node.op != "output" and self._origin(node) is node]
        self.first, self.last = nodes[0], nodes[-1]
        inputs = {node: [self._origin(each) for each in node.all_input_nodes] for node in nodes}
        self._users = {node: [user for user in nodes if node in inputs[user]] for node in nodes}
        self._steps = {node: self._step(node) for node in nodes if len(inputs[node]) == 1}
        self._behind = self._postdominators(nodes)

    def series(self, node: fx.Node, stop: fx.Node | None = None) -> Series:
        """Return the steps from `node` to before `stop`, or to the end."""
        items: list[Step | Fork] = []
        while node is not stop:
            if node in self._steps:
                items.append(self._steps[node])
            users = self._users[node]
            if not users:
                break
            if len(users) == 1:
                [node] = users
                continue
            join = self._behind[node][1]
            items.append(self._fork(users, join))
            node = join
        return tuple(items)

    def _fork(self, users: list[fx.Node], join: fx.Node) -> Fork:
        """Return the branches that begin with `users` and end before `join`; some may meet before."""
        groups: list[list[fx.Node]] = []
        for user in users:
            near = next((group for group in groups if self._meeting([*group, user]) is not join), None)
            if near is None:
                groups.append([user])
            else:
                near.append(user)
        branches = []
        for group in groups:
            meeting = self._meeting(group)
            if len(group) == 1:
                branches.append(self.series(group[0], join))
            else:
                branches.append((self._fork(group, meeting), *self.series(meeting, join)))
        if _is_sum(join):
            branches.sort(key=len, reverse=True)
        return Fork(tuple(branches), "sum" if _is_sum(join) else "concatenation", self.shapes[join])

    def _meeting(self, nodes: list[fx.Node]) -> fx.Node:
        """Return the first node through which all paths from `nodes` go."""
        first, *others = nodes
        return next(each for each in self._behind[first] if all(each in self._behind[other] for other in others))

    def _origin(self, node: fx.Node) -> fx.Node:
        """Return the node whose output `node` passes on: itself, if it does something."""
        passes = node.target is operator.mul and node.args[1] == 1
        if node.op == "call_module":
            module, [source] = self._modules[str(node.target)], node.all_input_nodes
            passes = isinstance(module, nn.Identity | PublishedSize) and self.shapes[node] == self.shapes[source]
        return self._origin(node.all_input_nodes[0]) if passes else node

    def _step(self, node: fx.Node) -> Step:
        if node.op == "call_module":
            return step_of(self._modules[str(node.target)], self.shapes[node])
        if node.target is operator.mul:
            factor = node.args[1]
            return Step("small", f"gate, p = {factor:.3g}" if factor == self._survival else f"× {factor:g}")
        assert node.target is F.relu, node.target
        return Step("small", "ReLU")

    def _postdominators(self, nodes: list[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
        """Return, for every node, those through which all its paths to the end go: itself first, then the nearest."""
        found: dict[fx.Node, list[fx.Node]] = {}
        for node in reversed(nodes):
            users = self._users[node]
            common = [each for each in found[users[0]] if all(each in found[user] for user in users)] if users else []
            found[node] = [node, *common]
        return found


def _is_sum(node: fx.Node) -> bool:
    return node.target in (operator.add, operator.iadd)


def _starts_with_norm(series: Series) -> bool:
    """Whether batch norm comes first: these are blocks with pre-activation."""
    if isinstance(series[0], Fork):
        return any(branch and _starts_with_norm(branch) for branch in series[0].branches)
    return series[0].name == "BN"


def _merged(series: Series, *, early: bool) -> Series:
    """Merge batch norms, ReLUs and dropouts into the layer before them, or if they come `early` the one behind."""
    items: list[Step | Fork] = []
    words: list[str] = []

    def place_words() -> None:
        last = items[-1] if items else None
        if words and not early and isinstance(last, Step) and last.kind in ("convolution", "linear"):
            items[-1] = replace(last, after=tuple(words))
        elif words:
            items.append(Step("small", ", ".join(words)))
        words.clear()

    for item in series:
        if isinstance(item, Step) and item.name.startswith(("BN", "ReLU", "dropout")):
            words.append(item.name)
        elif isinstance(item, Step) and item.kind == "convolution" and early:
            items.append(replace(item, before=tuple(words)))
            words.clear()
        else:
            place_words()
            branches = tuple(_merged(branch, early=early) for branch in item.branches) if isinstance(item, Fork) else ()
            items.append(replace(item, branches=branches) if isinstance(item, Fork) else item)
    place_words()
    return tuple(items)


def _size(value: int | tuple[int, ...]) -> str:
    height, width = (value, value) if isinstance(value, int) else value
    return f"{height}×{width}"


def _window(module: nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d) -> tuple[str, ...]:
    """Return in words how a window moves, where it doesn't keep the size of the image."""
    kernel, stride, padding = (
        value if isinstance(value, int) else max(map(int, value))
        for value in (module.kernel_size, module.stride, module.padding)
    )
    words = [f"stride {stride}"] if stride > 1 else []
    if kernel > stride and not padding:
        words.append("no padding")
    if getattr(module, "ceil_mode", False):
        words.append("rounds up")
    return tuple(words)


def step_of(module: nn.Module, output: Shape) -> Step:
    """Return the step that `module` is; `output` is the shape of one image behind it."""
    match module:
        case nn.Conv2d():
            groups = (f"{module.groups} groups",) if module.groups > 1 else ()
            name = f"{_size(module.kernel_size)}, {module.in_channels} → {module.out_channels}"
            return Step("convolution", name, groups + _window(module))
        case nn.Linear():
            return Step("linear", f"linear, {module.in_features} → {module.out_features}")
        case nn.MaxPool2d():
            return Step("pool", f"max-pool {_size(module.kernel_size)}", _window(module))
        case nn.AvgPool2d():
            return Step("pool", f"average {_size(module.kernel_size)}", _window(module))
        case GlobalAveragePool():
            return Step("pool", "global average")
        case PublishedSize():
            return Step("pool", f"average to {_size(module.side)}")
        case ZeroPadShortcut():
            details = (f"every {module.stride}nd pixel",) if module.stride == 2 else ()
            return Step("shortcut", f"+ {module.extra} channels of 0", details)
        case AveragedShortcut():
            return Step("shortcut", f"+ {module.extra} channels of 0", (f"mean of {_size(module.stride)}",))
        case LocalResponseNorm():
            return Step("pool", "response norm", (f"over {module.n} channels",))
        case nn.BatchNorm2d():
            return Step("small", "BN")
        case nn.ReLU():
            return Step("small", "ReLU")
        case nn.Dropout():
            return Step("small", f"dropout {module.p:g}")
        case nn.Flatten():
            return Step("small", f"flatten to {output[0]}")
    raise AssertionError(f"no words for {module}")
