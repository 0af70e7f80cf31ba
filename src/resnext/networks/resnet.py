"""ResNet: He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", arXiv:1512.03385.

Table 1 gives the ImageNet networks, section 4.2 the CIFAR ones (6n + 2 layers), Table 2 the plain ones.

Departures and readings:
- `resnet50`, `resnet101` and `resnet152` down-sample in the 3×3 convolution, which is what the field means by
  these names ("v1.5"); the paper's own, which do so in the first 1×1, are `resnet50_v1` and so on. Parameters
  are the same; v1.5 has 231,211,008 more multiply-adds.
- `resnet18` and `resnet34` have shortcuts of option B; `_a` and `_c` are the paper's options A and C.
- Projections end in a batch norm, as in the authors' code; the paper does not say.
- `resnet200` is the 200-layer network of arXiv:1603.05027 Table 5 with blocks as here; `preact_resnet200` is that
  paper's own. `resnet50_no_shortcut` is the residual ablation of arXiv:1611.05431 section 5.1: no shortcut is left,
  and so no projection. `cifar_resnet152` is the constant-depth network of arXiv:1603.09382 for SVHN.
- The paper's CIFAR networks have shortcuts of option A; `_b` has projections where the shape changes.
- The max-pool pads by one on every side; the authors' Caffe net pads only at the end. Sizes are the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor, nn

from resnext.errors import UserError
from resnext.layers import ConvNorm, Network, PooledHead, ZeroPadShortcut
from resnext.residual import ResidualBlock, StochasticDepth, set_survivals
from resnext.variant import Blueprint, Variant, check_choice, check_series, check_sizes

Block = Literal["basic", "bottleneck"]
Stem = Literal["imagenet", "cifar"]
Shortcut = Literal["A", "B", "C", "none"]
StrideIn = Literal["1x1", "3x3"]

# Table 1: the blocks of each stage, by depth; 200 is from arXiv:1603.05027.
BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}
STEM_STRIDES = {"imagenet": 4, "cifar": 1}
# What the stages put out at the published image sizes: channels, height, width.
BASIC_STAGES = ((64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7))
BOTTLENECK_STAGES = ((256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7))
CIFAR_STAGES = ((16, 32, 32), (32, 16, 16), (64, 8, 8))


@dataclass(frozen=True)
class ResNetConfig(StochasticDepth):
    """Which ResNet.

    `blocks` counts the blocks of each stage; `block` is two 3×3 convolutions, or a bottleneck of 1×1, 3×3 and
    1×1; `stem` is ImageNet's (7×7 with stride 2, max-pool) or CIFAR's (3×3); `width` is the channels of the
    stem and of stage 1's 3×3 convolutions, doubled at every further stage; `shortcut` is the paper's option
    A, B or C, or "none" for a plain network; `stride_in` says which convolution of a bottleneck down-samples.
    The fields of `StochasticDepth` come with it.
    """

    blocks: tuple[int, ...]
    block: Block = "basic"
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


def stem_layers(stem: Stem, in_channels: int, width: int) -> nn.Sequential:
    """Return what comes before stage 1: N×in_channels×H×W → N×width×H×W, or H/4×W/4 for ImageNet."""
    if stem == "cifar":
        return ConvNorm(in_channels, width, 3)
    layers = ConvNorm(in_channels, width, 7, stride=2)
    layers.add_module("pool", nn.MaxPool2d(3, stride=2, padding=1))
    return layers


def shortcut_layers(shortcut: Shortcut, in_channels: int, out_channels: int, stride: int) -> nn.Module | None:
    """Return the way around a block (section 3.3), or None where there is to be none.

    A: the identity, strided, and channels of zeros. B: a projection where the shape changes. C: always one.
    """
    same_shape = in_channels == out_channels and stride == 1
    if shortcut == "none":
        return None
    if shortcut == "C" or (shortcut == "B" and not same_shape):
        return ConvNorm(in_channels, out_channels, 1, stride=stride, relu=False)
    return nn.Identity() if same_shape else ZeroPadShortcut(out_channels - in_channels, stride)


class BasicBlock(ResidualBlock):
    """Two 3×3 convolutions and a shortcut (Fig. 5 left).

    N×in_channels×H×W → N×out_channels×⌈H/stride⌉×⌈W/stride⌉.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, shortcut: Shortcut = "B") -> None:
        super().__init__()
        self.first = ConvNorm(in_channels, out_channels, 3, stride=stride)
        self.second = ConvNorm(out_channels, out_channels, 3, relu=False)
        self.shortcut = shortcut_layers(shortcut, in_channels, out_channels, stride)

    def residual(self, images: Tensor) -> Tensor:
        """Return F(x)."""
        branch: Tensor = self.second(self.first(images))
        return branch


