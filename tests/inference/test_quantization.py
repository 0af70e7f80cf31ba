"""int8 by NNCF: integers in the graph, near the fp32 network, silent, and refused with a reason."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from resnext import catalog
from resnext.data.preprocessing import Preprocessing
from resnext.engine import TorchEngine
from resnext.errors import UserError
from resnext.inference import quantization
from resnext.inference.engines import openvino
from resnext.inference.engines.openvino import OpenVINOEngine, Settings
from resnext.inference.quantization import WAYS, Way, quantise

PREPROCESSING = Preprocessing(32, 32)


def pixels(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(3)
    made = catalog.create("cifar_resnext11_4x4d", num_classes=7)
    made(torch.from_numpy(PREPROCESSING.normalise(pixels(64, 0))))  # settles the batch norms
    return made.eval()


@pytest.fixture(scope="module")
def graph(network: nn.Module) -> Any:
    return openvino.convert(network, PREPROCESSING)


def logits(graph: Any, images: np.ndarray) -> np.ndarray:
    return OpenVINOEngine.from_model(graph, Settings("int8", 4, 1, 1))(images)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_it_is_int8_and_near_the_network(
    way: Way, network: nn.Module, graph: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    quantised = quantise(graph, iter([pixels(20, 1), pixels(12, 2)]), 32, way)
    kinds = [node.get_type_name() for node in quantised.get_ordered_ops()]
    assert kinds.count("FakeQuantize") >= 10
    images = pixels(33, 5)
    expected = TorchEngine(network, PREPROCESSING, device="cpu")(images)
    found = logits(quantised, images)
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert 1e-5 < error < 0.15
    assert capfd.readouterr() == ("", "")


def test_the_graph_that_was_given_stays_fp32(network: nn.Module, graph: Any) -> None:
    quantise(graph, iter([pixels(8, 1)]), 8)
    assert "FakeQuantize" not in [node.get_type_name() for node in graph.get_ordered_ops()]


def test_merged_groups_have_the_same_integers(graph: Any) -> None:
    """Else merging after quantising would be another function, and would need another proof."""
    quantised = quantise(graph, iter([pixels(16, 1)]), 16)
    layers = openvino.grouped_layers(quantised)
    assert layers
    images = pixels(9, 6)
    for factor in (2, 4):
        merged = openvino.merge_groups(quantised, dict.fromkeys(layers, factor))
        np.testing.assert_allclose(logits(merged, images), logits(quantised, images), atol=1e-4)


def test_no_image_is_a_mistake(graph: Any) -> None:
    with pytest.raises(UserError, match="no image to calibrate"):
        quantise(graph, iter([]), 0)


def test_without_nncf_it_says_how_to_get_it(graph: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(UserError, match=r"resnext\[cpu\]"):
        quantise(graph, iter([pixels(4, 1)]), 4)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert quantization.reason_unavailable() == quantization.MISSING
