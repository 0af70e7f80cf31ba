"""Pre-activation ResNet: He, Zhang, Ren and Sun, "Identity Mappings in Deep Residual Networks", arXiv:1603.05027.

Batch norm and ReLU come before each convolution (Fig. 4e), so that nothing stands on the way from one unit's
shortcut to the next. Table 3 gives the CIFAR networks, Table 5 the one for ImageNet.

Departures and readings:
- A unit that changes the shape applies its first batch norm and ReLU before it splits into two paths, and its
  projection has no batch norm: the authors' code for CIFAR, and fb.resnet.torch in its later versions.
- The first unit of a network is activated before it splits, too (appendix). That batch norm and ReLU end the stem
  here, which is where fb.resnet.torch has them for ImageNet, before the max-pool; for CIFAR the function is the
  same in either place. A last batch norm and ReLU stand before the pooling.
- The bottlenecks for CIFAR down-sample in the first 1×1 convolution (the authors' code), those for ImageNet in the
  3×3 (fb.resnet.torch).
- CIFAR's networks have basic blocks and shortcuts of option A below 164 layers (6n + 2), and bottlenecks with
  option B from there on (9n + 2), as the paper's 110, 164 and 1001 do.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor, nn

from resnext.errors import UserError
from resnext.layers import Conv2d, GlobalAveragePool, GlobalHead, Network, ZeroPadShortcut
from resnext.networks.resnet import (
    BLOCKS,
    BOTTLENECK_STAGES,
    CIFAR_STAGES,
    STEM_STRIDES,
    Block,
    Stem,
    StrideIn,
    check_depth,
    stem_layers,
)
from resnext.residual import ResidualBlock, StochasticDepth, set_survivals
from resnext.variant import Blueprint, Variant, check_choice, check_series, check_sizes

Shortcut = Literal["A", "B"]


@dataclass(frozen=True)
class PreactResNetConfig(StochasticDepth):
    """Which pre-activation ResNet.

    The fields are those of `ResNetConfig`; `shortcut` is option A or B.
    The fields of `StochasticDepth` come with it.
    """

    blocks: tuple[int, ...]
    block: Block = "bottleneck"
    stem: Stem = "imagenet"
    width: int = 64
    shortcut: Shortcut = "B"
    stride_in: StrideIn = "3x3"

    def __post_init__(self) -> None:
        check_series(blocks=self.blocks)
        check_sizes(width=self.width)
        check_choice("block", self.block, Block)
        check_choice("stem", self.stem, Stem)
        check_choice("shortcut", self.shortcut, Shortcut)
        check_choice("stride_in", self.stride_in, StrideIn)
        self.check_depth_options()
        if self.block == "basic" and self.stride_in == "1x1":
            raise UserError("stride_in='1x1' has no place in this network: its blocks have no 1×1. Leave it out.")


class NormRelu(nn.Sequential):
    """Batch norm and ReLU: N×C×H×W → the same. Children: `norm`, `relu`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)


class NormConv(NormRelu):
    """Batch norm, ReLU, and a convolution that keeps H and W or strides: N×C×H×W → N×out_channels×⌈H/stride⌉×….

    Children: `norm`, `relu`, `conv` (no bias).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1) -> None:
        super().__init__(in_channels)
        self.conv = Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)


class PreactBlock(ResidualBlock):
    """H(x) = b·F(a) + shortcut(x) with a = ReLU(BN(x)), and shortcut(a) in a unit that changes the shape.

    Subclasses hold `activation`, `shortcut` and `splits_late`, whether the paths part behind the activation, and
    give F as `residual` of what is activated.
    """

    activation: nn.Module
    shortcut: nn.Module
    splits_late: bool

    def forward(self, images: Tensor) -> Tensor:
        """Return the block's output; with a closed gate in training, nothing is computed but the shortcut."""
        if self.is_closed and not self.splits_late:
            passed: Tensor = self.shortcut(images)
            return passed
        active = self.activation(images)
        skip: Tensor = self.shortcut(active if self.splits_late else images)
        if self.is_closed:
            return skip
        branch = self.gated(self.residual(active))
        branch += skip
        return branch


def shortcut_layers(shortcut: Shortcut, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Return the way around a block: the identity, or where the shape changes option A or a bare projection."""
    if in_channels == out_channels and stride == 1:
        return nn.Identity()
    if shortcut == "A":
        return ZeroPadShortcut(out_channels - in_channels, stride)
    return Conv2d(in_channels, out_channels, 1, stride, bias=False)


class PreactBasicBlock(PreactBlock):
    """Twice batch norm, ReLU and a 3×3 convolution, and a shortcut (Fig. 4e).

    N×in_channels×H×W → N×out_channels×⌈H/stride⌉×⌈W/stride⌉.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, shortcut: Shortcut = "B") -> None:
        super().__init__()
        self.activation = NormRelu(in_channels)
        self.first = Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.second = NormConv(out_channels, out_channels, 3)
        self.shortcut = shortcut_layers(shortcut, in_channels, out_channels, stride)
        self.splits_late = not isinstance(self.shortcut, nn.Identity)

    def residual(self, images: Tensor) -> Tensor:
        """Return F of activated images."""
        branch: Tensor = self.second(self.first(images))
        return branch


