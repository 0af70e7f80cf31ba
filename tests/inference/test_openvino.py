"""The OpenVINO engine against eager torch: the same function, whatever is merged, quantised or padded."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from optimised import as_after_training
from resnext.data.preprocessing import Preprocessing
from resnext.engine import TorchEngine
from resnext.inference.engines import openvino
from resnext.inference.engines.openvino import OpenVINOEngine, Settings

SIDE = 32
FP32 = Settings("fp32", batch=4, streams=2, threads=1)
PREPROCESSING = Preprocessing(SIDE, SIDE)
LAYERS = {f"stage{number}.block1.spatial.conv": (4, 4 * 2 ** (number - 1)) for number in (1, 2, 3)}


def some_pixels(count: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (count, SIDE, SIDE, channels), np.uint8)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return as_after_training("cifar_resnext11_4x4d")


@pytest.fixture(scope="module")
def graph(network: nn.Module) -> Any:
    return openvino.convert(network, PREPROCESSING)


@pytest.fixture(scope="module")
def quantised(graph: Any) -> Any:
    """Return the graph as NNCF quantises it: int8 weights with a scale a channel."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import nncf

        return nncf.quantize(graph, nncf.Dataset([some_pixels(8)[k : k + 1] for k in range(8)]), subset_size=8)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 9, 70])
def test_it_gives_what_torch_gives_for_any_number_of_images(network: nn.Module, graph: Any, count: int) -> None:
    pixels = some_pixels(count)
    expected = TorchEngine(network, PREPROCESSING, device="cpu")(pixels)
    logits = OpenVINOEngine.from_model(graph, FP32)(pixels)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_logits_do_not_depend_on_batch_mates(graph: Any) -> None:
    engine, pixels = OpenVINOEngine.from_model(graph, FP32), some_pixels(9)
    together = engine(pixels)
    alone = np.concatenate([engine(pixels[row : row + 1]) for row in range(9)])
    np.testing.assert_allclose(alone, together, atol=1e-5)
    np.testing.assert_allclose(engine(pixels[::-1])[::-1], together, atol=1e-5)
    read_only = pixels.copy()
    read_only.flags.writeable = False
    np.testing.assert_array_equal(engine(read_only), together)


@pytest.mark.parametrize(
    ("name", "options", "side"),
    [
        ("cifar_preact_resnet14", {}, 32),
        ("cifar_resnext11_4x4d", {"shortcut": "A"}, 32),
        ("wrn_16_1", {}, 32),
        ("resnet18", {"blocks": (1, 1), "width": 8}, 40),
        ("alexnet", {"channels": (8, 16, 16, 16, 16), "hidden": 32}, 224),
        ("googlenet", {}, 64),
    ],
)
def test_other_networks_agree_with_torch_too(name: str, options: dict[str, Any], side: int) -> None:
    network = as_after_training(name, **options)
    preprocessing = Preprocessing(side, side)
    pixels = np.random.default_rng(1).integers(0, 256, (2, side, side, 3), np.uint8)
    expected = TorchEngine(network, preprocessing, device="cpu", batch_shapes=(2,))(pixels)
    logits = OpenVINOEngine.from_model(openvino.convert(network, preprocessing), Settings("fp32", 2, 1, 1))(pixels)
    np.testing.assert_allclose(logits, expected, atol=1e-4 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("with_mean_image", [False, True])
def test_normalisation_is_the_preprocessings_own(with_mean_image: bool) -> None:
    preprocessing = Preprocessing(SIDE, SIDE, 1, mean=(0.3,), std=(0.2,))
    if with_mean_image:
        image = np.random.default_rng(0).random((SIDE, SIDE, 1), np.float32)
        preprocessing = preprocessing.with_mean_image(image)
    identity = nn.Flatten()
    pixels = some_pixels(3, channels=1)
    logits = OpenVINOEngine.from_model(openvino.convert(identity, preprocessing), FP32)(pixels)
    np.testing.assert_allclose(logits, preprocessing.normalise(pixels).reshape(3, -1), atol=1e-6)


def test_bf16_differs_by_its_rounding_alone(graph: Any) -> None:
    pixels = some_pixels(6)
    exact = OpenVINOEngine.from_model(graph, FP32)(pixels)
    rounded = OpenVINOEngine.from_model(graph, Settings("bf16", 4, 1, 1))(pixels)
    # A few layers, each with an error of up to 2^-9 of its largest numbers.
    np.testing.assert_allclose(rounded, exact, atol=0.05 * np.abs(exact).max())
    if openvino.library().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES").count("BF16"):
        assert not np.array_equal(rounded, exact)


def test_grouped_layers_have_the_names_of_their_modules(network: nn.Module, graph: Any) -> None:
    assert openvino.grouped_layers(graph) == LAYERS
    modules = dict(network.named_modules())
    assert {name: modules[name].groups for name in LAYERS} == {name: groups for name, (groups, _) in LAYERS.items()}


def test_depthwise_convolutions_are_no_grouped_layers() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 3, groups=2), nn.Flatten()
    )
    assert openvino.grouped_layers(openvino.convert(network, PREPROCESSING)) == {"2": (2, 4)}


