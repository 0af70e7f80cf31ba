"""A grouped convolution of an OpenVINO graph, rebuilt with groups merged; its weights may be quantised."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

Node = Any
Output = Any
"""OpenVINO's nodes, and what they put out; the library itself is `openvino.py`'s to import."""


def with_merged_groups(node: Node, factor: int, ops: ModuleType) -> Node:
    """Return the same convolution with `factor` groups at a time merged into one, block-diagonally.

    `ops` are the operations (an opset) to build it from. Of one group alone it is a plain convolution.
    """
    attributes = node.get_attributes()
    operation = ops.convolution if node.input(1).get_shape()[0] == factor else ops.group_convolution
    merged = operation(
        node.input_value(0),
        _merged_weights(node.input_value(1), factor, ops),
        attributes["strides"],
        attributes["pads_begin"],
        attributes["pads_end"],
        attributes["dilations"],
        attributes["auto_pad"],
    )
    merged.set_friendly_name(node.get_friendly_name())
    merged.output(0).set_names(node.output(0).get_names())
    return merged


def _merged_weights(weights: Output, factor: int, ops: ModuleType, zero: np.ndarray | None = None) -> Node:
    """Return what gives weights G×O×I×h×w with `factor` groups merged, built from the same operations.

    They are a constant, and what is between it and the convolution: Convert, Subtract and Multiply, or FakeQuantize.
    `zero` is the number of every channel that means zero.
    """
    node = weights.get_node()
    kind, operands = node.get_type_name(), node.input_values()
    if kind == "Constant":
        return ops.constant(_block_diagonal(node.data, factor, zero))
    others = [_per_channel(operand, weights) for operand in operands[1:]]
    inner = _merged_weights(operands[0], factor, ops, others[0] if kind == "Subtract" else zero)
    if kind == "Convert":
        return ops.convert(inner, weights.get_element_type().to_string())
    regrouped = [ops.constant(_regrouped(other, factor)) for other in others]
    if kind == "FakeQuantize":
        return ops.fake_quantize(inner, *regrouped, node.get_attributes()["levels"])
    assert kind in ("Subtract", "Multiply"), kind
    return (ops.subtract if kind == "Subtract" else ops.multiply)(inner, *regrouped)


def _per_channel(operand: Output, weights: Output) -> np.ndarray:
    """Return a constant, such as the scales of weights G×O×I×h×w, as an array G×O×1×1×1."""
    node = operand.get_node()
    if node.get_type_name() == "Convert":
        return _per_channel(node.input_value(0), weights).astype(operand.get_element_type().to_dtype())
    assert node.get_type_name() == "Constant", node.get_type_name()
    return np.broadcast_to(node.data, (*list(weights.get_shape())[:2], 1, 1, 1))


def _block_diagonal(weights: np.ndarray, factor: int, zero: np.ndarray | None) -> np.ndarray:
    """Return weights G×O×I×h×w as (G/k)×(k·O)×(k·I)×h×w; of one group alone without the first axis."""
    import torch

    from resnext.equivalence.merging import block_diagonal

    groups, outputs, inputs, *window = weights.shape

    def laid_out(values: np.ndarray) -> np.ndarray:
        merged: np.ndarray = block_diagonal(torch.tensor(values).flatten(0, 1), groups, factor).numpy()
        return merged

    merged = laid_out(weights)
    if zero is not None:
        diagonal = laid_out(np.ones(weights.shape, np.bool_))
        merged = np.where(diagonal, merged, zero.reshape(-1, 1, 1, 1).astype(weights.dtype))
    return _without_group(merged.reshape(groups // factor, factor * outputs, factor * inputs, *window))


def _regrouped(values: np.ndarray, factor: int) -> np.ndarray:
    groups, outputs = values.shape[:2]
    return _without_group(np.ascontiguousarray(values).reshape(groups // factor, factor * outputs, 1, 1, 1))


def _without_group(weights: np.ndarray) -> np.ndarray:
    return weights[0] if len(weights) == 1 else weights
