"""Inception-v4 against timm's, against published numbers, and against its own promises."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnext import catalog
from resnext.complexity import describe
from resnext.errors import UserError
from resnext.networks.inception_v4 import InceptionA, InceptionB, InceptionC


def twins() -> tuple[nn.Module, nn.Module]:
    """Return timm's network with random weights and statistics, and ours with the same tensors."""
    torch.manual_seed(1)
    theirs = timm.create_model("inception_v4", pretrained=False)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.2, 0.6)
    with torch.device("meta"):
        ours = catalog.create("inception_v4", dropout=0.0, auxiliary=False)
    # Both register the layers in the same order.
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)), assign=True)
    return theirs, ours


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    """Hold the largest difference to a share of the largest value."""
    assert theirs.abs().max() > 0
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


def test_logits_equal_timms() -> None:
    theirs, ours = twins()
    images = torch.randn(2, 3, 139, 139)
    with torch.inference_mode():
        assert_close(ours.eval()(images), theirs.eval()(images))


def test_training_equals_timms() -> None:
    theirs, ours = twins()
    ours = copy.deepcopy(ours)  # the twins share their tensors
    images, labels = torch.randn(4, 3, 107, 107), torch.arange(4)
    logits = [network.train()(images) for network in (ours, theirs)]
    for network_logits in logits:
        F.cross_entropy(network_logits, labels).backward()
    assert_close(*(network_logits.detach() for network_logits in logits))
    for parameter, their_parameter in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert_close(parameter.grad, their_parameter.grad, 1e-3)


def test_there_are_fourteen_modules() -> None:
    with torch.device("meta"):
        network = catalog.create("inception_v4")
    kinds = (InceptionA, InceptionB, InceptionC)
    counts = [sum(isinstance(module, kind) for module in network.modules()) for kind in kinds]
    assert counts == [4, 7, 3]
    assert sum(counts) == 14


def test_costs_and_shapes_are_the_published_ones() -> None:
    told = describe("inception_v4")
    assert told["parameters"] == 42_679_816
    assert told["training_parameters"] == 46_039_280
    assert told["macs"] == 12_253_974_624
    assert [stage["output"] for stage in told["stages"]] == [
        [384, 35, 35],
        [384, 35, 35],
        [1024, 17, 17],
        [1536, 8, 8],
        [1000],
    ]
    norms = sum(layer["output"][0] for layer in told["layers"] if layer["kind"] == "BatchNorm2d")
    assert norms == 31_584
    stem, a, to_17, b, to_8, c, fc = 9, 4 * 3, 3, 7 * 5, 4, 3 * 4, 1
    assert told["depth"] == stem + a + to_17 + b + to_8 + c + fc == 76


def test_the_smallest_image_is_75_pixels_wide() -> None:
    network = catalog.create("inception_v4", blocks=(1, 1, 1), num_classes=3)
    assert network.smallest == 75
    outputs = network.training_logits(torch.randn(2, 3, 75, 75))
    assert [(weight, logits.shape) for weight, logits in outputs] == [(1.0, (2, 3)), (0.4, (2, 3))]
    with pytest.raises(RuntimeError):
        network.eval()(torch.randn(2, 3, 74, 74))


def test_average_pools_do_not_count_the_padding() -> None:
    """The mean of ones is one at the border as well."""
    with torch.device("meta"):
        network = catalog.create("inception_v4")
    pools = [module for module in network.modules() if isinstance(module, nn.AvgPool2d) and module.padding]
    assert len(pools) == 14
    ones = torch.ones(1, 2, 5, 5)
    assert all(torch.equal(pool(ones), ones) for pool in pools)


@pytest.mark.parametrize("blocks", [(4, 7), (4, 7, 3, 1), (4, 0, 3), 3])
def test_options_that_make_no_network_are_refused(blocks: object) -> None:
    with pytest.raises(UserError, match="blocks"):
        catalog.create("inception_v4", blocks=blocks)