class Bottleneck(ResidualBlock):
    """1×1 to `width` channels, 3×3, 1×1 to `out_channels`, and a shortcut (Fig. 5 right).

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
        self.reduce = ConvNorm(in_channels, width, 1, stride=stride_1x1)
        self.spatial = ConvNorm(width, width, 3, stride=stride_3x3)
        self.expand = ConvNorm(width, out_channels, 1, relu=False)
        self.shortcut = shortcut_layers(shortcut, in_channels, out_channels, stride)

    def residual(self, images: Tensor) -> Tensor:
        """Return F(x)."""
        branch: Tensor = self.expand(self.spatial(self.reduce(images)))
        return branch


class ResNet(Network):
    """The residual network of a config, or its plain twin; images N×in_channels×H×W → logits N×num_classes.

    Every stage but the first halves H and W and doubles the width; bottlenecks put out four times the width.
    """

    def __init__(self, config: ResNetConfig, *, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = stem_layers(config.stem, in_channels, config.width)
        self.stride = STEM_STRIDES[config.stem]
        channels = self.add_stages(config.blocks, config.width, lambda index: _block(config, config.width * 2**index))
        self.head = PooledHead(channels, num_classes)
        set_survivals(self, config)


def _block(config: ResNetConfig, width: int) -> tuple[Callable[..., nn.Module], int]:
    """Return what makes the blocks of one stage, and the channels that they put out."""
    if config.block == "basic":
        return partial(BasicBlock, shortcut=config.shortcut), width
    return partial(Bottleneck, width=width, shortcut=config.shortcut, stride_in=config.stride_in), 4 * width


def check_depth(name: str, depth: int, *, step: int) -> None:
    """Raise UserError unless `depth`, the first number in `name`, is step·n + 2 with n ≥ 1."""
    if depth > 2 and depth % step == 2:
        return
    below = max(1, (depth - 2) // step) * step + 2
    near = " or ".join(repr(name.replace(str(depth), str(other), 1)) for other in (below, below + step))
    raise UserError(f"There is no {name!r}: networks of this family have {step}n + 2 layers. Take {near}.")


def imagenet(depth: int, *, shortcut: Shortcut = "B", stride_in: StrideIn = "3x3") -> ResNetConfig:
    """Return the column of Table 1 with `depth` layers, or the 200-layer network."""
    block: Block = "basic" if depth < 50 else "bottleneck"
    return ResNetConfig(BLOCKS[depth], block, shortcut=shortcut, stride_in=stride_in)


def cifar(blocks: int, shortcut: Shortcut) -> ResNetConfig:
    """Return section 4.2's network with `blocks` (n) in each of the three stages: 6n + 2 layers."""
    return ResNetConfig((blocks,) * 3, stem="cifar", width=16, shortcut=shortcut)


