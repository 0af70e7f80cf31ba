"""Inception-ResNet against timm's, against published numbers, and with scales and gates."""

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
from resnext.networks.inception_resnet import WIDTHS, InceptionResidual
from resnext.residual import residual_blocks


def twins() -> tuple[nn.Module, nn.Module]:
    """Return timm's network with random weights and statistics, and ours with the same tensors."""
    torch.manual_seed(1)
    theirs = timm.create_model("inception_resnet_v2", pretrained=False)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.2, 0.6)
    with torch.device("meta"):
        ours = catalog.create("inception_resnet_v2", dropout=0.0, auxiliary=False)
    # Both register the layers in the same order.
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)), assign=True)
    return theirs, ours


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    """Hold the largest difference to a share of the largest value."""
    assert theirs.abs().max() > 0
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


def test_logits_equal_timms() -> None:
    theirs, ours = twins()
    images = torch.randn(2, 3, 107, 107)
    with torch.inference_mode():
        logits = ours.eval()(images)
        assert_close(logits, theirs.eval()(images))
        assert torch.equal(ours.dense(images), logits)


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


@pytest.mark.parametrize(
    ("name", "parameters", "training_parameters", "macs", "stem", "channels"),
    [
        ("inception_resnet_v1", 22_756_328, 22_756_328, 6_206_361_696, 256, (256, 896, 1792)),
        ("inception_resnet_v1_facenet", 24_357_096, 24_357_096, 6_308_597_856, 256, (256, 896, 1792)),
        ("inception_resnet_v2", 55_843_464, 59_211_120, 13_155_794_016, 320, (320, 1088, 2080)),
        ("inception_resnet_v2_paper", 32_433_928, 32_433_928, 9_257_953_632, 384, (384, 1152, 2144)),
    ],
)
def test_costs_and_shapes_are_the_published_ones(
    name: str, parameters: int, training_parameters: int, macs: int, stem: int, channels: tuple[int, ...]
) -> None:
    told = describe(name)
    assert (told["parameters"], told["training_parameters"]) == (parameters, training_parameters)
    assert told["macs"] == macs
    sides = (35, 35, 17, 8)
    expected = [[width, side, side] for width, side in zip((stem, *channels), sides, strict=True)]
    assert [stage["output"] for stage in told["stages"]] == [*expected, [1000]]


@pytest.mark.parametrize(
    ("name", "stem", "blocks", "after"),
    [
        ("inception_resnet_v1", 6, 20, 1),
        ("inception_resnet_v1_facenet", 6, 21, 1),
        ("inception_resnet_v2", 5 + 3, 40, 2),
        ("inception_resnet_v2_paper", 9, 20, 1),
    ],
)
def test_depth_is_that_of_the_figures(name: str, stem: int, blocks: int, after: int) -> None:
    """A block's longest way has four layers, the reductions' three each."""
    assert describe(name)["depth"] == stem + 4 * blocks + 2 * 3 + after


def test_batch_norms_are_as_many_as_published() -> None:
    told = describe("inception_resnet_v2")
    norms = sum(layer["output"][0] for layer in told["layers"] if layer["kind"] == "BatchNorm2d")
    assert norms == 30_272
    assert told["parameters"] + norms == 55_873_736  # Keras's count: statistics, but no γ


def test_the_linear_convolution_has_a_bias_and_no_norm() -> None:
    with torch.device("meta"):
        blocks = residual_blocks(catalog.create("inception_resnet_v2"))
    assert len(blocks) == 40
    assert all(block.expand.bias is not None for block in blocks)
    assert all(conv.conv.bias is None for block in blocks for way in block.branches.children() for conv in way)
    assert [block.scale for block in blocks] == [0.17] * 10 + [0.10] * 20 + [0.20] * 9 + [1.0]
    assert [block.relu for block in blocks] == [True] * 39 + [False]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", ["a", "b", "c"])
@pytest.mark.parametrize("modules", ["v1", "v2"])
def test_a_block_is_the_rectified_sum_of_x_and_its_scaled_branch(modules: str, kind: str, training: bool) -> None:
    torch.manual_seed(2)
    branches = getattr(WIDTHS[modules], kind)
    images = torch.randn(2, 6, 9, 9)
    block = InceptionResidual(6, branches, scale=0.5).train(training)
    unscaled = InceptionResidual(6, branches, scale=1.0, relu=False).train(training)
    silent = InceptionResidual(6, branches, scale=0.0).train(training)
    untouched = images.clone()
    with torch.no_grad():
        outs = [conv(images) for conv in block.branches.children()]
        branch = F.conv2d(torch.cat(outs, 1), block.expand.weight, block.expand.bias)
        torch.testing.assert_close(block(images), F.relu(images + 0.5 * branch))
        branch = unscaled.expand(unscaled.branches(images))
        torch.testing.assert_close(unscaled(images), images + branch)
        assert torch.equal(silent(images), F.relu(images))
    assert torch.equal(images, untouched)


