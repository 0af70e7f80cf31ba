"""The compiled engine gives the plain engine's logits, whatever it rewrites."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from networks.test_resnet import randomise_norms
from resnext import catalog
from resnext.data.preprocessing import Preprocessing
from resnext.engine import TorchEngine
from resnext.errors import UserError
from resnext.inference.engines.compiled import CompiledEngine

PREPROCESSING = Preprocessing(image_size=16, resize=16)


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    built = catalog.create("cifar_resnext11_4x4d", blocks=(1, 1))
    randomise_norms(built)
    return built.eval()


def pixels(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 16, 16, 3), np.uint8)


def largest_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference relative to the largest logit."""
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("merged", [None, {"stage1.block1.spatial.conv": 2, "stage2.block1.spatial.conv": 4}])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("count", [1, 5, 40])
def test_uncompiled_it_is_the_plain_engine(
    network: torch.nn.Module, merged: dict[str, int] | None, shared: bool, count: int
) -> None:
    expected = TorchEngine(network, PREPROCESSING)(pixels(count))
    run = CompiledEngine(network, PREPROCESSING, merged=merged, shared=shared, compile=False)
    actual = run(pixels(count))
    assert actual.dtype == np.float32
    assert largest_error(actual, expected) <= 1e-4


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_bits_whatever_the_batch_mates(network: torch.nn.Module, precision: str) -> None:
    run = CompiledEngine(network, PREPROCESSING, compile=False, precision=precision, batch_shapes=(8,))
    assert run.batch_size == 8
    one, others = pixels(1), pixels(20)
    assert np.array_equal(run(np.concatenate([one, others[:3]]))[0], run(np.concatenate([one, others[5:12]]))[0])


def test_weights_are_rounded_once_in_reduced_precision(network: torch.nn.Module) -> None:
    before = copy.deepcopy(network.state_dict())
    run = CompiledEngine(network, PREPROCESSING, compile=False, precision="bf16")
    assert run.precision == "bf16"
    assert {parameter.dtype for parameter in run.network.parameters()} == {torch.bfloat16}
    expected = TorchEngine(network, PREPROCESSING)(pixels(9))
    assert largest_error(run(pixels(9)), expected) <= 0.02
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items()), "it has a copy"


def test_norms_that_stay_keep_single_precision() -> None:
    preactivated = catalog.create("cifar_preact_resnet14").eval()
    randomise_norms(preactivated)
    run = CompiledEngine(preactivated, PREPROCESSING, compile=False, precision="bf16")
    stayed = [module for module in run.network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert stayed
    assert {norm.weight.dtype for norm in stayed} == {torch.float32}
    assert largest_error(run(pixels(4)), TorchEngine(preactivated, PREPROCESSING)(pixels(4))) <= 0.03


def test_what_the_plain_engine_refuses_is_refused(network: torch.nn.Module) -> None:
    with pytest.raises(UserError, match="fp16 is not for CPUs"):
        CompiledEngine(network, PREPROCESSING, device="cpu", precision="fp16")
    with pytest.raises(UserError, match="no grouped convolution"):
        CompiledEngine(network, PREPROCESSING, merged={"stem.conv": 2})


def test_compiled_it_is_the_plain_engine_and_no_setting_is_left_changed(
    network: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One compilation; the cache of torch's compiler is this test's own."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("compiler")))
    import torch._dynamo
    import torch._inductor.config

    settings = torch._inductor.config.freezing, torch._dynamo.config.recompile_limit
    run = CompiledEngine(network, PREPROCESSING, merged={"stage1.block1.spatial.conv": 2}, batch_shapes=(4,))
    expected = TorchEngine(network, PREPROCESSING)(pixels(6))
    try:
        assert largest_error(run(pixels(6)), expected) <= 1e-4
    finally:
        torch._dynamo.reset()
    assert (torch._inductor.config.freezing, torch._dynamo.config.recompile_limit) == settings


def test_without_a_compiler_it_says_so(
    network: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("compiler")))
    import torch._dynamo
    import torch._inductor.config

    with torch._inductor.config.patch({"cpp.cxx": (None, "/no/such/compiler"), "fx_graph_cache": False}):
        run = CompiledEngine(network, PREPROCESSING, batch_shapes=(2,), device="cpu")
        with pytest.raises(UserError, match=r"C\+\+ compiler") as caught:
            run(pixels(2))
    torch._dynamo.reset()
    assert len(str(caught.value).splitlines()) == 2
