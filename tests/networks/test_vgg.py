"""VGG against torchvision's with its weights, its table written out, and what the paper says."""

from __future__ import annotations

import math
import re

import pytest
import torch
import torchvision
from torch import Tensor, nn

from resnext import catalog
from resnext.complexity import describe
from resnext.errors import UserError
from resnext.layers import LocalResponseNorm
from resnext.networks.vgg import parse

IN_TORCHVISION = [f"vgg{depth}{norm}" for norm in ("", "_bn") for depth in (11, 13, 16, 19)]
HIDDEN, CLASSES = 48, 9


def meta(name: str, **options: object) -> nn.Module:
    with torch.device("meta"):
        return catalog.create(name, **options)


def layers(network: nn.Module) -> list[nn.Module]:
    """Return what has weights, in the order in which it runs."""
    return [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d)]


def randomise(network: nn.Module) -> None:
    """Draw weights that keep activations alive, and biases and statistics that are told apart."""
    for layer in layers(network):
        nn.init.normal_(layer.bias, std=0.2)
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.running_mean, std=0.2)
            nn.init.uniform_(layer.running_var, 0.5, 2)
        else:
            nn.init.normal_(layer.weight, std=math.sqrt(2 / layer.weight[0].numel()))


def twins(name: str) -> tuple[nn.Module, nn.Module]:
    """Return torchvision's network with random tensors, its classifier narrowed to be quick, and ours with the same."""
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)(weights=None, init_weights=False)
        for index, shape in ((0, (512 * 49, HIDDEN)), (3, (HIDDEN, HIDDEN)), (6, (HIDDEN, CLASSES))):
            theirs.classifier[index] = nn.Linear(*shape)
    theirs.to_empty(device="cpu")
    torch.manual_seed(1)
    randomise(theirs)
    ours = meta(name, hidden=HIDDEN, num_classes=CLASSES).to_empty(device="cpu")
    for mine, other in zip(layers(ours), layers(theirs), strict=True):
        mine.load_state_dict(other.state_dict(), strict=True)
    return ours, theirs


