"""Merged groups against torch's own grouped convolution: outputs, gradients, state, and what is not finite."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import resnext
from resnext.equivalence.merging import (
    WIDEST,
    block_diagonal,
    factors,
    merge,
    merge_in_training,
    mergeable,
    merged,
)
from resnext.errors import UserError
from resnext.layers import Conv2d
from small import SMALL

ORDERS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
GROUPED = [*(pair for pair in SMALL["resnext"] if "form" not in pair[1]), SMALL["alexnet"][0]]


@st.composite
def cases(draw: st.DrawFn) -> tuple[nn.Conv2d, int, Tensor]:
    """A grouped convolution, a divisor of its groups, and images that it takes, all in float64."""
    groups = draw(st.sampled_from([2, 3, 4, 6, 8]))
    height, width = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    conv = Conv2d(
        groups * draw(st.integers(2, 4)),
        groups * draw(st.integers(1, 4)),
        (height, width),
        stride=draw(st.sampled_from([1, 2, (2, 1)])),
        padding=draw(st.sampled_from([0, 1, (1, 0), (0, 2)])),
        dilation=draw(st.sampled_from([1, 2])),
        groups=groups,
        bias=draw(st.booleans()),
        padding_mode=draw(st.sampled_from(["zeros", "reflect"])),
    ).double()
    order = ORDERS[draw(st.sampled_from(sorted(ORDERS)))]
    factor = draw(st.sampled_from([k for k in range(1, groups + 1) if groups % k == 0]))
    images = torch.randn(draw(st.integers(1, 3)), conv.in_channels, draw(st.integers(5, 9)), draw(st.integers(5, 9)))
    return conv.to(memory_format=order), factor, images.double().to(memory_format=order)


def gradients(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Return outputs, and gradients of the images and of all parameters, for a loss that weighs outputs unevenly."""
    network.zero_grad()
    images = images.detach().clone().requires_grad_()
    outputs = network(images)
    (outputs * torch.linspace(-1, 1, outputs.numel(), dtype=outputs.dtype).view(outputs.shape)).sum().backward()
    return {
        "outputs": outputs.detach(),
        "images": images.grad,
        **{name: each.grad.clone() for name, each in network.named_parameters()},
    }


def assert_near(one: dict[str, Tensor], other: dict[str, Tensor], relative: float) -> None:
    """Compare number by number, relative to each tensor's largest."""
    assert one.keys() == other.keys()
    for name, its in one.items():
        value = its.detach()
        limit = relative * max(1.0, float(value.abs().max()))
        assert float((value - other[name].detach()).abs().max()) <= limit, name


@settings(deadline=None, max_examples=60)
@given(cases())
def test_a_merged_convolution_is_the_grouped_one(case: tuple[nn.Conv2d, int, Tensor]) -> None:
    conv, factor, images = case
    grouped = gradients(conv, images)
    twin = merge(conv, {"": factor})
    assert twin.groups == conv.groups // factor
    assert_near({"outputs": grouped["outputs"]}, {"outputs": twin(images).detach()}, 1e-10)
    merge_in_training(conv, {"": factor})
    assert_near(grouped, gradients(conv, images), 1e-10)
    assert conv(images).is_contiguous(memory_format=torch.channels_last) == grouped["outputs"].is_contiguous(
        memory_format=torch.channels_last
    )


@settings(deadline=None, max_examples=40)
@given(cases())
def test_the_layout_is_block_diagonal_number_by_number(case: tuple[nn.Conv2d, int, Tensor]) -> None:
    conv, factor, _ = case
    weight, groups = conv.weight.detach(), conv.groups
    rows, columns = weight.shape[0] // groups, weight.shape[1]
    expected = torch.zeros(weight.shape[0], factor * columns, *weight.shape[2:], dtype=weight.dtype)
    for group in range(groups):
        slot, its = group % factor, slice(group * rows, (group + 1) * rows)
        expected[its, slot * columns : (slot + 1) * columns] = weight[its]
    laid_out = block_diagonal(weight, groups, factor)
    assert torch.equal(laid_out, expected)
    for order in ORDERS.values():
        if weight.is_contiguous(memory_format=order):
            assert laid_out.is_contiguous(memory_format=order)
    assert block_diagonal(weight.bfloat16(), groups, factor).dtype == torch.bfloat16


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("stride", "channels"), [(1, 64), (2, 128)])
def test_in_fp32_a_block_agrees(order: str, stride: int, channels: int) -> None:
    from resnext.networks.resnext import AggregatedBottleneck

    torch.manual_seed(0)
    block = AggregatedBottleneck(64, channels, width=64, cardinality=16, stride=stride).to(memory_format=ORDERS[order])
    images = torch.randn(4, 64, 9, 9).relu()
    grouped = gradients(block, images)
    merge_in_training(block, {"spatial.conv": 4})
    assert_near(grouped, gradients(block, images), 1e-5)


