"""Wide ResNet against the paper's formulas written out, its tables' sizes, and its own promises.

That the ImageNet bottlenecks compute what torchvision's do is in test_resnet.py.
"""

from __future__ import annotations

import math
import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from networks.test_resnet import randomise_norms
from resnext import catalog
from resnext.complexity import count, describe
from resnext.errors import UserError
from resnext.networks.wide_resnet import VARIANTS, WideImageNet, WideResNet, WideResNetConfig, parse
from resnext.residual import residual_blocks


def written_out(images: Tensor, weights: dict[str, Tensor], config: WideResNetConfig) -> Tensor:
    """Table 1's network in training mode, as formulas, without dropout."""

    def norm_relu(x: Tensor, name: str) -> Tensor:
        mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, unbiased=False)
        gamma, beta = (weights[f"{name}.norm.{part}"].view(1, -1, 1, 1) for part in ("weight", "bias"))
        return ((x - mean) / (variance + 1e-5).sqrt() * gamma + beta).relu()

    def conv(x: Tensor, name: str, kernel_size: int, stride: int = 1) -> Tensor:
        kernel = weights[f"{name}.weight"]
        assert kernel.shape[2:] == (kernel_size, kernel_size)
        return F.conv2d(x, kernel, stride=stride, padding=kernel_size // 2)

    x = conv(images, "stem", 3)
    for group, blocks in enumerate(config.blocks, 1):
        for block in range(1, blocks + 1):
            name, stride = f"stage{group}.block{block}", 2 if group > 1 and block == 1 else 1
            y = norm_relu(x, f"{name}.activation")
            if x.shape[1] != 16 * config.widening * 2 ** (group - 1):
                x = conv(y, f"{name}.shortcut", 1, stride)
            y = conv(y, f"{name}.branch.conv1", config.kernels[0], stride)
            for number, kernel_size in enumerate(config.kernels[1:], 2):
                y = conv(norm_relu(y, f"{name}.branch.activation{number}"), f"{name}.branch.conv{number}", kernel_size)
            x = x + y
    x = norm_relu(x, "head").mean((2, 3))
    return x @ weights["head.fc.weight"].T + weights["head.fc.bias"]


@pytest.mark.parametrize("name", ["wrn_10_1", "wrn_16_2", "wrn_16_2_b131", "wrn_10_3_b31", "wrn_7_1_l1"])
def test_the_network_is_the_papers_formulas(name: str) -> None:
    torch.manual_seed(1)
    network = catalog.create(name).double()
    randomise_norms(network)
    images = torch.randn(4, 3, 21, 24, dtype=torch.float64)
    expected = written_out(images, network.state_dict(), catalog.resolve(name).config)
    torch.testing.assert_close(network(images).detach(), expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=15, deadline=None)
@given(n=st.integers(1, 4), k=st.integers(1, 12), classes=st.integers(1, 99))
def test_names_build_what_they_say(n: int, k: int, classes: int) -> None:
    """Sum up Table 1 by hand."""
    with torch.device("meta"):
        network = catalog.create(f"wrn_{6 * n + 4}_{k}", num_classes=classes)
    convolutions, norms, macs, entering = 27 * 16, 0, 27 * 16 * 32**2, 16
    for group in range(3):
        width, area = 16 * k * 2**group, (32 >> group) ** 2
        own = 9 * entering * width + (2 * n - 1) * 9 * width**2 + (entering * width if entering != width else 0)
        convolutions += own
        macs += own * area
        norms += entering + (2 * n - 1) * width
        entering = width
    cost = count(network, 32)
    assert cost.parameters == convolutions + 2 * (norms + entering) + entering * classes + classes
    assert cost.macs == macs + entering * classes
    assert len([layer for layer in cost.layers if layer.kind.endswith("Conv2d")]) == 6 * n + 4 - (k == 1)


# Millions of parameters, as printed; Table 2's rows were read from a copy with its columns out of order.
PRINTED = {
    "wrn_40_2_b131": 1.4,  # Table 2
    "wrn_40_2_b31": 1.2,
    "wrn_40_2_b13": 1.3,
    "wrn_40_2_b311": 1.3,
    "wrn_28_2": 1.5,
    "wrn_22_2_b313": 1.1,
    "wrn_40_2_l1": 2.2,  # Table 3
    "wrn_40_2": 2.2,
    "wrn_40_2_l3": 2.2,
    "wrn_40_2_l4": 2.2,
    "wrn_40_1": 0.6,  # Table 4
    "wrn_40_4": 8.9,
    "wrn_40_8": 35.7,
    "wrn_28_10": 36.5,
    "wrn_28_12": 52.5,
    "wrn_22_8": 17.2,
    "wrn_22_10": 26.8,
    "wrn_16_8": 11.0,
    "wrn_16_10": 17.1,
    "wide_resnet18_1.5": 25.9,  # Table 7
    "wide_resnet18_2": 45.6,
    "wide_resnet18_3": 101.8,
    "wide_resnet34_1.5": 48.6,
    "wide_resnet34_2": 86.0,
    "wide_resnet50_2": 68.9,  # Table 8
}


@pytest.mark.parametrize(("name", "millions"), PRINTED.items())
def test_the_paper_prints_the_same_sizes(name: str, millions: float) -> None:
    [row] = catalog.rows(name)
    assert round(int(str(row["parameters"])) / 1e6, 1) == millions


@pytest.mark.parametrize(("name", "parameters"), [("16_8", 11_007_540), ("28_10", 36_536_884), ("40_4", 8_972_340)])
def test_100_classes(name: str, parameters: int) -> None:
    assert describe(f"wrn_{name}", num_classes=100)["parameters"] == parameters


@pytest.mark.parametrize("name", VARIANTS)
def test_every_name_has_the_depth_it_says(name: str) -> None:
    """For CIFAR n = 6N + 4 counts three projections beside the path, but not the linear layer behind it."""
    told = describe(name)["depth"]
    [number] = map(int, re.findall(r"^(?:wrn_|wide_resnet)(\d+)", name))
    config = catalog.resolve(name).config
    if isinstance(config, WideResNetConfig):
        assert told == 1 + sum(config.blocks) * len(config.kernels) + 1
        assert "_b" in name or told == number - 2
        assert "_l" in name or sum(config.blocks) == 3 * (number - 4) // 6
    else:
        assert told == number


def test_one_path_of_width_one_is_resnet() -> None:
    """ResNet-50 with k = 1 has ResNet's tensors, and the ImageNet networks differ from it in widths alone."""
    torch.manual_seed(2)
    wide, plain = catalog.create("wide_resnet50_1").eval(), catalog.create("resnet50").eval()
    wide.load_state_dict(plain.state_dict(), strict=True)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(wide(images), plain(images))


def test_the_stem_of_imagenets_networks_is_not_widened() -> None:
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in catalog.create("wide_resnet18_1.5").state_dict().items()}
    assert shapes["stem.conv.weight"] == (64, 3, 7, 7)
    assert shapes["stage1.block1.shortcut.conv.weight"] == (96, 64, 1, 1)
    assert shapes["stage4.block2.second.conv.weight"] == (768, 768, 3, 3)