def parse(name: str) -> Blueprint | None:
    """Return what `cifar_resnet{6n+2}`, `cifar_resnet{6n+2}_b` or `cifar_plain{6n+2}` means; None for another name.

    Raises UserError for a depth that the family does not have.
    """
    match = re.fullmatch(r"cifar_(?:(plain)|resnet)([1-9]\d*)(_b)?", name)
    if match is None or (match[1] and match[3]):
        return None
    depth = int(match[2])
    check_depth(name, depth, step=6)
    config = cifar((depth - 2) // 6, "none" if match[1] else "B" if match[3] else "A")
    return Blueprint(ResNet, config, paper="arXiv:1512.03385 section 4.2", image_size=32, num_classes=10)


# fmt: off
VARIANTS: dict[str, Variant] = {
    "resnet18": Variant(ResNet, imagenet(18), paper="arXiv:1512.03385 Table 1", image_size=224,
        parameters=11_689_512, macs=1_814_073_344, stages=BASIC_STAGES),
    "resnet34": Variant(ResNet, imagenet(34), paper="arXiv:1512.03385 Table 1", image_size=224,
        parameters=21_797_672, macs=3_663_761_408, stages=BASIC_STAGES),
    "resnet18_a": Variant(ResNet, imagenet(18, shortcut="A"), paper="arXiv:1512.03385 Table 2", image_size=224,
        parameters=11_515_688, macs=1_794_805_760, stages=BASIC_STAGES),
    "resnet34_a": Variant(ResNet, imagenet(34, shortcut="A"), paper="arXiv:1512.03385 Table 3", image_size=224,
        parameters=21_623_848, macs=3_644_493_824, stages=BASIC_STAGES),
    "resnet34_c": Variant(ResNet, imagenet(34, shortcut="C"), paper="arXiv:1512.03385 Table 3", image_size=224,
        parameters=22_716_840, macs=3_830_747_136, stages=BASIC_STAGES),
    "plain18": Variant(ResNet, imagenet(18, shortcut="none"), paper="arXiv:1512.03385 Table 2", image_size=224,
        parameters=11_515_688, macs=1_794_805_760, stages=BASIC_STAGES),
    "plain34": Variant(ResNet, imagenet(34, shortcut="none"), paper="arXiv:1512.03385 Table 2", image_size=224,
        parameters=21_623_848, macs=3_644_493_824, stages=BASIC_STAGES),
    "resnet50": Variant(ResNet, imagenet(50), paper="arXiv:1512.03385 Table 1", image_size=224,
        parameters=25_557_032, macs=4_089_184_256, stages=BOTTLENECK_STAGES),
    "resnet101": Variant(ResNet, imagenet(101), paper="arXiv:1512.03385 Table 1", image_size=224,
        parameters=44_549_160, macs=7_801_405_440, stages=BOTTLENECK_STAGES),
    "resnet152": Variant(ResNet, imagenet(152), paper="arXiv:1512.03385 Table 1", image_size=224,
        parameters=60_192_808, macs=11_513_626_624, stages=BOTTLENECK_STAGES),
    "resnet200": Variant(ResNet, imagenet(200), paper="arXiv:1603.05027 Table 5", image_size=224,
        parameters=64_673_832, macs=15_007_481_856, stages=BOTTLENECK_STAGES),
    "resnet50_v1": Variant(ResNet, imagenet(50, stride_in="1x1"), paper="arXiv:1512.03385 Table 1", image_size=224,
        parameters=25_557_032, macs=3_857_973_248, stages=BOTTLENECK_STAGES),
    "resnet101_v1": Variant(ResNet, imagenet(101, stride_in="1x1"), paper="arXiv:1512.03385 Table 1", image_size=224,
        parameters=44_549_160, macs=7_570_194_432, stages=BOTTLENECK_STAGES),
    "resnet152_v1": Variant(ResNet, imagenet(152, stride_in="1x1"), paper="arXiv:1512.03385 Table 1", image_size=224,
        parameters=60_192_808, macs=11_282_415_616, stages=BOTTLENECK_STAGES),
    "resnet50_no_shortcut": Variant(ResNet, imagenet(50, shortcut="none"), paper="arXiv:1611.05431 section 5.1",
        image_size=224, parameters=22_780_456, macs=3_729_522_688, stages=BOTTLENECK_STAGES),
    "cifar_resnet20": Variant(ResNet, cifar(3, "A"), paper="arXiv:1512.03385 Table 6", image_size=32,
        num_classes=10, parameters=269_722, macs=40_551_040, stages=CIFAR_STAGES),
    "cifar_resnet32": Variant(ResNet, cifar(5, "A"), paper="arXiv:1512.03385 Table 6", image_size=32,
        num_classes=10, parameters=464_154, macs=68_862_592, stages=CIFAR_STAGES),
    "cifar_resnet44": Variant(ResNet, cifar(7, "A"), paper="arXiv:1512.03385 Table 6", image_size=32,
        num_classes=10, parameters=658_586, macs=97_174_144, stages=CIFAR_STAGES),
    "cifar_resnet56": Variant(ResNet, cifar(9, "A"), paper="arXiv:1512.03385 Table 6", image_size=32,
        num_classes=10, parameters=853_018, macs=125_485_696, stages=CIFAR_STAGES),
    "cifar_resnet110": Variant(ResNet, cifar(18, "A"), paper="arXiv:1512.03385 Table 6", image_size=32,
        num_classes=10, parameters=1_727_962, macs=252_887_680, stages=CIFAR_STAGES),
    "cifar_resnet152": Variant(ResNet, cifar(25, "A"), paper="arXiv:1603.09382 section 4", image_size=32,
        num_classes=10, parameters=2_408_474, macs=351_978_112, stages=CIFAR_STAGES),
    "cifar_resnet1202": Variant(ResNet, cifar(200, "A"), paper="arXiv:1512.03385 Table 6", image_size=32,
        num_classes=10, parameters=19_421_274, macs=2_829_238_912, stages=CIFAR_STAGES),
    "cifar_resnet20_b": Variant(ResNet, cifar(3, "B"), paper="arXiv:1512.03385 section 4.2, option B", image_size=32,
        num_classes=10, parameters=272_474, macs=40_813_184, stages=CIFAR_STAGES),
    "cifar_resnet56_b": Variant(ResNet, cifar(9, "B"), paper="arXiv:1512.03385 section 4.2, option B", image_size=32,
        num_classes=10, parameters=855_770, macs=125_747_840, stages=CIFAR_STAGES),
    "cifar_resnet110_b": Variant(ResNet, cifar(18, "B"), paper="arXiv:1512.03385 section 4.2, option B", image_size=32,
        num_classes=10, parameters=1_730_714, macs=253_149_824, stages=CIFAR_STAGES),
    "cifar_plain20": Variant(ResNet, cifar(3, "none"), paper="arXiv:1512.03385 Fig. 6", image_size=32,
        num_classes=10, parameters=269_722, macs=40_551_040, stages=CIFAR_STAGES),
    "cifar_plain32": Variant(ResNet, cifar(5, "none"), paper="arXiv:1512.03385 Fig. 6", image_size=32,
        num_classes=10, parameters=464_154, macs=68_862_592, stages=CIFAR_STAGES),
    "cifar_plain44": Variant(ResNet, cifar(7, "none"), paper="arXiv:1512.03385 Fig. 6", image_size=32,
        num_classes=10, parameters=658_586, macs=97_174_144, stages=CIFAR_STAGES),
    "cifar_plain56": Variant(ResNet, cifar(9, "none"), paper="arXiv:1512.03385 Fig. 6", image_size=32,
        num_classes=10, parameters=853_018, macs=125_485_696, stages=CIFAR_STAGES),
    "cifar_plain110": Variant(ResNet, cifar(18, "none"), paper="arXiv:1512.03385 Fig. 6", image_size=32,
        num_classes=10, parameters=1_727_962, macs=252_887_680, stages=CIFAR_STAGES),
}
# fmt: on