class PreactBottleneck(PreactBlock):
    """Batch norm and ReLU before each of 1×1 to `width` channels, 3×3, 1×1 to `out_channels`; and a shortcut.

    N×in_channels×H×W → N×out_channels×⌈H/stride⌉×⌈W/stride⌉; `stride_in` says which convolution strides.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        width: int,
        stride: int = 1,
        shortcut: Shortcut = "B",
        stride_in: StrideIn = "3x3",
    ) -> None:
        super().__init__()
        stride_1x1, stride_3x3 = (stride, 1) if stride_in == "1x1" else (1, stride)
        self.activation = NormRelu(in_channels)
        self.reduce = Conv2d(in_channels, width, 1, stride_1x1, bias=False)
        self.spatial = NormConv(width, width, 3, stride=stride_3x3)
        self.expand = NormConv(width, out_channels, 1)
        self.shortcut = shortcut_layers(shortcut, in_channels, out_channels, stride)
        self.splits_late = not isinstance(self.shortcut, nn.Identity)

    def residual(self, images: Tensor) -> Tensor:
        """Return F of activated images."""
        branch: Tensor = self.expand(self.spatial(self.reduce(images)))
        return branch


class PreactHead(GlobalHead):
    """Batch norm, ReLU, global average pooling, a linear classifier: N×C×H×W → logits N×K.

    Children: `norm`, `relu`, `pool`, `fc`.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.pool = GlobalAveragePool()
        self.fc = nn.Linear(channels, num_classes)
        nn.init.zeros_(self.fc.bias)


class PreactResNet(Network):
    """The pre-activation network of a config; images N×in_channels×H×W → logits N×num_classes.

    Every stage but the first halves H and W and doubles the width; bottlenecks put out four times the width.
    """

    def __init__(self, config: PreactResNetConfig, *, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = stem_layers(config.stem, in_channels, config.width)
        self.stride = STEM_STRIDES[config.stem]
        channels = self.add_stages(config.blocks, config.width, lambda index: _block(config, config.width * 2**index))
        self.get_submodule("stage1.block1").activation = nn.Identity()  # the stem has done it
        self.head = PreactHead(channels, num_classes)
        set_survivals(self, config)


def _block(config: PreactResNetConfig, width: int) -> tuple[Callable[..., nn.Module], int]:
    """Return what makes the blocks of one stage, and the channels that they put out."""
    if config.block == "basic":
        return partial(PreactBasicBlock, shortcut=config.shortcut), width
    return partial(PreactBottleneck, width=width, shortcut=config.shortcut, stride_in=config.stride_in), 4 * width


def imagenet(depth: int) -> PreactResNetConfig:
    """Return Table 5's kind of network with `depth` layers."""
    return PreactResNetConfig(BLOCKS[depth], "basic" if depth < 50 else "bottleneck")


def cifar(blocks: int, *, block: Block) -> PreactResNetConfig:
    """Return Table 3's kind of network, with `blocks` (n) in each of the three stages."""
    if block == "basic":
        return PreactResNetConfig((blocks,) * 3, "basic", "cifar", width=16, shortcut="A")
    return PreactResNetConfig((blocks,) * 3, "bottleneck", "cifar", width=16, stride_in="1x1")


def parse(name: str) -> Blueprint | None:
    """Return what `cifar_preact_resnet{depth}` or `preact_resnet{depth}` means; None for another name.

    CIFAR's depth is 6n + 2 below 164 and 9n + 2 from there on. Raises UserError for a depth that there is not.
    """
    match = re.fullmatch(r"(cifar_)?preact_resnet([1-9]\d*)", name)
    if match is None:
        return None
    depth = int(match[2])
    if match[1]:
        step = 6 if depth < 164 else 9
        check_depth(name, depth, step=step)
        config = cifar((depth - 2) // step, block="basic" if step == 6 else "bottleneck")
        return Blueprint(PreactResNet, config, paper="arXiv:1603.05027 Table 3", image_size=32, num_classes=10)
    if depth not in BLOCKS:
        raise UserError(f"There is no {name!r}. For ImageNet there are {', '.join(map(str, BLOCKS))} layers.")
    return Blueprint(PreactResNet, imagenet(depth), paper="arXiv:1603.05027 Table 5", image_size=224)


# What the stages put out at 32×32 pixels, with bottlenecks.
CIFAR_BOTTLENECK_STAGES = ((64, 32, 32), (128, 16, 16), (256, 8, 8))

# fmt: off
VARIANTS: dict[str, Variant] = {
    "preact_resnet200": Variant(PreactResNet, imagenet(200), paper="arXiv:1603.05027 Table 5", image_size=224,
        parameters=64_666_152, macs=15_007_481_856, stages=BOTTLENECK_STAGES),
    "cifar_preact_resnet110": Variant(PreactResNet, cifar(18, block="basic"), paper="arXiv:1603.05027 Table 3",
        image_size=32, num_classes=10, parameters=1_727_962, macs=252_887_680, stages=CIFAR_STAGES),
    "cifar_preact_resnet164": Variant(PreactResNet, cifar(18, block="bottleneck"), paper="arXiv:1603.05027 Table 3",
        image_size=32, num_classes=10, parameters=1_703_258, macs=244_500_992, stages=CIFAR_BOTTLENECK_STAGES),
    "cifar_preact_resnet1001": Variant(PreactResNet, cifar(111, block="bottleneck"), paper="arXiv:1603.05027 Table 3",
        image_size=32, num_classes=10, parameters=10_327_706, macs=1_487_849_984, stages=CIFAR_BOTTLENECK_STAGES),
}
# fmt: on