def run(network: nn.Module, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the logits and the gradients, with the same dropout in every run."""
    torch.manual_seed(2)
    logits = network(images)
    return logits.detach(), torch.autograd.grad(logits.logsumexp(1).sum(), list(network.parameters()))


@pytest.mark.parametrize("name", IN_TORCHVISION)
@pytest.mark.parametrize("training", [False, True])
def test_logits_and_gradients_equal_torchvisions(name: str, training: bool) -> None:
    """In training with its dropout, and its batch statistics."""
    ours, theirs = (network.train(training) for network in twins(name))
    images = torch.randn(3, 3, 72, 96)
    (logits, gradients), (expected, their_gradients) = run(ours, images), run(theirs, images)
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()
    # The gradients of biases that a batch norm takes away again are nothing but rounding.
    rounding = 1e-6 * max(gradient.abs().max().item() for gradient in their_gradients)
    for gradient, other in zip(gradients, their_gradients, strict=True):
        assert (gradient - other).abs().max() <= 1e-4 * other.abs().max() + rounding
    for mine, other in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("name", IN_TORCHVISION)
def test_torchvision_publishes_the_same_costs(name: str) -> None:
    published = getattr(torchvision.models, f"{name.upper()}_Weights").DEFAULT.meta
    [row] = catalog.rows(name)
    assert row["parameters"] == published["num_params"]
    assert round(int(str(row["macs"])) / 1e9, 3) == published["_ops"]


# Table 1, and the millions of parameters in Table 2: "3-64" is a convolution of 3×3 to 64 channels.
TABLE = {
    "vgg11": ("3-64 M 3-128 M 3-256 3-256 M 3-512 3-512 M 3-512 3-512 M", 133),
    "vgg11_lrn": ("3-64 LRN M 3-128 M 3-256 3-256 M 3-512 3-512 M 3-512 3-512 M", 133),
    "vgg13": ("3-64 3-64 M 3-128 3-128 M 3-256 3-256 M 3-512 3-512 M 3-512 3-512 M", 133),
    "vgg16_c": ("3-64 3-64 M 3-128 3-128 M 3-256 3-256 1-256 M 3-512 3-512 1-512 M 3-512 3-512 1-512 M", 134),
    "vgg16": ("3-64 3-64 M 3-128 3-128 M 3-256 3-256 3-256 M 3-512 3-512 3-512 M 3-512 3-512 3-512 M", 138),
    "vgg19": (
        "3-64 3-64 M 3-128 3-128 M 3-256 3-256 3-256 3-256 M 3-512 3-512 3-512 3-512 M 3-512 3-512 3-512 3-512 M",
        144,
    ),
}


def symbol(layer: nn.Module) -> str:
    if isinstance(layer, nn.Conv2d):
        [kernel] = set(layer.kernel_size)
        assert (layer.stride, layer.groups) == ((1, 1), 1)
        return f"{kernel}-{layer.out_channels}"
    return {nn.MaxPool2d: "M", LocalResponseNorm: "LRN"}.get(type(layer), "")


@pytest.mark.parametrize("name", TABLE)
def test_columns_are_those_of_the_papers_table(name: str) -> None:
    network = meta(name)
    column, millions = TABLE[name]
    symbols = [symbol(layer) for layer in network.modules()]
    assert " ".join(filter(None, symbols)) == column
    told = describe(name)
    assert round(told["parameters"] / 1e6) == millions
    assert told["depth"] == int(re.findall(r"\d+", name)[0])
    stages = [tuple(stage["output"]) for stage in told["stages"][:-1]]
    assert stages == [(64, 112, 112), (128, 56, 56), (256, 28, 28), (512, 14, 14), (512, 7, 7)]
    assert tuple(stages) == catalog.resolve(name).variant.stages


@pytest.mark.parametrize("name", ["vgg11", "vgg13", "vgg16", "vgg19"])
def test_batch_norm_versions_add_a_norm_to_every_convolution_and_nothing_else(name: str) -> None:
    plain, normed = layers(meta(name)), layers(meta(f"{name}_bn"))
    convolutions = [layer for layer in plain if isinstance(layer, nn.Conv2d)]
    norms = [layer for layer in normed if isinstance(layer, nn.BatchNorm2d)]
    assert [norm.num_features for norm in norms] == [layer.out_channels for layer in convolutions]
    assert [repr(layer) for layer in normed if layer not in norms] == [repr(layer) for layer in plain]
    assert describe(f"{name}_bn")["depth"] == len(plain)


def test_the_normalised_network_is_a_with_one_layer_more() -> None:
    torch.manual_seed(3)
    plain, normed = (catalog.create(name, width=8, hidden=16).eval() for name in ("vgg11", "vgg11_lrn"))
    for mine, other in zip(layers(normed), layers(plain), strict=True):
        mine.load_state_dict(other.state_dict())
    images = 20 * torch.randn(2, 3, 64, 64)
    first = plain.stage1.conv1(images).relu()
    sums = [first[:, max(0, i - 2) : i + 3].square().sum(1) for i in range(8)]
    first = first / (2 + 1e-4 * torch.stack(sums, dim=1)) ** 0.75
    expected = nn.functional.max_pool2d(first, 2)
    for stage in (plain.stage2, plain.stage3, plain.stage4, plain.stage5, plain.head):
        expected = stage(expected)
    torch.testing.assert_close(normed(images), expected)


@pytest.mark.parametrize("name", ["vgg16_c", "vgg13_bn"])
def test_fresh_weights_are_glorots_uniform_and_biases_zero(name: str) -> None:
    torch.manual_seed(4)
    for layer in layers(catalog.create(name, width=32, hidden=256)):
        assert not layer.bias.any()
        if isinstance(layer, nn.BatchNorm2d):
            continue
        places = layer.weight[0, 0].numel()
        bound = math.sqrt(6 / (places * (layer.weight.shape[0] + layer.weight.shape[1])))
        n = layer.weight.numel()
        assert 0.99 * bound < layer.weight.abs().max() <= bound
        assert abs(layer.weight.std().item() / (bound / math.sqrt(3)) - 1) < 5 / math.sqrt(n)
        assert abs(layer.weight.mean().item()) < 5 * bound / math.sqrt(n)


@pytest.mark.parametrize("name", ["vgg11", "vgg13_bn"])
def test_dense_is_the_head_slid_over_a_larger_map(name: str) -> None:
    torch.manual_seed(5)
    network = catalog.create(name, width=4, hidden=24, num_classes=5).eval()
    randomise(network)
    with torch.inference_mode():
        images = torch.randn(2, 3, 288, 256)
        maps = network.features(images)["stage5"]
        assert maps.shape[2:] == (9, 8)
        crops = [network.head(maps[:, :, y : y + 7, x : x + 7]) for y in range(3) for x in range(2)]
        torch.testing.assert_close(network.dense(images), torch.stack(crops).mean(0), rtol=1e-4, atol=1e-4)
        published, small = images[:, :, :224, :224], images[:, :, :64, :]
        torch.testing.assert_close(network.dense(published), network(published), rtol=1e-4, atol=1e-4)
        assert torch.equal(network.dense(small), network(small))


def test_32_pixels_are_the_smallest_image() -> None:
    network = meta("vgg16")
    assert network.smallest == network.stride == 32
    assert network(torch.empty(1, 3, 32, 32, device="meta")).shape == (1, 1000)
    with pytest.raises(RuntimeError):
        network(torch.empty(1, 3, 31, 31, device="meta"))
    with pytest.raises(UserError, match="32 or more"):
        describe("vgg16", image_size=31)


@pytest.mark.parametrize(
    "options",
    [
        {"column": "F"},
        {"column": ["A"]},
        {"batch_norm": "yes"},
        {"width": 0},
        {"hidden": 4096.0},
        {"dropout": 1},
        {"dropout": -0.1},
        {"dropout": None},
    ],
)
def test_options_that_make_no_network_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        catalog.create("vgg16", **options)


@pytest.mark.parametrize(("name", "near"), [("vgg17", "vgg1"), ("vgg16_d", "vgg16_c"), ("VGG19_BN", "vgg19_bn")])
def test_there_is_no_grammar_beyond_the_table(name: str, near: str) -> None:
    assert parse(name) is None
    with pytest.raises(UserError, match=f"Did you mean .*{near}"):
        catalog.resolve(name)