@pytest.mark.parametrize("factor", [2, 4])
def test_merged_groups_compute_the_same(graph: Any, factor: int) -> None:
    pixels = some_pixels(5)
    merged = openvino.merge_groups(graph, dict.fromkeys(LAYERS, factor))
    left = {name: (groups // factor, width * factor) for name, (groups, width) in LAYERS.items() if groups > factor}
    assert openvino.grouped_layers(merged) == left
    assert openvino.grouped_layers(graph) == LAYERS
    engines = [OpenVINOEngine.from_model(one, FP32) for one in (graph, merged)]
    np.testing.assert_allclose(engines[1](pixels), engines[0](pixels), atol=1e-5)


def test_one_layer_alone_can_be_merged_by_its_name_also_after_a_round_trip(graph: Any, tmp_path: Path) -> None:
    openvino.save_model(graph, tmp_path / "graph.xml")
    again = openvino.read_model((tmp_path / "graph.xml").read_bytes(), (tmp_path / "graph.bin").read_bytes())
    assert openvino.grouped_layers(again) == LAYERS
    merged = openvino.merge_groups(again, {"stage2.block1.spatial.conv": 2})
    assert openvino.grouped_layers(merged) == {**LAYERS, "stage2.block1.spatial.conv": (2, 16)}
    pixels = some_pixels(3)
    engines = [OpenVINOEngine.from_model(one, FP32) for one in (graph, merged)]
    np.testing.assert_allclose(engines[1](pixels), engines[0](pixels), atol=1e-5)


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("rest", ["fp32", "bf16"])
def test_merging_quantised_groups_changes_no_bit(quantised: Any, factor: int, rest: Any) -> None:
    settings, pixels = Settings("int8", 4, 2, 1, rest), some_pixels(9)
    layers = openvino.grouped_layers(quantised)
    assert layers == LAYERS
    merged = openvino.merge_groups(quantised, dict.fromkeys(layers, factor))
    engines = [OpenVINOEngine.from_model(one, settings) for one in (quantised, merged)]
    np.testing.assert_array_equal(engines[1](pixels), engines[0](pixels))


@pytest.mark.parametrize("kind", ["half", "zero point", "fake quantise"])
def test_every_way_to_hold_weights_is_merged_exactly(kind: str) -> None:
    ov = openvino.library()
    ops = ov.opset13
    generator = np.random.default_rng(0)
    integers = generator.integers(-100, 100, (4, 3, 2, 3, 3), np.int8)
    scales = generator.uniform(0.01, 0.02, (4, 3, 1, 1, 1)).astype(np.float32)
    if kind == "half":
        weights = ops.convert(ops.constant(integers.astype(np.float16) / 64), "f32")
    elif kind == "zero point":
        zeros = ops.convert(ops.constant(generator.integers(-9, 9, (4, 3, 1, 1, 1), np.int8)), "f32")
        weights = ops.multiply(ops.subtract(ops.convert(ops.constant(integers), "f32"), zeros), scales)
    else:
        weights = ops.fake_quantize(
            integers.astype(np.float32) / 64, -127 * scales, 127 * scales, -127 * scales, 127 * scales, levels=255
        )
    pixels = ops.parameter([-1, 9, 9, 8], np.uint8, name="pixels")
    images = ops.transpose(ops.convert(pixels, np.float32), np.array([0, 3, 1, 2]))
    conv = ops.group_convolution(images, weights, [1, 1], [1, 1], [0, 1], [1, 1])
    conv.set_friendly_name("conv")
    graph = ov.Model([ops.reshape(conv, np.array([0, -1]), True)], [pixels], "one")
    batch = generator.integers(0, 256, (4, 9, 9, 8), np.uint8)
    expected = OpenVINOEngine.from_model(graph, FP32)(batch)
    for factor in (2, 4):
        merged = OpenVINOEngine.from_model(openvino.merge_groups(graph, {"conv": factor}), FP32)(batch)
        np.testing.assert_allclose(merged, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_what_was_compiled_comes_back_with_the_same_bits(quantised: Any) -> None:
    settings, pixels = Settings("int8", 4, 2, 1), some_pixels(9)
    expected = OpenVINOEngine.from_model(quantised, settings)
    blobs = [openvino.export_model(openvino.compile_model(quantised, each)) for each in (settings.for_one(), settings)]
    again = OpenVINOEngine(
        settings,
        lambda: openvino.import_model(blobs[0], settings.for_one()),
        lambda: openvino.import_model(blobs[1], settings),
    )
    for count in (1, 9):
        np.testing.assert_array_equal(again(pixels[:count]), expected(pixels[:count]))


def test_models_are_opened_when_they_are_needed(graph: Any) -> None:
    opened: list[str] = []

    def opening(name: str, settings: Settings) -> Any:
        opened.append(name)
        return openvino.compile_model(graph, settings)

    engine = OpenVINOEngine(FP32, lambda: opening("one", FP32.for_one()), lambda: opening("many", FP32))
    pixels = some_pixels(9)
    assert opened == []
    for count, expected in (
        (1, ["one"]),
        (2, ["one"]),
        (3, ["one", "many"]),
        (2, ["one", "many"]),
        (9, ["one", "many"]),
    ):
        engine(pixels[:count])
        assert opened == expected
    assert engine.batch_size == 32
    assert OpenVINOEngine.from_model(graph, Settings("fp32", 24, 2, 2)).batch_size == 48


def test_layer_times_are_told_by_the_names_of_modules(graph: Any) -> None:
    times = openvino.layer_times(graph, FP32)
    assert {*LAYERS, "stem.conv", "head.fc", "normalise"} <= times.keys()
    assert all(milliseconds >= 0 for milliseconds in times.values())


def test_the_network_itself_stays_as_it_was(network: nn.Module) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.train()
    openvino.convert(network, PREPROCESSING)
    assert network.training
    network.eval()
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_telemetry_is_not_imported(graph: Any) -> None:
    loaded = [name for name, module in sys.modules.items() if name.startswith("openvino_telemetry") and module]
    assert loaded == []


def test_a_missing_library_is_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    assert openvino.is_available()
    openvino.library.cache_clear()
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert not openvino.is_available()
    assert "pip install 'resnext[cpu]'" in str(openvino.reason_unavailable())
    monkeypatch.undo()
    openvino.library.cache_clear()
    assert openvino.is_available()


def test_threads_may_share_an_engine(graph: Any) -> None:
    """Each gets the answers to its own images; without turns they would get one another's, or errors."""
    engine = OpenVINOEngine.from_model(graph, FP32)
    pixels = some_pixels(40)
    expected = engine(pixels)

    def ask(number: int) -> bool:
        count = (1, 9)[number % 2]
        start = number % (len(pixels) - count)
        return bool(np.allclose(engine(pixels[start : start + count]), expected[start : start + count], atol=1e-4))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(ask, range(200)))