@pytest.mark.parametrize(("name", "options"), GROUPED)
def test_in_fp32_a_network_agrees_whatever_is_merged(name: str, options: dict[str, object]) -> None:
    torch.manual_seed(0)
    network = resnext.create(name, num_classes=5, **options).eval()
    side = 32 if name.startswith("cifar") else 96
    images = torch.randn(2, 3, side, side)
    grouped = gradients(network, images)
    chosen = {each: factors(conv)[-1] for each, conv in mergeable(network).items()}
    assert chosen
    assert_near({"outputs": grouped["outputs"]}, {"outputs": merge(network, chosen)(images).detach()}, 1e-4)
    merge_in_training(network, chosen)
    assert_near(grouped, gradients(network, images), 1e-4)


def test_under_autocast_the_small_weights_are_cast_and_the_gradients_are_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    laid_out: list[torch.dtype] = []

    def watched(weight: Tensor, groups: int, factor: int) -> Tensor:
        laid_out.append(weight.dtype)
        return block_diagonal(weight, groups, factor)

    monkeypatch.setattr("resnext.equivalence.merging.block_diagonal", watched)
    torch.manual_seed(0)
    conv = Conv2d(32, 32, 3, padding=1, groups=8, bias=True).to(memory_format=torch.channels_last)
    images = torch.randn(4, 32, 8, 8).to(memory_format=torch.channels_last)
    exact = gradients(copy.deepcopy(conv).double(), images.double())
    merge_in_training(conv, {"": 4})
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(conv, images)
    assert laid_out == [torch.bfloat16]
    assert found["outputs"].dtype == torch.bfloat16
    assert found["weight"].dtype == torch.float32
    assert conv.weight.grad.stride() == conv.weight.stride()
    assert_near(exact, {name: value.double() for name, value in found.items()}, 2e-2)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_never_hidden_and_stays_in_its_merged_group(bad: float) -> None:
    torch.manual_seed(0)
    conv = Conv2d(16, 16, 3, padding=1, groups=8, bias=True)  # merged by 2: groups of channels 0–3, 4–7, …
    images = torch.randn(1, 16, 8, 8)
    images[0, 4, 2, 2] = bad
    reach = torch.zeros(1, 16, 8, 8, dtype=torch.bool)
    reach[0, 4:8, 1:4, 1:4] = True
    hidden = ~conv(images).isfinite()
    twin, training = merge(conv, {"": 2}), copy.deepcopy(conv)
    merge_in_training(training, {"": 2})
    for form in (twin, training):
        spread = ~form(images).isfinite()
        assert torch.equal(spread, reach)
        assert torch.equal(spread & hidden, hidden)
        assert torch.allclose(form(images)[~reach], conv(images)[~reach], atol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_not_hidden_either(bad: float) -> None:
    torch.manual_seed(0)
    conv = Conv2d(16, 16, 3, padding=1, groups=8, bias=True)
    images, into = torch.randn(1, 16, 8, 8), torch.randn(1, 16, 8, 8)
    into[0, 4, 2, 2] = bad

    def finite(form: nn.Module) -> list[Tensor]:
        inputs = images.clone().requires_grad_()
        form.zero_grad()
        form(inputs).backward(into)
        return [inputs.grad.isfinite(), form.weight.grad.isfinite(), form.bias.grad.isfinite()]

    grouped = finite(conv)
    merge_in_training(conv, {"": 2})
    whole = finite(conv)
    assert not (whole[0] & ~grouped[0]).any()  # what was not finite is not
    assert torch.equal(whole[1], grouped[1])
    assert torch.equal(whole[2], grouped[2])
    assert not whole[1][4].any()
    assert whole[0][0, :4].all()
    assert whole[0][0, 8:].all()


def test_weights_that_are_not_finite_reach_what_they_reached() -> None:
    conv = Conv2d(16, 16, 3, padding=1, groups=8)
    with torch.no_grad():
        conv.weight[5, 0, 1, 1] = float("nan")
    images = torch.randn(1, 16, 6, 6)
    grouped = conv(images).isfinite()
    assert torch.equal(merge(conv, {"": 4})(images).isfinite(), grouped)
    merge_in_training(conv, {"": 4})
    assert torch.equal(conv(images).isfinite(), grouped)


@pytest.mark.parametrize("order", ORDERS)
def test_state_and_optimiser_stay_grouped_and_the_way_back_is_exact(order: str) -> None:
    torch.manual_seed(0)
    network = resnext.create("cifar_resnext11_4x4d").double().to(memory_format=ORDERS[order])
    plain = copy.deepcopy(network)
    images = torch.randn(4, 3, 16, 16).double()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    chosen = dict.fromkeys(mergeable(network), 2)
    merge_in_training(network, chosen)
    assert merged(network) == chosen
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(
        torch.equal(after[name], value) and after[name].stride() == value.stride() for name, value in before.items()
    )
    steps = [torch.optim.SGD(each.parameters(), lr=0.1, momentum=0.9, fused=True) for each in (plain, network)]
    for _ in range(2):
        for each, optimizer in zip((plain, network), steps, strict=True):
            gradients(each, images)
            optimizer.step()
    assert_near(dict(plain.named_parameters()), dict(network.named_parameters()), 1e-10)
    states = [optimizer.state_dict()["state"] for optimizer in steps]
    assert states[0].keys() == states[1].keys()
    assert_near(*({str(key): value["momentum_buffer"] for key, value in state.items()} for state in states), 1e-10)
    merge_in_training(network, {})
    assert merged(network) == {}
    plain.load_state_dict(network.state_dict())
    plain.eval()
    network.eval()
    assert torch.equal(plain(images), network(images))
    assert [vars(module).keys() for module in plain.modules()] == [vars(module).keys() for module in network.modules()]


def test_copies_have_the_choice_and_weights_of_their_own_and_a_later_choice_replaces_it() -> None:
    network = resnext.create("cifar_resnext11_4x4d").double().eval()
    images = torch.randn(2, 3, 16, 16).double()
    first, second, third = mergeable(network)
    merge_in_training(network, {first: 2, second: 4})
    twin = copy.deepcopy(network)
    assert merged(twin) == {first: 2, second: 4}
    expected = network(images)
    other = resnext.create("cifar_resnext11_4x4d").double().eval()
    twin.load_state_dict(other.state_dict())
    assert_near({"": other(images)}, {"": twin(images)}, 1e-10)
    assert torch.equal(network(images), expected)
    merge_in_training(network, {third: 2, second: 1})
    assert merged(network) == {third: 2}
    still = merge(network, {first: 4})
    assert merged(still) == {}
    assert [conv.groups for conv in mergeable(network).values()] == [4, 4, 4]
    assert [still.get_submodule(name).groups for name in (first, second, third)] == [1, 4, 4]
    assert isinstance(still.get_submodule(first), Conv2d)
    assert_near({"": network(images)}, {"": still(images)}, 1e-10)


def test_training_computes_with_fewer_groups_and_inference_builds_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, tuple[int, ...]]] = []
    real = F.conv2d

    def watched(images: Tensor, weight: Tensor, *rest: object) -> Tensor:
        seen.append((int(rest[-1]), tuple(weight.shape)))  # type: ignore[call-overload]
        return real(images, weight, *rest)  # type: ignore[arg-type]

    conv = Conv2d(32, 16, 3, groups=8)
    monkeypatch.setattr(F, "conv2d", watched)
    merge_in_training(conv, {"": 4})
    conv(torch.randn(1, 32, 5, 5))
    assert seen == [(2, (16, 16, 3, 3))]
    twin = merge(conv, {"": 4})
    assert twin.weight.shape == (16, 16, 3, 3)
    assert not twin.weight.requires_grad
    monkeypatch.setattr("resnext.equivalence.merging.block_diagonal", None)
    twin(torch.randn(1, 32, 5, 5))