@pytest.mark.parametrize("k", [1, 2])
def test_the_first_group_has_a_projection_only_where_the_width_changes(k: int) -> None:
    with torch.device("meta"):
        network = catalog.create(f"wrn_16_{k}")
    projections = [name for name in network.state_dict() if "shortcut" in name]
    groups = (2, 3) if k == 1 else (1, 2, 3)
    assert projections == [f"stage{group}.block1.shortcut.weight" for group in groups]


@pytest.mark.parametrize(("name", "dropouts"), [("wrn_10_1", 1), ("wrn_10_1_b131", 2), ("wrn_7_1_l1", 0)])
def test_dropout_comes_right_before_every_convolution_but_the_first(name: str, dropouts: int) -> None:
    torch.manual_seed(3)
    network = catalog.create(name, dropout=0.25)
    order: list[tuple[str, Tensor]] = []
    for key, module in network.get_submodule("stage2.block1").named_modules():
        if not any(module.children()):
            module.register_forward_hook(lambda _, __, out, key=key: order.append((key, out.clone())))
    network(torch.randn(4, 3, 32, 32))
    kinds = [key.rpartition(".")[2] for key, _ in order if key != "shortcut"]
    behind = [("norm", "relu", f"dropout{number}", f"conv{number}") for number in range(2, dropouts + 2)]
    assert kinds == ["norm", "relu", "conv1", *(kind for kinds in behind for kind in kinds)]
    for (key, dropped), (_, before) in zip(order[1:], order, strict=False):
        if "dropout" in key:
            zeroed = (dropped == 0) & (before > 0)
            assert 0.2 < zeroed.sum() / (before > 0).sum() < 0.3
            torch.testing.assert_close(dropped[dropped > 0], before[dropped > 0] / 0.75)


def test_dropout_is_off_by_default_and_at_test() -> None:
    with torch.device("meta"):
        assert all(row.config.dropout == 0 for row in VARIANTS.values() if isinstance(row.config, WideResNetConfig))
        assert not any(isinstance(module, nn.Dropout) for module in catalog.create("wrn_16_2").modules())
    torch.manual_seed(4)
    with_dropout = catalog.create("wrn_10_1", dropout=0.3).eval()
    without = catalog.create("wrn_10_1").eval()
    without.load_state_dict(with_dropout.state_dict(), strict=True)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(with_dropout(images), without(images))


