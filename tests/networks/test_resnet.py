"""ResNet against torchvision, against the paper's formulas written out, and against its own promises."""

from __future__ import annotations

import copy
import math
import re

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from resnext import catalog
from resnext.complexity import describe
from resnext.errors import UserError
from resnext.layers import ZeroPadShortcut
from resnext.networks.resnet import ResNet, ResNetConfig, parse
from resnext.residual import residual_blocks

# torchvision keeps its ResNeXts and wide ResNets among its ResNets, so one translation of names serves all.
IN_TORCHVISION = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
)


def our_name(name: str, bottleneck: bool) -> str:
    """Translate the name of a torchvision parameter."""
    ours = {"conv1": "stem.conv", "bn1": "stem.norm", "fc": "head.fc"}
    module, _, tensor = name.rpartition(".")
    if not module.startswith("layer"):
        return f"{ours[module]}.{tensor}"
    stage, block, *rest = module.removeprefix("layer").split(".")
    inner = {"downsample.0": "shortcut.conv", "downsample.1": "shortcut.norm"}
    for number, child in enumerate(("reduce", "spatial", "expand") if bottleneck else ("first", "second"), 1):
        inner |= {f"conv{number}": f"{child}.conv", f"bn{number}": f"{child}.norm"}
    return f"stage{stage}.block{int(block) + 1}.{inner['.'.join(rest)]}.{tensor}"


def randomise_norms(network: nn.Module) -> None:
    """Give every batch norm the affine parameters and the statistics of a network that has been trained."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.2, 0.8)
            nn.init.normal_(module.bias, 0, 0.2)
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)


def twins(name: str) -> tuple[nn.Module, nn.Module]:
    """Return torchvision's network with random weights and statistics, and ours with the same tensors."""
    torch.manual_seed(1)
    theirs = getattr(torchvision.models, name)(weights=None)
    randomise_norms(theirs)
    with torch.device("meta"):
        ours = catalog.create(name)
    bottleneck = name not in ("resnet18", "resnet34")
    weights = {our_name(key, bottleneck): tensor for key, tensor in theirs.state_dict().items()}
    ours.load_state_dict(weights, strict=True, assign=True)
    return theirs, ours


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    """Hold the largest difference to 1e-5 of the largest value."""
    assert theirs.abs().max() > 0
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("name", IN_TORCHVISION)
def test_logits_equal_torchvisions(name: str) -> None:
    theirs, ours = twins(name)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert_close(ours.eval()(images), theirs.eval()(images))


def test_training_equals_torchvisions() -> None:
    theirs, ours = twins("resnet18")
    ours = copy.deepcopy(ours)  # the twins share their tensors
    images, labels = torch.randn(8, 3, 64, 64), torch.arange(8)
    logits = [network.train()(images) for network in (ours, theirs)]
    for network_logits in logits:
        F.cross_entropy(network_logits, labels).backward()
    assert_close(*(network_logits.detach() for network_logits in logits))
    gradients = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        gradient = gradients[our_name(name, bottleneck=False)].grad
        assert (gradient - parameter.grad).abs().max() <= 1e-4 * parameter.grad.abs().max(), name
    buffers = dict(ours.named_buffers())
    for name, buffer in theirs.named_buffers():
        torch.testing.assert_close(buffers[our_name(name, bottleneck=False)], buffer)


def written_out(images: Tensor, weights: dict[str, Tensor], config: ResNetConfig) -> Tensor:
    """Section 4.2's network in training mode, as formulas: batch statistics, option A or no shortcut."""

    def conv_norm(x: Tensor, name: str, stride: int = 1) -> Tensor:
        x = F.conv2d(x, weights[f"{name}.conv.weight"], stride=stride, padding=1)
        mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, unbiased=False)
        gamma, beta = (weights[f"{name}.norm.{part}"].view(1, -1, 1, 1) for part in ("weight", "bias"))
        return (x - mean) / (variance + 1e-5).sqrt() * gamma + beta

    x = conv_norm(images, "stem").relu()
    for stage, blocks in enumerate(config.blocks, 1):
        for block in range(1, blocks + 1):
            stride = 2 if stage > 1 and block == 1 else 1
            name = f"stage{stage}.block{block}"
            y = conv_norm(conv_norm(x, f"{name}.first", stride).relu(), f"{name}.second")
            x = x[:, :, ::stride, ::stride]
            if stride == 2:
                x = torch.cat((x, torch.zeros_like(x)), dim=1)
            x = (y + x if config.shortcut == "A" else y).relu()
    return x.mean((2, 3)) @ weights["head.fc.weight"].T + weights["head.fc.bias"]