SMALL = {"blocks": (1, 2, 1), "auxiliary": False, "dropout": 0.0}


@pytest.mark.parametrize(
    ("name", "count"),
    [("inception_resnet_v1_facenet", 5), ("inception_resnet_v2", 5), ("inception_resnet_v2_paper", 4)],
)
def test_what_enters_a_block_is_rectified(name: str, count: int) -> None:
    """A block with a closed gate hands on what enters it, which is ReLU(x) only then."""
    torch.manual_seed(3)
    network = catalog.create(name, num_classes=4, **SMALL)
    smallest = []
    for block in residual_blocks(network):
        block.register_forward_hook(lambda *call: smallest.append(call[1][0].min().item()))
    network(torch.randn(2, 3, 75, 75))
    assert len(smallest) == count
    assert min(smallest) >= 0


def test_closed_gates_leave_the_branches_out_and_open_ones_change_nothing() -> None:
    torch.manual_seed(4)
    network = catalog.create("inception_resnet_v1_facenet", num_classes=4, final_survival=0.5, **SMALL)
    blocks, images = residual_blocks(network), torch.randn(2, 3, 75, 75)
    assert [block.survival for block in blocks] == [0.9, 0.8, 0.7, 0.6, 0.5]
    calls = []
    for block in blocks:
        block.expand.register_forward_hook(lambda *call: calls.append(call[0]))
    network(images)
    assert calls == [block.expand for block in blocks]
    calls.clear()
    for block in blocks:
        block.gate = False
    closed = network(images)
    assert not calls
    skipped = network.stage3.reduction(network.stage2.reduction(network.stem(images)))
    torch.testing.assert_close(closed, network.head(skipped))


def test_branches_count_their_survival_at_test() -> None:
    torch.manual_seed(5)
    network = catalog.create("inception_resnet_v1_facenet", num_classes=4, final_survival=0.5, **SMALL).eval()
    images = torch.randn(2, 1792, 3, 3)
    scaled, last = network.stage3.block1, network.stage3.block2
    with torch.no_grad():
        branch = scaled.expand(scaled.branches(images))
        torch.testing.assert_close(scaled(images), F.relu(images + 0.6 * 0.20 * branch))
        branch = last.expand(last.branches(images))
        torch.testing.assert_close(last(images), images + 0.5 * branch)


def test_dropped_paths_are_those_of_single_images() -> None:
    torch.manual_seed(6)
    network = catalog.create("inception_resnet_v1_facenet", num_classes=4, drop_path=0.5, **SMALL)
    last, images = network.stage3.block2, torch.randn(2, 1792, 3, 3)
    last.gate = torch.tensor([0.0, 1.0])
    with torch.no_grad():
        branch = last.expand(last.branches(images))
        expected = images + torch.tensor([0.0, 2.0]).view(2, 1, 1, 1) * branch
        torch.testing.assert_close(last(images), expected)


@pytest.mark.parametrize("name", ["inception_resnet_v1", "inception_resnet_v2", "inception_resnet_v2_paper"])
def test_the_smallest_image_is_75_pixels_wide(name: str) -> None:
    network = catalog.create(name, blocks=(1, 1, 1), num_classes=3)
    assert network.smallest == 75
    outputs = network.training_logits(torch.randn(2, 3, 75, 75))
    weights = [1.0, 0.4] if name == "inception_resnet_v2" else [1.0]
    assert [(weight, logits.shape) for weight, logits in outputs] == [(weight, (2, 3)) for weight in weights]
    with pytest.raises(RuntimeError):
        network.eval()(torch.randn(2, 3, 74, 74))


@pytest.mark.parametrize(
    "options",
    [
        {"modules": "v3"},
        {"stem": "v2"},
        {"blocks": (5, 10)},
        {"scales": (0.1, 0.1)},
        {"scales": (0.1, 0.0, 0.1)},
        {"scales": 0.1},
        {"unscaled_last": 2},
        {"features": 0},
        {"final_survival": 0},
        {"dropout": -0.1},
    ],
)
def test_options_that_make_no_network_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        catalog.create("inception_resnet_v1", **options)
