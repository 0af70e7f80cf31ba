"""Dropout: which networks have it, where, and how much; and that it falls on what a linear layer reads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnext import catalog

HIDDEN = {"head.dropout6": 0.5, "head.dropout7": 0.5}
AUXILIARY = {"auxiliary.stage2_inception4a.dropout": 0.7, "auxiliary.stage2_inception4d.dropout": 0.7}

# The probability that a number is set to zero; the networks that are not here have no dropout.
DROPOUTS: dict[str, dict[str, float]] = {
    "alexnet": HIDDEN,
    "alexnet_ungrouped": HIDDEN,
    "alexnet_one_tower": HIDDEN,
    "vgg11": HIDDEN,
    "vgg11_lrn": HIDDEN,
    "vgg13": HIDDEN,
    "vgg16_c": HIDDEN,
    "vgg16": HIDDEN,
    "vgg19": HIDDEN,
    "vgg11_bn": HIDDEN,
    "vgg13_bn": HIDDEN,
    "vgg16_bn": HIDDEN,
    "vgg19_bn": HIDDEN,
    "googlenet": {"head.dropout": 0.4, **AUXILIARY},
    "googlenet_bn": {"head.dropout": 0.4, **AUXILIARY},
    "googlenet_torchvision": {"head.dropout": 0.2, **AUXILIARY},
    "bn_inception_slim": {"head.dropout": 0.2},
    "inception_v2": {"head.dropout": 0.2},
    "inception_v3": {"head.dropout": 0.2},
    "inception_v3_torchvision": {"head.dropout": 0.5},
    "inception_v4": {"head.dropout": 0.2},
    "inception_resnet_v1": {"head.dropout": 0.2},
    "inception_resnet_v1_facenet": {"head.dropout": 0.2},
    "inception_resnet_v2": {"head.pooled.dropout": 0.2},
    "inception_resnet_v2_paper": {"head.dropout": 0.2},
}


def test_the_table_has_no_name_that_is_not_listed() -> None:
    assert set(catalog.names()) >= DROPOUTS.keys()


@pytest.mark.parametrize("name", catalog.names())
def test_dropout_stands_where_the_table_says(name: str) -> None:
    with torch.device("meta"):
        modules = catalog.create(name).named_modules()
    found = {key: module for key, module in modules if "Dropout" in type(module).__name__}
    assert all(type(module) is nn.Dropout for module in found.values())
    assert {key: module.p for key, module in found.items()} == DROPOUTS.get(name, {})


def entering(head: nn.Module, maps: Tensor) -> dict[str, Tensor]:
    """Return what enters the linear layers of a head in training, by their names."""
    read: dict[str, Tensor] = {}
    for key, module in head.train().named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda _, given, key=key: read.update({key: given[0].clone()}))
    with torch.no_grad():
        head(maps)
    return read


def assert_dropped(dropped: Tensor, before: Tensor, p: float) -> None:
    """Hold `dropped` to what is left of `before`: nothing with probability p, and else x/(1 − p)."""
    left = dropped != 0
    torch.testing.assert_close(dropped[left], before[left] / (1 - p))
    alive = before.abs() > 1e-6
    n = int(alive.sum())
    assert n > 1000
    assert (1 - left[alive].float().mean() - p).abs() < 5 * (p * (1 - p) / n) ** 0.5


@pytest.mark.parametrize(
    ("name", "options", "channels", "p"),
    [
        ("googlenet", {}, 1024, 0.4),
        ("googlenet_torchvision", {}, 1024, 0.2),
        ("bn_inception_slim", {}, 1024, 0.2),
        ("inception_v3", {}, 2048, 0.2),
        ("inception_v4", {"blocks": (1, 1, 1)}, 1536, 0.2),
    ],
)
def test_dropout_comes_between_the_pool_and_the_classifier(
    name: str, options: dict[str, object], channels: int, p: float
) -> None:
    torch.manual_seed(1)
    maps = torch.randn(16, channels, 3, 4)
    read = entering(catalog.create(name, num_classes=5, **options).head, maps)
    assert_dropped(read["fc"], maps.mean((2, 3)), p)


def test_dropout_comes_behind_the_last_convolution_and_the_pool() -> None:
    torch.manual_seed(2)
    head = catalog.create("inception_resnet_v2", num_classes=5, blocks=(1, 1, 1)).head
    maps = torch.randn(16, 2080, 3, 4)
    with torch.no_grad():
        x = F.conv2d(maps, head.expand.conv.weight)
        mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, unbiased=False)
        pooled = ((x - mean) / (variance + 1e-3).sqrt()).relu().mean((2, 3))
    assert_dropped(entering(head, maps)["pooled.fc"], pooled, 0.2)


def hidden(head: nn.Module, read: dict[str, Tensor], key: str) -> Tensor:
    """Return what a hidden layer and its ReLU made of what entered it."""
    layer = head.get_submodule(key)
    return (read[key] @ layer.weight.T + layer.bias).relu().detach()


@pytest.mark.parametrize(
    ("name", "options", "channels", "side"),
    [("alexnet", {"channels": (8, 16, 16, 16, 16)}, 16, 6), ("vgg16_c", {"width": 4}, 32, 7)],
)
def test_dropout_falls_on_what_the_hidden_layers_put_out(
    name: str, options: dict[str, object], channels: int, side: int
) -> None:
    torch.manual_seed(3)
    head = catalog.create(name, num_classes=5, hidden=512, **options).head
    maps = torch.randn(16, channels, side, side)
    read = entering(head, maps)
    assert torch.equal(read["fc6"], maps.flatten(1))
    assert_dropped(read["fc7"], hidden(head, read, "fc6"), 0.5)
    assert_dropped(read["fc8"], hidden(head, read, "fc7"), 0.5)


def test_one_tower_drops_what_enters_the_hidden_layers() -> None:
    torch.manual_seed(4)
    head = catalog.create("alexnet_one_tower", num_classes=5, channels=(8, 12, 16, 16, 12), hidden=512).head
    maps = torch.randn(16, 12, 6, 6)
    read = entering(head, maps)
    assert_dropped(read["fc6"], maps.flatten(1), 0.5)
    assert_dropped(read["fc7"], hidden(head, read, "fc6"), 0.5)
    torch.testing.assert_close(read["fc8"], hidden(head, read, "fc7"))


@pytest.mark.parametrize("place", ["4a", "4d"])
@pytest.mark.parametrize(
    ("name", "pool"),
    [
        ("googlenet", lambda maps: F.avg_pool2d(maps, 5, 3)),
        ("googlenet_torchvision", lambda maps: F.adaptive_avg_pool2d(maps, 4)),
    ],
)
def test_auxiliary_dropout_falls_on_the_hidden_layer(name: str, pool: Callable[[Tensor], Tensor], place: str) -> None:
    torch.manual_seed(5)
    head = catalog.create(name, num_classes=5).auxiliary[f"stage2_inception{place}"]
    maps = torch.randn(16, 512 if place == "4a" else 528, 14, 14)
    read = entering(head, maps)
    with torch.no_grad():
        flat = head.reduce(pool(maps)).flatten(1)
    torch.testing.assert_close(read["hidden"], flat)
    assert_dropped(read["fc"], hidden(head, read, "hidden"), 0.7)