@pytest.mark.parametrize("name", ["cifar_resnet14", "cifar_plain14"])
def test_cifar_networks_are_the_papers_formulas(name: str) -> None:
    torch.manual_seed(2)
    network = catalog.create(name)
    randomise_norms(network)
    images = torch.randn(4, 3, 29, 32)  # an odd side: option A has to round as the convolution does
    expected = written_out(images, network.state_dict(), catalog.resolve(name).config)
    assert_close(network(images).detach(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_option_a_is_a_strided_slice_and_zeros(dtype: torch.dtype, layout: torch.memory_format) -> None:
    torch.manual_seed(3)
    images = torch.randn(2, 6, 7, 8).to(dtype).to(memory_format=layout).requires_grad_()
    entering = images * 1
    out = ZeroPadShortcut(extra=5, stride=2)(entering)
    assert torch.equal(out[:, :6], images[:, :, ::2, ::2])
    assert torch.equal(out[:, 6:], torch.zeros(2, 5, 4, 4, dtype=dtype))
    [gradient] = torch.autograd.grad(out, entering, torch.ones_like(out))
    picked = torch.zeros(7, 8)
    picked[::2, ::2] = 1
    assert torch.equal(gradient.float(), picked.expand(2, 6, 7, 8))
    assert gradient.is_contiguous(memory_format=layout)


@pytest.mark.parametrize(
    ("name", "options", "projections"),
    [
        ("resnet34", {}, 3),
        ("resnet34_a", {}, 0),
        ("resnet34_c", {}, 16),
        ("plain34", {}, 0),
        ("resnet50", {}, 4),
        ("resnet50_no_shortcut", {}, 0),
        ("resnet200", {}, 4),
        ("cifar_resnet20", {}, 0),
        ("cifar_resnet20_b", {}, 2),
    ],
)
def test_projections_stand_where_the_option_says(name: str, options: dict[str, str], projections: int) -> None:
    with torch.device("meta"):
        network = catalog.create(name, **options)
    found = [key for key in network.state_dict() if re.search(r"shortcut\.conv\.weight", key)]
    assert len(found) == projections


@pytest.mark.parametrize("pair", [("plain18", "resnet18_a"), ("cifar_plain20", "cifar_resnet20")])
def test_plain_networks_have_the_tensors_of_option_a_and_no_shortcut(pair: tuple[str, str]) -> None:
    with torch.device("meta"):
        plain, residual = map(catalog.create, pair)
    assert {key: value.shape for key, value in plain.state_dict().items()} == {
        key: value.shape for key, value in residual.state_dict().items()
    }
    assert not any("shortcut" in name for name, _ in plain.named_modules())


@pytest.mark.parametrize(
    ("name", "billions"), [("resnet50_no_shortcut", 3.730), ("resnext50_32x4d_no_shortcut", 3.871)]
)
def test_without_shortcuts_a_block_is_its_branch(name: str, billions: float) -> None:
    """The residual ablation of arXiv:1611.05431 section 5.1, which takes the projections away as well."""
    told = describe(name)
    assert round(told["macs"] / 1e9, 3) == billions
    assert told["depth"] == 50
    torch.manual_seed(6)
    network = catalog.create(name, blocks=(2, 1), **({"width": 8} if name.startswith("resnet") else {})).eval()
    assert not any("shortcut" in key for key, _ in network.named_modules())
    randomise_norms(network)
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        expected = network.stem(images)
        for block in residual_blocks(network):
            expected = block.expand(block.spatial(block.reduce(expected))).relu()
        assert torch.equal(network(images), network.head(expected))
    with pytest.raises(UserError, match="no way around a block"):
        catalog.create(name, final_survival=0.5)


@pytest.mark.parametrize("depth", [20, 56, 110])
def test_option_b_for_cifar_adds_two_projections_with_norms(depth: int) -> None:
    extra = 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    rows = {row["name"]: row["parameters"] for row in catalog.rows(f"cifar_resnet{depth}*")}
    assert rows[f"cifar_resnet{depth}_b"] == int(str(rows[f"cifar_resnet{depth}"])) + extra
    assert catalog.resolve(f"cifar_resnet{depth}_b").config.shortcut == "B"


@pytest.mark.parametrize(("name", "side"), [("resnet50", 56), ("resnet50_v1", 28)])
def test_the_stride_is_in_the_layer_that_the_name_says(name: str, side: int) -> None:
    with torch.device("meta"):
        network = catalog.create(name).eval()
        shapes = []
        network.stage2.block1.reduce.register_forward_hook(lambda *call: shapes.append(call[2].shape))
        assert network(torch.empty(1, 3, 224, 224)).shape == (1, 1000)
    assert shapes == [(1, 128, side, side)]


def test_fresh_weights_are_he_normal_in_the_fan_out_form() -> None:
    torch.manual_seed(4)
    network = catalog.create("resnet18")
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            assert module.bias is None
            expected = math.sqrt(2 / (math.prod(module.kernel_size) * module.out_channels))
            n = module.weight.numel()
            assert abs(module.weight.std().item() / expected - 1) < 5 / math.sqrt(2 * n), name
            assert abs(module.weight.mean().item()) < 5 * expected / math.sqrt(n), name
        elif isinstance(module, nn.BatchNorm2d):
            assert torch.equal(module.weight, torch.ones_like(module.weight)), name
            assert not module.bias.any(), name
    assert not network.head.fc.bias.any()


@pytest.mark.parametrize("blocks", [1, 2, 12, 100])
@pytest.mark.parametrize(("family", "shortcut"), [("resnet", "A"), ("plain", "none")])
def test_the_grammar_knows_every_depth_of_the_family(family: str, shortcut: str, blocks: int) -> None:
    found = catalog.resolve(f"cifar_{family}{6 * blocks + 2}")
    assert found.network is ResNet
    assert found.variant is None
    assert found.config == ResNetConfig((blocks,) * 3, stem="cifar", width=16, shortcut=shortcut)
    assert (found.image_size, found.num_classes) == (32, 10)


@pytest.mark.parametrize("name", ["resnet50", "cifar_resnet", "cifar_resnet020", "xcifar_resnet20", "cifar_resnet20_2"])
def test_the_grammar_leaves_other_names_alone(name: str) -> None:
    assert parse(name) is None


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("cifar_resnet21", ["cifar_resnet20", "cifar_resnet26"]),
        ("cifar_plain2", ["cifar_plain8", "cifar_plain14"]),
        ("cifar_resnet1", ["cifar_resnet8", "cifar_resnet14"]),
    ],
)
def test_a_depth_outside_the_family_is_named_with_its_neighbours(name: str, near: list[str]) -> None:
    with pytest.raises(UserError, match="6n \\+ 2") as caught:
        catalog.resolve(name)
    assert all(repr(other) in str(caught.value) for other in near)
    for other in near:
        catalog.resolve(other)


@pytest.mark.parametrize(
    "options",
    [
        {"shortcut": "D"},
        {"shortcut": ["A"]},
        {"stride_in": "7x7"},
        {"stride_in": "1x1"},
        {"block": "dense"},
        {"stem": "mnist"},
        {"blocks": ()},
        {"blocks": (2, 0, 2, 2)},
        {"blocks": 1.5},
        {"width": True},
    ],
)
def test_options_that_make_no_network_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        catalog.create("resnet18", **options)
