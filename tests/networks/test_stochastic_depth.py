"""Stochastic depth: the schedule by its formula, the networks as formulas with gates, what a closed gate computes."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.test_resnet import randomise_norms
from resnext import catalog
from resnext.complexity import describe
from resnext.errors import UserError
from resnext.networks.preact_resnet import PreactBlock
from resnext.networks.resnet import ResNet
from resnext.networks.stochastic_depth import VARIANTS, AuthorsResNet, parse
from resnext.residual import ResidualBlock, residual_blocks, survivals

FAMILIES = [
    ("cifar_resnet14_stochastic_depth", {}),
    ("cifar_resnet14_stochastic_depth_authors", {}),
    ("cifar_resnet14", {"shortcut": "B", "final_survival": 0.5}),
    ("cifar_resnet14", {"shortcut": "C", "final_survival": 0.5}),
    ("resnet152_stochastic_depth", {"blocks": (2, 2), "width": 8}),
    ("cifar_resnext20_2x4d", {"final_survival": 0.5}),
]


def channels_of(block: nn.Module) -> int:
    """Return the channels of what enters a block."""
    return next(module.in_channels for module in block.modules() if isinstance(module, nn.Conv2d))


@pytest.mark.parametrize("count", [1, 6, 54, 75, 600])
def test_half_of_the_last_block_survives_and_the_expected_depth_is_that_of_section_3(count: int) -> None:
    linear = survivals(count, 0.5)
    assert sum(linear) == pytest.approx((3 * count - 1) / 4)
    assert linear[-1] == 0.5
    assert linear[0] == 1 - 0.5 / count
    steps = [one - other for one, other in pairwise(linear)]
    assert steps == pytest.approx([0.5 / count] * (count - 1))


def test_the_expected_depths_of_110_layers() -> None:
    assert sum(survivals(54, 0.5)) == pytest.approx(40.25)
    assert sum(survivals(54, 0.2)) == pytest.approx(32.0)
    assert survivals(54, 0.3, "uniform") == [0.3] * 54
    assert survivals(54, 1.0) == [1.0] * 54


@pytest.mark.parametrize("name", VARIANTS)
def test_the_papers_networks_are_linear_and_end_at_a_half(name: str) -> None:
    with torch.device("meta"):
        blocks = residual_blocks(catalog.create(name))
    assert [block.survival for block in blocks] == pytest.approx(survivals(len(blocks), 0.5))
    assert all(block.gate is True and block.keep == 1 for block in blocks)
    depth = int(name.removeprefix("cifar_").removeprefix("resnet").partition("_")[0])
    per_block = 3 if name == "resnet152_stochastic_depth" else 2
    assert per_block * len(blocks) + 2 == depth == describe(name)["depth"]


def test_options_reach_the_blocks_of_any_residual_network() -> None:
    with torch.device("meta"):
        uniform = residual_blocks(catalog.create("cifar_resnet20", final_survival=0.7, survival_rule="uniform"))
        dropping = residual_blocks(catalog.create("resnext50_32x4d", drop_path=0.3))
    assert [block.survival for block in uniform] == [0.7] * 9
    assert [block.survival for block in dropping] == [1.0] * 16
    assert [block.keep for block in dropping] == pytest.approx([1 - 0.3 * index / 15 for index in range(16)])


def written_out(images: Tensor, network: nn.Module, shares: list[float]) -> Tensor:
    """ResNet for CIFAR as formulas: ReLU(share·F(x) + skip), option A's slices or the authors' averages.

    Batch norm takes the statistics of the batch in training, those gathered at test.
    """
    weights = network.state_dict()
    authors = isinstance(network, AuthorsResNet)

    def conv_norm(x: Tensor, name: str, stride: int = 1) -> Tensor:
        x = F.conv2d(x, weights[f"{name}.conv.weight"], weights.get(f"{name}.conv.bias"), stride, 1)
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        if not network.training:
            mean, variance = weights[f"{name}.norm.running_mean"], weights[f"{name}.norm.running_var"]
        scale = weights[f"{name}.norm.weight"] / (variance + 1e-5).sqrt()
        shift = weights[f"{name}.norm.bias"] - mean * scale
        return x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)

    x = conv_norm(images, "stem").relu()
    for number, share in enumerate(shares):
        stage, block = divmod(number, len(shares) // 3)
        name, stride = f"stage{stage + 1}.block{block + 1}", 2 if stage > 0 and block == 0 else 1
        y = conv_norm(conv_norm(x, f"{name}.first", stride).relu(), f"{name}.second")
        if stride == 2:
            corners = [x[:, :, row::2, column::2] for row in (0, 1) for column in (0, 1)]
            x = sum(corners) / 4 if authors else corners[0]
            x = torch.cat((x, torch.zeros_like(x)), dim=1)
        x = (share * y + x).relu()
    return x.mean((2, 3)) @ weights["head.fc.weight"].T + weights["head.fc.bias"]


@pytest.mark.parametrize("name", ["cifar_resnet14_stochastic_depth", "cifar_resnet14_stochastic_depth_authors"])
def test_the_networks_are_the_papers_formulas(name: str) -> None:
    """Equation 2 with every pattern of a few gates in training, equation 5 at test; training does not rescale."""
    torch.manual_seed(1)
    network = catalog.create(name).double()
    randomise_norms(network)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.normal_(module.bias)
    images = torch.randn(4, 3, 24, 16, dtype=torch.float64)
    network.eval()
    expected = written_out(images, network, [1 - number / 6 * 0.5 for number in range(1, 7)])
    torch.testing.assert_close(network(images), expected, rtol=1e-9, atol=1e-9)
    network.train()
    for pattern in ("111111", "011011", "101101", "110110", "000000"):
        for block, gate in zip(residual_blocks(network), pattern, strict=True):
            block.gate = gate == "1"
        expected = written_out(images, network, [float(gate) for gate in pattern])
        torch.testing.assert_close(network(images).detach(), expected, rtol=1e-9, atol=1e-9)
    network.eval()
    with_closed_gates = network(images)
    for block in residual_blocks(network):
        block.gate = True
    assert torch.equal(network(images), with_closed_gates), "gates are for training alone"


@pytest.mark.parametrize(("name", "options"), FAMILIES)
def test_a_closed_gate_computes_nothing_but_the_shortcut(name: str, options: dict[str, object]) -> None:
    """Nothing of a branch runs, learns or changes its statistics; transition blocks included."""
    torch.manual_seed(2)
    network = catalog.create(name, **options)
    ran: set[str] = set()
    for key, module in network.named_modules():
        if not any(module.children()):
            module.register_forward_hook(lambda *_, key=key: ran.add(key))
    images = torch.randn(4, 3, 32, 32)
    network(images)
    everything, statistics = set(ran), {key: value.clone() for key, value in network.named_buffers()}
    blocks = {key: module for key, module in network.named_modules() if isinstance(module, ResidualBlock)}
    for parity in (0, 1):
        for number, block in enumerate(blocks.values()):
            block.gate = number % 2 == parity
        shut = tuple(f"{key}." for key, block in blocks.items() if not block.gate)
        ran.clear()
        network.zero_grad()
        network(images).logsumexp(1).sum().backward()
        branches = {key for key in everything if key.startswith(shut) and "shortcut" not in key}
        assert branches
        assert ran == everything - branches
        for key, parameter in network.named_parameters():
            assert (parameter.grad is None) == (key.rpartition(".")[0] in branches), key
    for block in blocks.values():
        block.gate = False
    network.load_state_dict({**network.state_dict(), **statistics})
    network(images)
    changed = {key for key, value in network.named_buffers() if not torch.equal(value, statistics[key])}
    assert changed
    assert all("shortcut" in key or key.startswith("stem") for key in changed)


@pytest.mark.parametrize(("name", "options"), FAMILIES)
def test_survival_1_is_the_plain_network_bit_for_bit(name: str, options: dict[str, object]) -> None:
    """In training all survivals are, as long as the gates are open; at test only 1."""
    outcomes = []
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    for survival in (1.0, 0.5):
        torch.manual_seed(3)
        network = catalog.create(name, **{**options, "final_survival": survival})
        logits = network(images)
        logits.logsumexp(1).sum().backward()
        tested = network.eval()(images).detach()
        gradients = [parameter.grad for parameter in network.parameters()]
        outcomes.append([tested, logits.detach(), *gradients, *network.buffers()])
    (plain, *constant), (scaled, *stochastic) = outcomes
    assert all(torch.equal(one, other) for one, other in zip(constant, stochastic, strict=True))
    assert not torch.equal(plain, scaled)


@pytest.mark.parametrize(("name", "options"), FAMILIES)
def test_drop_path_drops_single_images_and_divides_by_what_is_kept(name: str, options: dict[str, object]) -> None:
    torch.manual_seed(4)
    network = catalog.create(name, **{**options, "final_survival": 1.0, "drop_path": 0.6})
    images = torch.randn(4, 3, 32, 32)
    plain = catalog.create(name, **{**options, "final_survival": 1.0})
    plain.load_state_dict(network.state_dict())
    assert torch.equal(network.eval()(images), plain.eval()(images)), "nothing is left of it at test"
    block = residual_blocks(network)[-1].train()
    assert block.keep == pytest.approx(0.4)
    entering = torch.randn(4, channels_of(block), 8, 8)
    block.gate = torch.tensor([1.0, 0.0, 0.0, 1.0])
    with torch.no_grad():
        out, branch = block(entering), block.residual(entering)
        skip = block.shortcut(entering)
    torch.testing.assert_close(out[[0, 3]], (branch / 0.4 + skip).relu()[[0, 3]])
    torch.testing.assert_close(out[[1, 2]], skip.relu()[[1, 2]])


@pytest.mark.parametrize(("name", "options"), FAMILIES)
def test_a_closed_block_is_its_rectified_shortcut(name: str, options: dict[str, object]) -> None:
    """What enters has been through a ReLU; what a projection and its norm make of it has not."""
    torch.manual_seed(6)
    network = catalog.create(name, **options)
    randomise_norms(network)
    for block in residual_blocks(network):
        images = torch.rand(4, channels_of(block), 8, 8)
        untouched = images.clone()
        block.gate = False
        with torch.no_grad():
            skip = block.shortcut(images)
            assert torch.equal(block(images), skip.relu())
        assert torch.equal(images, untouched)
        assert (skip < 0).any() == bool(list(block.shortcut.parameters()))


@pytest.mark.parametrize(
    ("name", "options"), [*FAMILIES, ("cifar_preact_resnet14", {"shortcut": "B"}), ("wrn_16_2", {})]
)
def test_drop_path_keeps_the_precision_that_autocast_chose(name: str, options: dict[str, object]) -> None:
    """Gates are float32, and would widen every activation behind them."""
    torch.manual_seed(7)
    network = catalog.create(name, **{**options, "final_survival": 1.0, "drop_path": 0.6})
    for block in residual_blocks(network):
        block.gate = torch.tensor([1.0, 0.0, 0.0, 1.0])
        images = torch.rand(4, channels_of(block), 8, 8).bfloat16()
        preact = isinstance(block, PreactBlock)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            out = block(images)
            active = block.activation(images) if preact else images
            branch, skip = block.residual(active), block.shortcut(active if preact and block.splits_late else images)
        assert out.dtype == branch.dtype == torch.bfloat16
        expected = branch.float() * (block.gate / block.keep).view(4, 1, 1, 1) + skip.float()
        torch.testing.assert_close(out.float(), expected if preact else expected.relu(), rtol=0.02, atol=0.05)
        assert torch.equal(out[1:3], skip[1:3] if preact else skip[1:3].relu())


def test_the_authors_network_has_biases_and_starts_in_the_fan_in_form() -> None:
    torch.manual_seed(5)
    network = catalog.create("cifar_resnet110_stochastic_depth_authors")
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert sum(parameter.numel() for parameter in network.parameters()) == 1_732_010
    assert sum(module.out_channels for module in convolutions) == 1_732_010 - 1_727_962
    for module in convolutions:
        assert module.bias is not None
        assert not module.bias.any()
        expected = math.sqrt(2 / (9 * module.in_channels))
        assert abs(module.weight.std().item() / expected - 1) < 5 / math.sqrt(2 * module.weight.numel())


def test_the_authors_shortcut_averages_what_there_is_at_odd_sides() -> None:
    block = residual_blocks(catalog.create("cifar_resnet14_stochastic_depth_authors"))[2]
    assert block.shortcut is not None
    out = block.shortcut(torch.arange(9.0).view(1, 1, 3, 3))
    assert out[0, 0].tolist() == [[2.0, 3.5], [6.5, 8.0]]
    assert out.shape == (1, 17, 2, 2)
    assert not out[:, 1:].any()
    assert block(torch.randn(2, 16, 7, 9)).shape == (2, 32, 4, 5)


@pytest.mark.parametrize("name", ["cifar_resnet8_stochastic_depth", "cifar_resnet32_stochastic_depth_authors"])
def test_the_grammar_knows_every_depth_of_the_family(name: str) -> None:
    found = catalog.resolve(name)
    assert found.network is (AuthorsResNet if name.endswith("authors") else ResNet)
    assert (found.config.final_survival, found.config.survival_rule) == (0.5, "linear")
    assert (found.image_size, found.num_classes) == (32, 10)
    assert parse("cifar_resnet20") is None
    assert parse("cifar_plain20_stochastic_depth") is None
    with pytest.raises(UserError, match="'cifar_resnet110_stochastic_depth' or 'cifar_resnet116_stochastic_depth'"):
        catalog.resolve("cifar_resnet111_stochastic_depth")


@pytest.mark.parametrize("name", ["cifar_resnet20", "cifar_resnet20_stochastic_depth_authors", "cifar_preact_resnet20"])
@pytest.mark.parametrize(
    "options",
    [
        {"final_survival": 0},
        {"final_survival": 1.1},
        {"final_survival": float("nan")},
        {"final_survival": True},
        {"survival_rule": "cosine"},
        {"drop_path": 1.0},
        {"drop_path": -0.1},
        {"drop_path": 0.1, "final_survival": 0.5},
        {"blocks": ()},
        {"width": 0},
    ],
)
def test_options_that_make_no_network_are_refused(name: str, options: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        catalog.create(name, **options)


@pytest.mark.parametrize("options", [{"final_survival": 0.5}, {"drop_path": 0.1}])
def test_a_plain_network_can_drop_nothing(options: dict[str, object]) -> None:
    with pytest.raises(UserError, match="no way around a block"):
        catalog.create("cifar_plain20", **options)