def test_depthwise_and_foreign_convolutions_are_left_out() -> None:
    class Scaled(nn.Conv2d):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(2 * images)

    network = nn.Sequential(
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 16, 3, groups=8),
        nn.Conv2d(8, 8, 3),
        Scaled(8, 8, 3, groups=2),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3, groups=2)),
        nn.Conv2d(8, 8, 3, groups=2),
    )
    assert list(mergeable(network)) == ["5"]
    for name in ("0", "2", "no"):
        with pytest.raises(UserError, match="no grouped convolution"):
            merge(network, {name: 2})
    for factor in (3, 0, -1, True, 2.0):
        with pytest.raises(UserError, match="Take a divisor"):
            merge_in_training(network, {"5": factor})  # type: ignore[dict-item]
    assert merged(network) == {}


def test_factors_are_the_divisors_whose_groups_are_not_too_wide() -> None:
    assert factors(nn.Conv2d(128, 128, 3, groups=32)) == [1, 2, 4, 8, 16, 32]
    assert factors(nn.Conv2d(1024, 1024, 3, groups=32)) == [1, 2, 4]
    assert factors(nn.Conv2d(80, 80, 3, groups=2)) == [1, 2]
    assert factors(nn.Conv2d(512, 512, 3, groups=2)) == [1]
    assert WIDEST == 128


def test_the_cost_of_a_choice_is_what_it_says() -> None:
    from resnext.complexity import count

    network = resnext.create("cifar_resnext11_4x4d")
    plain = count(network, 32)
    merge_in_training(network, dict.fromkeys(mergeable(network), 4))
    assert count(network, 32).macs > plain.macs
    assert np.isclose(count(network, 32).parameters, plain.parameters)
