"""Convolutions that read the same input, as one: the same function with fewer of them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, fx, nn

from equivalence.test_folding import largest_error, small
from resnext.equivalence.folding import flow, fold, module_of
from resnext.equivalence.merging import merge
from resnext.equivalence.sharing import share
from resnext.networks.preact_resnet import PreactBottleneck
from resnext.networks.resnet import Bottleneck
from resnext.networks.resnext import AggregatedBottleneck
from small import ALL

# How many convolutions go: k − 1 for every k that read the same. Counted by hand from the papers' figures.
FEWER = {
    "googlenet": 9 * 2,
    "bn_inception": 8 * 2 + 2 * 1,
    "inception_v3": 3 * 2 + 4 * 2 + (2 + 2) + 1,  # modules A, C, E and the second reduction
    "resnet50_v1": 2,
    "cifar_preact_resnet164": 2,
}


def convolutions(network: nn.Module) -> int:
    found = {node.target for node in flow(network).nodes if isinstance(module_of(network, node), nn.Conv2d)}
    return len(found)


@pytest.mark.parametrize(("name", "options"), ALL)
def test_sharing_changes_no_output_and_no_feature(name: str, options: dict[str, object]) -> None:
    network, side = small(name, options)
    images = torch.randn(2, 3, side + 8, side, dtype=torch.float64)
    folded = fold(network)
    single, double = share(folded), share(fold(copy.deepcopy(network).double()))
    with torch.inference_mode():
        assert largest_error(single(images.float()), network(images.float())) <= 1e-4
        network.double()
        expected, actual = network.features(images), double.features(images)
        assert list(actual) == list(expected)
        for child, feature in expected.items():
            assert largest_error(actual[child], feature) <= 1e-10, child
        assert largest_error(double.dense(images), network.dense(images)) <= 1e-10
    fewer = convolutions(folded) - convolutions(single)
    if name in FEWER:
        assert fewer == FEWER[name]
    parameters = [sum(each.numel() for each in module.parameters()) for module in (folded, single)]
    assert fewer or parameters[0] == parameters[1]


@pytest.mark.parametrize("kind", ["post", "grouped", "pre"])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_projection_and_the_first_1x1_of_a_block_are_one(kind: str, stride: int) -> None:
    torch.manual_seed(1)
    blocks = {
        "post": lambda: Bottleneck(4, 6, width=3, stride=stride, stride_in="1x1"),
        "grouped": lambda: AggregatedBottleneck(4, 6, width=4, cardinality=2, stride=stride),
        "pre": lambda: PreactBottleneck(4, 6, width=3, stride=stride, stride_in="1x1"),
    }
    block = blocks[kind]().double().eval()
    images = torch.randn(2, 4, 7, 8, dtype=torch.float64)
    folded = fold(block)
    shared = share(folded)
    torch.testing.assert_close(shared(images), block(images), rtol=0, atol=1e-10)
    differ_in_stride = kind == "grouped" and stride == 2
    assert convolutions(folded) - convolutions(shared) == (0 if differ_in_stride else 1)


def test_the_original_is_untouched_and_copies_run() -> None:
    network, side = small("inception_v3", {})
    before = copy.deepcopy(network.state_dict())
    shared = share(network.train())
    assert network.training
    assert not any(isinstance(module, fx.GraphModule) for module in network.modules())
    assert all(module.inplace for module in network.modules() if isinstance(module, nn.ReLU))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not any(module.training for module in shared.modules())
    images = torch.randn(1, 3, side, side)
    with torch.inference_mode():
        assert torch.equal(copy.deepcopy(shared)(images), shared(images))


def test_layers_keep_their_names_so_that_groups_can_be_merged() -> None:
    network, side = small("cifar_resnext11_4x4d", {})
    shared = share(fold(network))
    merged = merge(shared, {f"stage{number}.block1.spatial.conv": 2 for number in (1, 2, 3)})
    images = torch.randn(2, 3, side, side)
    with torch.inference_mode():
        assert largest_error(merged(images), network(images)) <= 1e-4


class Differing(nn.Module):
    """Convolutions of one input that differ in one thing each."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv2d(4, 2, 3, padding=1)
        self.strided = nn.Conv2d(4, 2, 3, padding=1, stride=2)
        self.wide = nn.Conv2d(4, 2, 5, padding=2)
        self.dilated = nn.Conv2d(4, 2, 3, padding=2, dilation=2)
        self.grouped = nn.Conv2d(4, 2, 3, padding=1, groups=2)
        self.reflecting = nn.Conv2d(4, 2, 3, padding=1, padding_mode="reflect")
        self.valid = nn.Conv2d(4, 2, 3)

    def forward(self, images: Tensor) -> list[Tensor]:
        return [layer(images) for layer in self.children()] + [self.plain(images + 1)]


def test_convolutions_that_read_otherwise_stay_apart() -> None:
    module = Differing()
    shared = share(module)
    assert convolutions(shared) == 7
    images = torch.randn(1, 4, 8, 8)
    assert all(torch.equal(one, other) for one, other in zip(shared(images), module(images), strict=True))


def test_a_bias_of_some_is_zero_for_the_others() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Conv2d(3, 2, 1, bias=False), nn.Conv2d(3, 4, 1)

        def forward(self, images: Tensor) -> Tensor:
            return self.one(images).mean() + self.other(images).relu()

    module, images = Two(), torch.randn(2, 3, 4, 4)
    shared = share(module)
    assert convolutions(shared) == 1
    torch.testing.assert_close(shared(images), module(images))
