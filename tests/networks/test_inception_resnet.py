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


# Figures 7, 10 to 13 and 16 to 19, branch by branch: the channels of each convolution, with its height×width unless
# that is 1×1. In a reduction the last of each branch has stride 2 and no padding.
FIGURES = {
    "v1": {
        "A": "32 | 32, 32 3×3 | 32, 32 3×3, 32 3×3",
        "to 17": "384 3×3 | 192, 192 3×3, 256 3×3",
        "B": "128 | 128, 128 1×7, 128 7×1",
        "to 8": "256, 384 3×3 | 256, 256 3×3 | 256, 256 3×3, 256 3×3",
        "C": "192 | 192, 192 1×3, 192 3×1",
    },
    "v2": {
        "A": "32 | 32, 32 3×3 | 32, 48 3×3, 64 3×3",
        "to 17": "384 3×3 | 256, 256 3×3, 384 3×3",
        "B": "192 | 128, 160 1×7, 192 7×1",
        "to 8": "256, 384 3×3 | 256, 288 3×3 | 256, 288 3×3, 320 3×3",
        "C": "192 | 192, 224 1×3, 256 3×1",
    },
}
# After every stage: the channels.
CHANNELS = {"v1": (256, 896, 1792), "v2": (384, 1152, 2144)}


class WrittenOut:
    """The network at test as formulas: 5, 10 and 5 blocks, scaled by 0.17, 0.10 and 0.20."""

    def __init__(self, weights: dict[str, Tensor], version: str) -> None:
        self.weights, self.figure, self.channels = weights, FIGURES[version], CHANNELS[version]
        self.stem = {"v1": self.stem_v1, "v2": self.stem_v4}[version]

    def conv(
        self, x: Tensor, name: str, channels: int, kernel: str = "1×1", stride: int = 1, valid: bool = False
    ) -> Tensor:
        weight = self.weights[f"{name}.conv.weight"]
        height, width = map(int, kernel.split("×"))
        assert weight.shape == (channels, x.shape[1], height, width), name
        x = F.conv2d(x, weight, None, stride, (0, 0) if valid else (height // 2, width // 2))
        gamma, beta, mean, variance = (
            self.weights[f"{name}.norm.{part}"].view(1, -1, 1, 1)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return ((x - mean) / (variance + 1e-3).sqrt() * gamma + beta).relu()

    def branches(self, x: Tensor, name: str, row: str, *, reduces: bool = False) -> list[Tensor]:
        outputs = []
        for number, branch in enumerate(self.figure[row].split(" | "), 1):
            y, layers = x, branch.split(", ")
            for index, layer in enumerate(layers):
                channels, _, kernel = layer.partition(" ")
                last = reduces and index == len(layers) - 1
                place = f"{name}.conv{number}.{index}"
                y = self.conv(y, place, int(channels), kernel or "1×1", 2 if last else 1, valid=last)
            outputs.append(y)
        return outputs

    def block(self, x: Tensor, name: str, row: str, scale: float) -> Tensor:
        """x + scale·F(x), before the ReLU."""
        y = torch.cat(self.branches(x, f"{name}.branches", row), 1)
        return x + scale * F.conv2d(y, self.weights[f"{name}.expand.weight"], self.weights[f"{name}.expand.bias"])

    def reduction(self, x: Tensor, name: str, row: str) -> Tensor:
        return torch.cat([*self.branches(x, name, row, reduces=True), F.max_pool2d(x, 3, 2)], 1)

    def stem_v1(self, x: Tensor) -> Tensor:
        x = self.conv(x, "stem.0", 32, "3×3", 2, valid=True)
        x = self.conv(x, "stem.1", 32, "3×3", valid=True)
        x = F.max_pool2d(self.conv(x, "stem.2", 64, "3×3"), 3, 2)
        x = self.conv(x, "stem.4", 80)
        x = self.conv(x, "stem.5", 192, "3×3", valid=True)
        return self.conv(x, "stem.6", 256, "3×3", 2, valid=True)

    def stem_v4(self, x: Tensor) -> Tensor:
        x = self.conv(x, "stem.0", 32, "3×3", 2, valid=True)
        x = self.conv(x, "stem.1", 32, "3×3", valid=True)
        x = self.conv(x, "stem.2", 64, "3×3")
        x = torch.cat((F.max_pool2d(x, 3, 2), self.conv(x, "stem.3.conv.0", 96, "3×3", 2, valid=True)), 1)
        short = self.conv(self.conv(x, "stem.4.short.0", 64), "stem.4.short.1", 96, "3×3", valid=True)
        long = self.conv(self.conv(x, "stem.4.long.0", 64), "stem.4.long.1", 64, "1×7")
        long = self.conv(self.conv(long, "stem.4.long.2", 64, "7×1"), "stem.4.long.3", 96, "3×3", valid=True)
        x = torch.cat((short, long), 1)
        return torch.cat((self.conv(x, "stem.5.conv.0", 192, "3×3", 2, valid=True), F.max_pool2d(x, 3, 2)), 1)

    def logits(self, images: Tensor, *, unscaled_last: bool) -> Tensor:
        x = self.stem(images)
        assert x.shape[1] == self.channels[0]
        for number in range(1, 6):
            x = self.block(x, f"stage1.block{number}", "A", 0.17).relu()
        x = self.reduction(x, "stage2.reduction", "to 17")
        assert x.shape[1] == self.channels[1]
        for number in range(1, 11):
            x = self.block(x, f"stage2.block{number}", "B", 0.10).relu()
        x = self.reduction(x, "stage3.reduction", "to 8")
        assert x.shape[1] == self.channels[2]
        for number in range(1, 6):
            x = self.block(x, f"stage3.block{number}", "C", 0.20).relu()
        if unscaled_last:
            x = self.block(x, "stage3.block6", "C", 1.0)
        assert min(x.shape[2:]) >= 3
        return x.mean((2, 3)) @ self.weights["head.fc.weight"].T + self.weights["head.fc.bias"]


@pytest.mark.parametrize(
    ("name", "version", "unscaled_last"),
    [
        ("inception_resnet_v1", "v1", False),
        ("inception_resnet_v1_facenet", "v1", True),
        ("inception_resnet_v2_paper", "v2", False),
    ],
)
def test_the_network_is_the_papers_figures(name: str, version: str, unscaled_last: bool) -> None:
    """On maps of at least 3×3, so that rows and columns differ."""
    torch.manual_seed(7)
    network = catalog.create(name, num_classes=5).double().eval()
    for key, tensor in network.state_dict().items():
        if key.endswith((".norm.weight", "running_var")):
            nn.init.uniform_(tensor, 0.5, 1.5)
        elif key.endswith((".bias", "running_mean")):
            nn.init.normal_(tensor, 0, 0.2)
    images = torch.randn(1, 3, 139, 155, dtype=torch.float64)
    weights = dict(network.state_dict())
    with torch.inference_mode():
        expected = WrittenOut(weights, version).logits(images, unscaled_last=unscaled_last)
        assert expected.std() > 0
        assert_close(network(images), expected, 1e-9)


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