def test_fresh_weights_are_he_normal_in_the_fan_in_form() -> None:
    torch.manual_seed(5)
    network = catalog.create("wrn_16_4_b31")
    tested = 0
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            assert module.bias is None
            expected = math.sqrt(2 / (math.prod(module.kernel_size) * module.in_channels))
            n = module.weight.numel()
            assert abs(module.weight.std().item() / expected - 1) < 5 / math.sqrt(2 * n), name
            assert abs(module.weight.mean().item()) < 5 * expected / math.sqrt(n), name
            tested += 1
    assert tested == 1 + 2 * 6 + 3
    assert not network.head.fc.bias.any()


@pytest.mark.parametrize(
    ("name", "blocks", "kernels"),
    [
        ("wrn_10_1", 1, (3, 3)),
        ("wrn_604_2", 100, (3, 3)),
        ("wrn_40_2_b33", 6, (3, 3)),
        ("wrn_16_2_b1331", 2, (1, 3, 3, 1)),
        ("wrn_40_2_l2", 6, (3, 3)),
        ("wrn_34_3_l5", 2, (3, 3, 3, 3, 3)),
    ],
)
def test_the_grammar_knows_every_cifar_network(name: str, blocks: int, kernels: tuple[int, ...]) -> None:
    found = catalog.resolve(name)
    assert found.network is WideResNet
    assert found.config == WideResNetConfig((blocks,) * 3, int(name.split("_")[2]), kernels)
    assert (found.image_size, found.num_classes) == (32, 10)


@pytest.mark.parametrize(("name", "width"), [("wide_resnet34_1.25", 80), ("wide_resnet34_4", 256)])
def test_the_grammar_knows_every_imagenet_network(name: str, width: int) -> None:
    found = catalog.resolve(name)
    assert (found.network, found.image_size, found.num_classes) == (WideImageNet, 224, 1000)
    with torch.device("meta"):
        assert catalog.create(name).state_dict()["stage1.block1.second.conv.weight"].shape == (width, width, 3, 3)


@pytest.mark.parametrize(
    "name",
    [
        "wrn_16",
        "wrn_016_4",
        "wrn_16_4_b",
        "wrn_16_4_b5",
        "wrn_16_4_l0",
        "wrn_16_1.5",
        "wide_resnet50_2.0",
        "wide_resnet50",
    ],
)
def test_the_grammar_leaves_other_names_alone(name: str) -> None:
    assert parse(name) is None


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("wrn_17_4", "6N . 4 convolutions. Take 'wrn_16_4' or 'wrn_22_4'"),
        ("wrn_4_4", "'wrn_10_4' or 'wrn_16_4'"),
        ("wrn_38_2_l3", "9N . 4 convolutions. Take 'wrn_31_2_l3' or 'wrn_40_2_l3'"),
        ("wrn_41_2_b131", "'wrn_40_2_b131' or 'wrn_46_2_b131'"),
        ("wide_resnet152_2", "18, 34, 50 or 101"),
        ("wide_resnet18_1.3", "widening=1.3"),
    ],
)
def test_names_that_make_no_network_are_refused(name: str, near: str) -> None:
    with pytest.raises(UserError, match=near):
        catalog.resolve(name)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("wrn_16_2", {"kernels": ()}),
        ("wrn_16_2", {"kernels": (3, 2)}),
        ("wrn_16_2", {"widening": 1.5}),
        ("wrn_16_2", {"dropout": 1.0}),
        ("wrn_16_2", {"dropout": "0.3"}),
        ("wrn_16_2", {"blocks": (2, 0)}),
        ("wide_resnet50_2", {"widening": 0}),
        ("wide_resnet50_2", {"widening": True}),
        ("wide_resnet50_2", {"widening": float("nan")}),
        ("wide_resnet50_2", {"block": "wide"}),
    ],
)
def test_options_that_make_no_network_are_refused(name: str, options: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        catalog.create(name, **options)


@pytest.mark.parametrize("name", ["wrn_16_2", "wide_resnet18_2"])
def test_stochastic_depth_is_an_option(name: str) -> None:
    with torch.device("meta"):
        blocks = residual_blocks(catalog.create(name, final_survival=0.5))
    assert blocks[-1].survival == 0.5
    assert len(blocks) == sum(catalog.resolve(name).config.blocks)
    assert catalog.resolve(name).config.final_survival == 1
