"""The engine's protocol: batches of any size, rows that do not depend on each other, stable ranking."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import softmax

from resnext import catalog, engine
from resnext.data.preprocessing import Preprocessing
from resnext.engine import TorchEngine
from resnext.errors import UserError

PREPROCESSING = Preprocessing(image_size=32, resize=32)


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    built = catalog.create("cifar_resnet20")
    with torch.no_grad():
        for module in built.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
    return built


def pixels(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), np.uint8)


def test_logits_are_the_network_s_own(network: torch.nn.Module) -> None:
    batch = pixels(5)
    mean, std = np.array(PREPROCESSING.mean), np.array(PREPROCESSING.std)
    inputs = torch.from_numpy(((batch / 255 - mean) / std).transpose(0, 3, 1, 2)).float()
    with torch.inference_mode():
        expected = network.eval()(inputs).numpy()
    np.testing.assert_allclose(TorchEngine(network, PREPROCESSING)(batch), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 8, 9, 31, 33, 70])
def test_any_number_of_images(network: torch.nn.Module, count: int) -> None:
    run, batch = TorchEngine(network, PREPROCESSING), pixels(70)[:count]
    together = run(batch)
    assert together.shape == (count, 10)
    assert together.dtype == np.float32
    alone = np.concatenate([run(one[None]) for one in batch])
    np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_bits_whatever_the_batch_mates(network: torch.nn.Module, precision: str) -> None:
    run = TorchEngine(network, PREPROCESSING, precision=precision, batch_shapes=(8,))
    one, others = pixels(1), pixels(20)
    first = run(np.concatenate([one, others[:3]]))[0]
    second = run(np.concatenate([one, others[5:12]]))[0]
    assert np.array_equal(first, second)


def test_rank_orders_by_probability_and_breaks_ties_by_class() -> None:
    logits = np.array([[1.0, 3.0, 3.0, -2.0], [0.0, 0.0, 0.0, 0.0]], np.float32)
    order, shares = engine.rank(logits)
    assert order.tolist() == [[1, 2, 0, 3], [0, 1, 2, 3]]
    np.testing.assert_allclose(shares, -np.sort(-softmax(logits.astype(np.float64), axis=1)), rtol=1e-12)
    assert engine.rank(logits, 2)[0].shape == (2, 2)
    assert engine.rank(logits, 99)[0].shape == (2, 4)


def test_probabilities_of_huge_logits_are_finite() -> None:
    np.testing.assert_allclose(engine.probabilities(np.array([[1e4, -1e4, 1e4]])), [[0.5, 0, 0.5]])


def test_devices_and_precisions_that_are_not_here_are_refused() -> None:
    with pytest.raises(UserError, match="no device 'tpu'"):
        engine.choose_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no cuda device"):
            engine.choose_device("cuda")
    with pytest.raises(UserError, match="fp16 is not for CPUs"):
        engine.choose_precision("fp16", "cpu")
