"""The maps of a batch stacked into one tall map for the 1×1 convolutions of an OpenVINO graph.

A 1×1 convolution does not care where a pixel lies, so N maps of h×w may stand on each other as one map of N·h×w: the
same function. It pays where one map does not fill the processor's tiles: the 49 pixels of 7×7 take four tiles of 16
rows and fill three, the 784 of sixteen such maps fill 49. Channels are last in memory, where a stacked batch and one
that is not are the same bytes. In an OpenVINO graph channels are second, but a change of shape that is written down as
`_reshaped` does it is seen through when the graph is compiled, so that nothing is moved.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

Node = Any
Output = Any
Graph = Any
"""OpenVINO's nodes, what they put out, and its models; the library itself is `openvino.py`'s to import."""

ELEMENTWISE = ("Add", "Clamp", "FakeQuantize", "Multiply", "Relu", "Subtract")
CHANNELS_SECOND = (0, 3, 1, 2)


def stackable_sides(graph: Graph) -> tuple[int, ...]:
    """Return the longer sides, in pixels, of the maps between 1×1 convolutions, ascending."""
    maps = _maps(graph)
    found = {max(maps[_key(node.output(0))][1:]) for node in graph.get_ordered_ops() if _is_stackable_conv(node, maps)}
    return tuple(sorted(found))


def with_stacked_maps(graph: Graph, side: int, ops: ModuleType) -> Graph:
    """Return a copy in which 1×1 convolutions on maps of at most side×side pixels run on all maps of a batch at once.

    What is elementwise stays with the convolution that it follows. `ops` are the operations (an opset) to build with.
    """
    graph = graph.clone()
    maps = _maps(graph)
    stacked: set[tuple[str, int]] = set()
    changed: dict[tuple[str, int], Output] = {}
    for node in graph.get_ordered_ops():
        sources = [source for source in _sources(node) if _key(source) in maps]
        wanted = _is_stackable_conv(node, maps) or (
            _is_stackable_elementwise(node, maps) and any(_key(source) in stacked for source in sources)
        )
        wanted = wanted and max(maps[_key(node.output(0))][1:]) <= side
        for place, source in enumerate(_sources(node)):
            key = _key(source)
            if key in maps and wanted != (key in stacked):
                if key not in changed:
                    changed[key] = _reshaped(source, maps[key], ops, stack=wanted)
                node.input(place).replace_source_output(changed[key])
        if wanted:
            stacked.add(_key(node.output(0)))
    graph.validate_nodes_and_infer_types()
    return graph


def _reshaped(source: Output, sizes: tuple[int, int, int], ops: ModuleType, *, stack: bool) -> Output:
    """Return maps N×C×h×w stacked as 1×C×N·h×w, or stacked ones as they were."""
    channels, height, width = sizes
    rows = ops.transpose(ops.reshape(source, np.array([0, 0, -1]), True), np.array([0, 2, 1]))  # N × h·w × C
    target = [1, -1, width, channels] if stack else [-1, height, width, channels]
    return ops.transpose(ops.reshape(rows, np.array(target), False), np.array(CHANNELS_SECOND)).output(0)


def _maps(graph: Graph) -> dict[tuple[str, int], tuple[int, int, int]]:
    """Return (C, h, w) of everything N×C×h×w that depends on the graph's input."""
    moving: set[str] = set()
    maps: dict[tuple[str, int], tuple[int, int, int]] = {}
    for node in graph.get_ordered_ops():
        if node.get_type_name() != "Parameter" and not any(
            source.get_node().get_name() in moving for source in _sources(node)
        ):
            continue
        moving.add(node.get_name())
        for output in node.outputs():
            shape = output.get_partial_shape()
            if shape.rank.is_static and len(shape) == 4 and all(shape[axis].is_static for axis in (1, 2, 3)):
                channels, height, width = (shape[axis].get_length() for axis in (1, 2, 3))
                maps[_key(output)] = (channels, height, width)
    return maps


def _is_stackable_conv(node: Node, maps: dict[tuple[str, int], tuple[int, int, int]]) -> bool:
    """Whether a node is a 1×1 convolution without padding, whose strides start anew at every map that is stacked."""
    if node.get_type_name() != "Convolution" or list(node.input(1).get_shape())[2:] != [1, 1]:
        return False
    attributes = node.get_attributes()
    keys = _key(node.input_value(0)), _key(node.output(0))
    if any((*attributes["pads_begin"], *attributes["pads_end"])) or not all(key in maps for key in keys):
        return False
    sizes, strides = maps[keys[0]][1:], attributes["strides"]
    return all(size % stride == 0 for size, stride in zip(sizes, strides, strict=True))


def _is_stackable_elementwise(node: Node, maps: dict[tuple[str, int], tuple[int, int, int]]) -> bool:
    """Whether a node does the same to every pixel of all maps, all of which have the size of its output."""
    if node.get_type_name() not in ELEMENTWISE or (own := maps.get(_key(node.output(0)))) is None:
        return False
    return all(
        maps[_key(source)] == own if _key(source) in maps else _is_per_channel(source) for source in _sources(node)
    )


def _is_per_channel(source: Output) -> bool:
    """Whether an input has one number for all pixels, or one for each channel."""
    shape = source.get_partial_shape()
    if not shape.is_static:
        return False
    sizes = list(shape.to_shape())
    return int(np.prod(sizes)) == 1 or (len(sizes) in (3, 4) and int(np.prod(sizes)) == sizes[-3])


def _sources(node: Node) -> list[Output]:
    return [each.get_source_output() for each in node.inputs()]


def _key(output: Output) -> tuple[str, int]:
    return output.get_node().get_name(), output.get_index()
