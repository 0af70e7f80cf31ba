"""Stochastic depth in the training step: when gates close, and that a closed block costs nothing and learns nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from resnext import catalog
from resnext.data import order
from resnext.data.loader import Batch
from resnext.errors import UserError
from resnext.residual import ResidualBlock, residual_blocks
from resnext.training.gates import Gates
from resnext.training.recipe import Recipe
from resnext.training.step import TrainingStep

IMAGES, CLASSES = 6, 4
CPU = torch.device("cpu")


def step_of(network: nn.Module, **fields: Any) -> TrainingStep:
    raw = {
        "network": "",
        "epochs": 1,
        "batch_size": IMAGES,
        "data": {"image_size": 16, "resize": 16, "mean": [0.5] * 3, "std": [0.25] * 3},
        "optimizer": {"learning_rate": 0.05, "momentum": 0.9, "nesterov": False, "weight_decay": 0.01},
        "machine": {"device": "cpu", "precision": "fp32"},
    }
    recipe = Recipe.from_dict({**raw, **fields})
    return TrainingStep(network, recipe, recipe.data.preprocessing(), CLASSES)


def created(name: str = "cifar_resnet8", **options: object) -> nn.Module:
    torch.manual_seed(0)
    return catalog.create(name, num_classes=CLASSES, **options)


def batch(number: int = 0) -> Batch:
    generator = np.random.default_rng(number)
    pixels = generator.integers(0, 256, (IMAGES, 16, 16, 3), np.uint8)
    return Batch(np.arange(IMAGES), pixels, generator.integers(0, CLASSES, IMAGES), number)


def gates_of(network: nn.Module, step: int, *, seed: int = 0, images: int = IMAGES) -> list[Any]:
    with Gates(network, seed, CPU).drawn(step, images):
        return [block.gate for block in residual_blocks(network)]


def a_step_that_closes(network: nn.Module, number: int, *, after: int = 0) -> int:
    """Return the first step from `after` on that closes this block alone."""
    blocks = len(residual_blocks(network))
    wanted = [index != number for index in range(blocks)]
    return next(step for step in range(after, after + 1000) if gates_of(network, step) == wanted)


def test_parts_of_a_batch_have_the_gates_of_their_images() -> None:
    network = created("cifar_resnet20", drop_path=0.5)
    gates = Gates(network, 0, CPU)

    def drawn(images: int, start: int = 0) -> list[Any]:
        with gates.drawn(3, images, start):
            return [block.gate for block in gates.blocks]

    whole, first, second = drawn(64), drawn(24), drawn(40, 24)
    assert len(whole) == 8, "the first block is never dropped"
    assert all(torch.equal(all_of, torch.cat(both)) for all_of, *both in zip(whole, first, second, strict=True))
    assert not torch.equal(whole[-1][:24], whole[-1][24:48])


def test_the_gates_are_a_function_of_seed_and_step() -> None:
    network, twin = created("cifar_resnet110", final_survival=0.5), created("cifar_resnet110", final_survival=0.5)
    first = [gates_of(network, step) for step in range(20)]
    assert [gates_of(twin, step, images=2) for step in reversed(range(20))] == first[::-1]
    assert len({tuple(gates) for gates in first}) == 20
    assert [gates_of(network, step, seed=1) for step in range(20)] != first


def test_a_block_is_open_as_often_as_its_survival_says() -> None:
    network = created("cifar_resnet110", final_survival=0.5)
    survivals = np.array([1 - number / 54 * 0.5 for number in range(1, 55)])
    assert survivals.sum() == pytest.approx(40.25)
    open_gates = np.array([gates_of(network, step) for step in range(2000)])
    spread = np.sqrt(survivals * (1 - survivals) / 2000)
    assert (np.abs(open_gates.mean(0) - survivals) < 4 * spread).all()
    assert open_gates.sum(1).mean() == pytest.approx(40.25, abs=0.3)
    # Blocks are independent of each other.
    correlations = np.corrcoef(open_gates.T) - np.eye(54)
    assert np.abs(correlations).max() < 5 / np.sqrt(2000)


def test_drop_path_draws_for_each_image() -> None:
    network = created("cifar_resnet20", drop_path=0.4)
    drawn = [gates_of(network, step, images=50) for step in range(100)]
    assert all(gates[0] is True for gates in drawn)  # the first block's probability to be dropped is 0
    kept = torch.stack([torch.stack(gates[1:]) for gates in drawn])  # steps×blocks×images
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    keeps = torch.tensor([1 - 0.4 * index / 8 for index in range(1, 9)])
    torch.testing.assert_close(kept.mean((0, 2)), keeps, atol=0.03, rtol=0)
    assert (kept.mean(2).std(0) < 0.12).all()  # not one draw for the whole batch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_drop_path_keeps_the_branch_s_expectation(dtype: torch.dtype) -> None:
    block = residual_blocks(created(drop_path=0.4))[-1]
    assert block.keep == pytest.approx(0.6)
    uniforms = order.uniforms(0, 0, np.arange(1), 20_000, stream=7)[0]
    block.gate = torch.from_numpy((uniforms < block.keep).astype(np.float32))
    branch = torch.full((20_000, 1, 1, 1), 3.0, dtype=dtype)
    gated = block.gated(branch)
    torch.testing.assert_close(gated.unique(), torch.tensor([0.0, 3.0 / 0.6], dtype=dtype))
    assert gated.float().mean().item() == pytest.approx(3.0, rel=0.02)


def test_a_closed_block_is_neither_computed_nor_learned_but_decays() -> None:
    network = created(final_survival=0.5, survival_rule="uniform")
    step, blocks = step_of(network), residual_blocks(network)
    opened = next(number for number in range(1000) if all(gates_of(network, number)))
    closed = a_step_that_closes(network, 1)
    calls: list[str] = []

    def note(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        calls.append("forward")
        output.register_hook(lambda _: calls.append("backward"))

    blocks[1].second.conv.register_forward_hook(note)
    step(batch(), 0, opened, 0.05)
    assert calls == ["forward", "backward"]
    branch = {name: value for name, value in blocks[1].named_parameters() if not name.startswith("shortcut")}
    before = {name: value.detach().clone() for name, value in branch.items()}
    momenta = {name: step.optimizer.state[value]["momentum_buffer"].clone() for name, value in branch.items()}
    statistics = {name: value.clone() for name, value in blocks[1].named_buffers()}
    other = blocks[0].second.norm.running_mean.clone()
    calls.clear()
    step(batch(1), 0, closed, 0.05)
    assert calls == []
    for name, value in branch.items():
        momentum = 0.9 * momenta[name] + 0.01 * before[name]  # the gradient is that of the decay alone
        torch.testing.assert_close(step.optimizer.state[value]["momentum_buffer"], momentum)
        torch.testing.assert_close(value.detach(), before[name] - 0.05 * momentum)
        assert not torch.equal(value, before[name])
    assert all(torch.equal(value, statistics[name]) for name, value in blocks[1].named_buffers())
    assert not torch.equal(blocks[0].second.norm.running_mean, other)
    assert all(block.gate is True for block in blocks)


def test_a_closed_block_s_projection_still_learns() -> None:
    network = created(final_survival=0.5, survival_rule="uniform", shortcut="B")
    step, block = step_of(network), residual_blocks(network)[1]
    step(batch(), 0, a_step_that_closes(network, 1), 0.05)
    gradients = {name: value.grad for name, value in block.named_parameters()}
    assert gradients.keys() == {name for name, _ in block.named_parameters()}
    for name, gradient in gradients.items():
        assert gradient is not None, name
        assert bool(gradient.any()) == name.startswith("shortcut"), name


def test_at_test_the_branch_counts_with_its_survival() -> None:
    network = created(final_survival=0.5).eval()
    images = torch.randn(2, 3, 16, 16)
    outputs = network.features(images)
    inputs = [outputs["stem"], outputs["stage1"], outputs["stage2"]]
    blocks = residual_blocks(network)
    for number, (block, given) in enumerate(zip(blocks, inputs, strict=True), 1):
        assert isinstance(block, ResidualBlock)
        survival = 1 - number / 3 * 0.5
        expected = torch.relu(survival * block.residual(given) + block.shortcut(given))
        torch.testing.assert_close(outputs[f"stage{number}"], expected)
    block = blocks[0]
    block.gate = False  # a gate that was left closed does not reach beyond training
    torch.testing.assert_close(network.features(images)["stage1"], outputs["stage1"])


def test_with_all_gates_open_training_is_that_of_the_plain_network() -> None:
    plain, certain, lucky = created(), created(final_survival=1.0), created(final_survival=0.5)
    steps = [step_of(network) for network in (plain, certain, lucky)]
    assert not steps[1].gates.blocks
    assert len(steps[2].gates.blocks) == 3
    opened = [number for number in range(100) if all(gates_of(lucky, number))]
    for number in opened[:4]:
        losses = [step(batch(number), 0, number, 0.05).loss for step in steps]
        assert len(set(losses)) == 1
    states = [network.state_dict() for network in (plain, certain, lucky)]
    for name, value in states[0].items():
        assert torch.equal(states[1][name], value), name
        assert torch.equal(states[2][name], value), name


def test_drop_path_trains_and_gates_open_even_after_an_error() -> None:
    network = created(drop_path=0.5)
    step = step_of(network)
    assert np.isfinite(step(batch(), 0, 0, 0.05).loss)
    assert all(block.gate is True for block in residual_blocks(network))
    with pytest.raises(ZeroDivisionError), Gates(network, 0, CPU).drawn(0, IMAGES):
        1 / 0  # noqa: B018
    assert all(block.gate is True for block in residual_blocks(network))


@pytest.mark.parametrize("options", [{"final_survival": 0.5}, {"drop_path": 0.1}])
def test_compiling_with_gates_is_refused(options: dict[str, object]) -> None:
    machine = {"device": "cpu", "compile": "on"}
    with pytest.raises(UserError, match="--compile off"):
        step_of(created(**options), machine=machine)
