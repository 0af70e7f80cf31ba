"""Maps of a batch stacked for 1×1 convolutions: the same function, image by image, and what else there is stays."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from optimised import as_after_training
from resnext.data.preprocessing import Preprocessing
from resnext.engine import TorchEngine
from resnext.inference.engines import openvino, stacking
from resnext.inference.engines.openvino import OpenVINOEngine, Settings

SIDE = 32
PREPROCESSING = Preprocessing(SIDE, SIDE)


def some_pixels(count: int, side: int = SIDE) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (count, side, side, 3), np.uint8)


@pytest.fixture(scope="module")
def graph() -> Any:
    return openvino.convert(as_after_training("cifar_resnext20_4x4d"), PREPROCESSING)


@pytest.fixture(scope="module")
def quantised(graph: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import nncf

        return nncf.quantize(graph, nncf.Dataset([some_pixels(8)[k : k + 1] for k in range(8)]), subset_size=8)


def shapes(graph: Any, kind: str = "Convolution") -> dict[str, tuple[int, ...]]:
    """Return the shapes that go into convolutions, for two images."""
    fixed = graph.clone()
    fixed.reshape([2, SIDE, SIDE, 3])
    nodes = [node for node in fixed.get_ordered_ops() if node.get_type_name() == kind]
    return {node.get_friendly_name(): tuple(node.input(0).get_shape()) for node in nodes}


def reshapes(graph: Any) -> int:
    return sum(node.get_type_name() == "Reshape" for node in graph.get_ordered_ops())


def test_sides_are_those_of_maps_between_1x1_convolutions(graph: Any, quantised: Any) -> None:
    assert stacking.stackable_sides(graph) == stacking.stackable_sides(quantised) == (8, 16, 32)


@pytest.mark.parametrize("side", [8, 16, 32])
@pytest.mark.parametrize("merged", [False, True])
def test_stacking_a_quantised_network_changes_no_bit(quantised: Any, side: int, merged: bool) -> None:
    start = openvino.merge_groups(quantised, dict.fromkeys(openvino.grouped_layers(quantised), 2))
    start = start if merged else quantised
    stacked = openvino.stack_maps(start, side)
    pixels = some_pixels(11)
    for settings in (Settings("int8", 4, 2, 2), Settings("int8", 1, 1, 1)):
        expected = OpenVINOEngine.from_model(start, settings)(pixels)
        np.testing.assert_array_equal(OpenVINOEngine.from_model(stacked, settings)(pixels), expected)
    assert stacking.stackable_sides(start) == (8, 16, 32), "the graph itself stays as it was"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_stacking_computes_the_same_in_other_precisions(graph: Any, precision: Any) -> None:
    stacked = openvino.stack_maps(graph, 16)
    pixels, settings = some_pixels(9), Settings(precision, 4, 1, 1)
    expected = OpenVINOEngine.from_model(graph, settings)(pixels)
    tolerance = {"fp32": 1e-5, "bf16": 2e-2}[precision] * np.abs(expected).max()
    np.testing.assert_allclose(OpenVINOEngine.from_model(stacked, settings)(pixels), expected, atol=tolerance)


def test_1x1_convolutions_on_small_maps_see_one_tall_map_and_all_others_the_batch(graph: Any) -> None:
    before, after = shapes(graph), shapes(openvino.stack_maps(graph, 8))
    assert before.keys() == after.keys()
    expand = "stage3.block2.expand.conv"
    batch, channels, height, width = before[expand]
    assert (batch, height, width) == (2, 8, 8)
    assert after[expand] == (1, channels, 16, 8)
    for name in before:
        small = name.startswith("stage3") and name != "stage3.block1.reduce.conv"  # which still runs on 16×16
        assert (after[name][0] == 1) == small, name
    grouped = shapes(openvino.stack_maps(graph, 8), "GroupConvolution")
    assert grouped == shapes(graph, "GroupConvolution")


def test_nothing_is_stacked_below_the_smallest_map(graph: Any) -> None:
    assert reshapes(openvino.stack_maps(graph, 7)) == reshapes(graph)


def test_what_is_elementwise_stays_with_its_convolution(graph: Any) -> None:
    """Between a convolution and its ReLU, or a sum, nothing may stand: it would no longer be fused with it."""
    stacked = openvino.stack_maps(graph, 32)
    for node in stacked.get_ordered_ops():
        if node.get_type_name() in ("Convolution", "GroupConvolution"):
            follow = {target.get_node().get_type_name() for target in node.output(0).get_target_inputs()}
            assert follow <= {"Add", "Relu"}, node.get_friendly_name()


@pytest.mark.parametrize(
    ("name", "options", "side"),
    [
        ("cifar_resnext20_4x4d", {"shortcut": "A"}, 32),
        ("cifar_preact_resnet20", {"block": "bottleneck"}, 32),
        ("googlenet", {}, 64),
        ("inception_v3", {}, 96),
        ("resnet50", {"blocks": (1, 1, 1, 1), "width": 8}, 64),
    ],
)
def test_other_networks_agree_with_torch_too(name: str, options: dict[str, Any], side: int) -> None:
    try:
        network = as_after_training(name, **options)
    except ValueError as error:
        pytest.fail(f"{name} {options}: {error}")
    preprocessing = Preprocessing(side, side)
    pixels = some_pixels(3, side)
    expected = TorchEngine(network, preprocessing, device="cpu", batch_shapes=(3,))(pixels)
    graph = openvino.convert(network, preprocessing)
    sides = stacking.stackable_sides(graph)
    assert sides
    for stacked in (openvino.stack_maps(graph, sides[0]), openvino.stack_maps(graph, sides[-1])):
        logits = OpenVINOEngine.from_model(stacked, Settings("fp32", 2, 1, 1))(pixels)
        np.testing.assert_allclose(logits, expected, atol=1e-4 * max(1, np.abs(expected).max()))


def hand_made(constant: np.ndarray, *, strides: int = 1, pads: int = 0, side: int = 6) -> Any:
    """Return a graph of two 1×1 convolutions with a constant added to what is between them."""
    ov = openvino.library()
    ops, generator = ov.opset13, np.random.default_rng(0)
    pixels = ops.parameter([-1, side, side, 3], np.uint8, name="pixels")
    images = ops.transpose(ops.convert(pixels, np.float32), np.array([0, 3, 1, 2]))
    weights = [generator.normal(size=shape).astype(np.float32) for shape in ((5, 3, 1, 1), (4, 5, 1, 1))]
    first = ops.convolution(images, weights[0], [1, 1], [0, 0], [0, 0], [1, 1])
    added = ops.relu(ops.add(first, constant))
    second = ops.convolution(added, weights[1], [strides] * 2, [pads] * 2, [pads] * 2, [1, 1])
    return ov.Model([ops.reduce_mean(second, np.array([2, 3]))], [pixels], "hand made")


@pytest.mark.parametrize(
    "constant",
    [
        np.float32(3),
        np.arange(5, dtype=np.float32).reshape(5, 1, 1),
        np.arange(5, dtype=np.float32).reshape(1, 5, 1, 1),
        np.arange(36, dtype=np.float32).reshape(1, 1, 6, 6),
        np.arange(180, dtype=np.float32).reshape(1, 5, 6, 6),
        np.arange(6, dtype=np.float32),
    ],
    ids=["number", "channels 3-d", "channels 4-d", "map", "channels and map", "columns"],
)
@pytest.mark.parametrize(("strides", "pads"), [(1, 0), (2, 0), (1, 1)])
def test_what_depends_on_the_place_of_a_pixel_is_not_stacked(constant: np.ndarray, strides: int, pads: int) -> None:
    graph = hand_made(constant, strides=strides, pads=pads)
    stacked = openvino.stack_maps(graph, 8)
    assert reshapes(stacked) > reshapes(graph), "the first convolution is stacked in any case"
    pixels = some_pixels(5, 6)
    engines = [OpenVINOEngine.from_model(one, Settings("fp32", 4, 1, 1)) for one in (graph, stacked)]
    np.testing.assert_allclose(engines[1](pixels), engines[0](pixels), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(("side", "shape"), [(6, (1, 5, 12, 6)), (5, (2, 5, 5, 5))])
def test_strides_are_stacked_where_they_divide_the_map(side: int, shape: tuple[int, ...]) -> None:
    """Otherwise the second map would begin between two steps."""
    graph = hand_made(np.float32(1), strides=2, side=side)
    stacked = openvino.stack_maps(graph, side)
    fixed = stacked.clone()
    fixed.reshape([2, side, side, 3])
    strided = next(node for node in fixed.get_ordered_ops() if 2 in node.get_attributes().get("strides", ()))
    assert tuple(strided.input(0).get_shape()) == shape
    pixels = some_pixels(5, side)
    engines = [OpenVINOEngine.from_model(one, Settings("fp32", 4, 1, 1)) for one in (graph, stacked)]
    np.testing.assert_allclose(engines[1](pixels), engines[0](pixels), rtol=1e-5, atol=1e-3)


def test_images_do_not_touch_one_another(quantised: Any) -> None:
    engine = OpenVINOEngine.from_model(openvino.stack_maps(quantised, 32), Settings("int8", 4, 1, 1))
    pixels = some_pixels(4)
    expected = engine(pixels)
    pixels[1] = 255
    np.testing.assert_array_equal(engine(pixels)[[0, 2, 3]], expected[[0, 2, 3]])
