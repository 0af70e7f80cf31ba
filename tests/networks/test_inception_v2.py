"""Inception-v2, read from Table 1, against a network of torchvision's modules and against sums written out."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models.inception import BasicConv2d, InceptionA, InceptionB, InceptionC, InceptionD, InceptionE

from resnext import catalog
from resnext.complexity import describe
from resnext.errors import UserError


def fig5() -> nn.Module:
    """Return torchvision's first module with a 3×3 in the place of its 5×5, as Fig. 5 draws it."""
    module = InceptionA(288, pool_features=64)
    module.branch5x5_2 = BasicConv2d(48, 64, kernel_size=3, padding=1)
    return module


def reference() -> nn.Sequential:
    """Return Table 1's rows in torchvision's modules."""
    return nn.Sequential(
        BasicConv2d(3, 32, kernel_size=3, stride=2),
        BasicConv2d(32, 32, kernel_size=3),
        BasicConv2d(32, 64, kernel_size=3, padding=1),
        nn.MaxPool2d(3, 2),
        BasicConv2d(64, 80, kernel_size=3),
        BasicConv2d(80, 192, kernel_size=3, stride=2),
        BasicConv2d(192, 288, kernel_size=3, padding=1),
        fig5(),
        fig5(),
        InceptionB(288),
        *(InceptionC(768, channels_7x7=width) for width in (128, 160, 160, 192)),
        InceptionD(768),
        InceptionE(1280),
        InceptionE(2048),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2048, 1000),
    )


def test_logits_equal_those_of_torchvisions_modules() -> None:
    torch.manual_seed(1)
    theirs = reference()
    # The reductions come before the blocks in our stages, as here: both register the layers in one order.
    with torch.device("meta"):
        ours = catalog.create("inception_v2", auxiliary=False)
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)), assign=True)
    images = torch.randn(2, 3, 139, 139)
    with torch.inference_mode():
        expected, logits = theirs.eval()(images), ours.eval()(images)
    assert expected.std() > 0
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_every_row_has_the_printed_size() -> None:
    with torch.device("meta"):
        network = catalog.create("inception_v2").eval()
        shapes = []
        for module in (*network.stem, network.stage1, network.stage2, network.stage3):
            module.register_forward_hook(lambda *call: shapes.append(tuple(call[1][0].shape[1:])))
        network.stage2.reduction.register_forward_hook(lambda *call: shapes.append(tuple(call[2].shape[1:])))
        network.stage3.reduction.register_forward_hook(lambda *call: shapes.append(tuple(call[2].shape[1:])))
        features = network.features(torch.empty(1, 3, 299, 299))
    assert shapes[:4] == [(3, 299, 299), (32, 149, 149), (32, 147, 147), (64, 147, 147)]
    assert shapes[4:8] == [(64, 73, 73), (80, 71, 71), (192, 35, 35), (288, 35, 35)]
    assert (768, 17, 17) in shapes
    assert (1280, 8, 8) in shapes
    assert features["stage3"].shape[1:] == (2048, 8, 8)


def conv(channels: int, out: int, taps: int, side: int) -> int:
    return channels * out * taps * side**2


def multiply_adds(fig5_modules: int, widths: tuple[int, ...]) -> int:
    """Sum up the rows of Table 1 with so many modules of Fig. 5, and modules of Fig. 6 of these widths."""
    stem = conv(3, 32, 9, 149) + conv(32, 32, 9, 147) + conv(32, 64, 9, 147)
    stem += conv(64, 80, 9, 71) + conv(80, 192, 9, 35) + conv(192, 288, 9, 35)
    fig5 = conv(288, 64 + 48 + 64 + 64, 1, 35) + conv(48, 64, 9, 35) + conv(64, 96, 9, 35) + conv(96, 96, 9, 35)
    to_17 = conv(288, 384, 9, 17) + conv(288, 64, 1, 35) + conv(64, 96, 9, 35) + conv(96, 96, 9, 17)
    fig6 = sum(
        2 * conv(768, 192, 1, 17) + 2 * conv(768, c, 1, 17) + 4 * conv(c, c, 7, 17) + 2 * conv(c, 192, 7, 17)
        for c in widths
    )
    to_8 = 2 * conv(768, 192, 1, 17) + conv(192, 320, 9, 8) + 2 * conv(192, 192, 7, 17) + conv(192, 192, 9, 8)
    fig7 = sum(
        conv(channels, 320 + 384 + 448 + 192, 1, 8) + 4 * conv(384, 384, 3, 8) + conv(448, 384, 9, 8)
        for channels in (1280, 2048)
    )
    return stem + fig5_modules * fig5 + to_17 + fig6 + to_8 + fig7 + 2048 * 1000


def test_costs_are_those_that_the_reading_says() -> None:
    told = describe("inception_v2")
    assert told["macs"] == multiply_adds(2, (128, 160, 160, 192)) == 5_576_975_456
    assert round(told["macs"] / describe("googlenet")["macs"], 1) == 3.5
    assert round(told["parameters"] / 1e6, 1) == 24.0
    stem, fig5, fig6, fig7, fc = 6, 2 * 3 + 3, 4 * 5 + 4, 2 * 3, 1
    assert told["depth"] == stem + fig5 + fig6 + fig7 + fc == 46


def test_the_other_reading_is_further_from_what_is_printed() -> None:
    """Reductions beside the 3 and the 5: more than the paper's 2.5 GoogLeNets by more, and above 25 M parameters."""
    assert round(multiply_adds(3, (128, 160, 160, 160, 192)) / 1e9, 2) == 6.35
    fig5 = 288 * (64 + 48 + 64 + 64) + 9 * (48 * 64 + 64 * 96 + 96 * 96) + 2 * (64 + 48 + 64 + 64 + 96 + 96 + 64)
    fig6 = 768 * (192 + 160 + 160 + 192) + 7 * (4 * 160**2 + 2 * 160 * 192) + 2 * (6 * 160 + 4 * 192)
    assert round((describe("inception_v2")["parameters"] + fig5 + fig6) / 1e6, 1) == 26.0


def test_the_auxiliary_classifier_has_batch_norm_behind_its_1x1_only() -> None:
    with torch.device("meta"):
        head = catalog.create("inception_v2").auxiliary["stage2"]
    reduce, hidden, fc = 768 * 128 + 2 * 128, 25 * 128 * 768 + 768, 768 * 1000 + 1000
    assert sum(parameter.numel() for parameter in head.parameters()) == reduce + hidden + fc
    assert sum(isinstance(module, nn.BatchNorm2d) for module in head.modules()) == 1
    told = describe("inception_v2")
    assert told["training_parameters"] - told["parameters"] == reduce + hidden + fc


def test_the_smallest_image_is_75_pixels_wide() -> None:
    network = catalog.create("inception_v2", num_classes=3)
    assert network.smallest == 75
    outputs = network.training_logits(torch.randn(2, 3, 75, 75))
    assert [(weight, logits.shape) for weight, logits in outputs] == [(1.0, (2, 3)), (0.4, (2, 3))]
    with pytest.raises(RuntimeError):
        network.eval()(torch.randn(2, 3, 74, 74))


def test_options_that_make_no_network_are_refused() -> None:
    with pytest.raises(UserError, match="auxiliary_weight"):
        catalog.create("inception_v2", auxiliary_weight=-1)
