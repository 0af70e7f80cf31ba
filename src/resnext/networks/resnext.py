"""ResNeXt: Xie, Girshick, Dollár, Tu and He, "Aggregated Residual Transformations for Deep Neural Networks".

arXiv:1611.05431. Table 1 gives ResNeXt-50, Table 2 the settings C×d of equal complexity, section 5.3 the
CIFAR networks (9n + 2 layers). Fig. 3 has three forms of the block, which compute the same function: (a) paths
summed, (b) paths concatenated, (c) a grouped convolution. A network has form (c) unless its config says otherwise.

Departures and readings:
- `resnext101_32x8d` and `resnext152_32x4d` are not in the paper: the first is torchvision's, the second comes
  with the authors' code.
- `resnext50_32x4d_no_shortcut` is section 5.1's residual ablation: no shortcut is left, and so no projection.
  `resnext101_1x100d` is Table 4's wider ResNet-101.
- Shortcuts are of option B for CIFAR as well, and down-sampling is in the 3×3 convolution: the authors' code.
- Batch norm and ReLU follow every convolution of every path, but for the last 1×1 of a path of form (a): one batch
  norm follows the sum (footnote 6). So the forms agree in training as well, and have the same parameters.
- Weights of forms (a) and (b) start from the distribution of those of (c), which the authors' code sets by the
  channels of all paths together.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor, nn

from resnext.errors import UserError
from resnext.layers import Branches, Conv2d, ConvNorm, Network, PooledHead
from resnext.networks.resnet import (
    BLOCKS,
    BOTTLENECK_STAGES,
    STEM_STRIDES,
    Shortcut,
    Stem,
    check_depth,
    shortcut_layers,
    stem_layers,
)
from resnext.residual import ResidualBlock, StochasticDepth, set_survivals
from resnext.variant import Blueprint, Variant, check_choice, check_series, check_sizes

Form = Literal["a", "b", "c"]

CIFAR_STAGES = ((256, 32, 32), (512, 16, 16), (1024, 8, 8))


@dataclass(frozen=True)
class ResNeXtConfig(StochasticDepth):
    """Which ResNeXt.

    `blocks` counts the blocks of each stage; `cardinality` is C, the paths of a block, and `base_width` is d,
    the channels of each path in stage 1; `stem` and `shortcut` are as for ResNet; `form` is that of the blocks in
    Fig. 3: paths summed (a), concatenated (b), or a grouped convolution (c).
    The fields of `StochasticDepth` come with it.
    """

    blocks: tuple[int, ...]
    cardinality: int
    base_width: int
    stem: Stem = "imagenet"
    shortcut: Shortcut = "B"
    form: Form = "c"

    def __post_init__(self) -> None:
        check_series(blocks=self.blocks)
        check_sizes(cardinality=self.cardinality, base_width=self.base_width)
        check_choice("stem", self.stem, Stem)
        check_choice("shortcut", self.shortcut, Shortcut)
        check_choice("form", self.form, Form)
        self.check_depth_options()


class SummedBottleneck(ResidualBlock):
    """`cardinality` paths of 1×1, 3×3, 1×1, summed, and a shortcut: form (a) of Fig. 3.

    N×in_channels×H×W → N×out_channels×⌈H/stride⌉×⌈W/stride⌉. `width` is that of all paths together, C·d.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        width: int,
        cardinality: int,
        stride: int = 1,
        shortcut: Shortcut = "B",
    ) -> None:
        super().__init__()
        paths = make_paths(in_channels, width, cardinality, stride)
        for path in paths.values():
            path.add_module("expand", Conv2d(width // cardinality, out_channels, 1, bias=False))
        self.paths = SummedBranches(**paths)
        self.norm = nn.BatchNorm2d(out_channels)
        self.shortcut = shortcut_layers(shortcut, in_channels, out_channels, stride)

    def residual(self, images: Tensor) -> Tensor:
        """Return F(x)."""
        branch: Tensor = self.norm(self.paths(images))
        return branch


class ConcatenatedBottleneck(ResidualBlock):
    """`cardinality` paths of 1×1, 3×3, side by side, 1×1 of all, and a shortcut: form (b) of Fig. 3.

    N×in_channels×H×W → N×out_channels×⌈H/stride⌉×⌈W/stride⌉. `width` is that of all paths together, C·d.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        width: int,
        cardinality: int,
        stride: int = 1,
        shortcut: Shortcut = "B",
    ) -> None:
        super().__init__()
        self.paths = Branches(**make_paths(in_channels, width, cardinality, stride))
        self.expand = ConvNorm(width, out_channels, 1, relu=False)
        self.shortcut = shortcut_layers(shortcut, in_channels, out_channels, stride)

    def residual(self, images: Tensor) -> Tensor:
        """Return F(x)."""
        branch: Tensor = self.expand(self.paths(images))
        return branch


class AggregatedBottleneck(ResidualBlock):
    """`cardinality` paths of 1×1, 3×3, 1×1, summed, and a shortcut: form (c) of Fig. 3.

    N×in_channels×H×W → N×out_channels×⌈H/stride⌉×⌈W/stride⌉. `width` is that of all paths together, C·d.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        width: int,
        cardinality: int,
        stride: int = 1,
        shortcut: Shortcut = "B",
    ) -> None:
        super().__init__()
        self.reduce = ConvNorm(in_channels, width, 1)
        self.spatial = ConvNorm(width, width, 3, stride=stride, groups=cardinality)
        self.expand = ConvNorm(width, out_channels, 1, relu=False)
        self.shortcut = shortcut_layers(shortcut, in_channels, out_channels, stride)

    def residual(self, images: Tensor) -> Tensor:
        """Return F(x)."""
        branch: Tensor = self.expand(self.spatial(self.reduce(images)))
        return branch


class SummedBranches(Branches):
    """Every child on the same images, and the sum of what they put out."""

    def forward(self, images: Tensor) -> Tensor:
        """Return the sum, in memory of its own."""
        first, *others = self.children()
        total: Tensor = first(images)
        for branch in others:
            total += branch(images)
        return total


def make_paths(in_channels: int, width: int, cardinality: int, stride: int) -> dict[str, nn.Module]:
    """Return the beginnings of the paths, `path1` …: N×in_channels×H×W → N×(width/cardinality)×⌈H/stride⌉×…."""
    assert width % cardinality == 0, (width, cardinality)
    channels = width // cardinality
    paths: dict[str, nn.Module] = {}
    for number in range(1, cardinality + 1):
        reduce, spatial = ConvNorm(in_channels, channels, 1), ConvNorm(channels, channels, 3, stride=stride)
        for conv in (reduce.conv, spatial.conv):
            if not conv.weight.is_meta:
                conv.weight.data *= cardinality**-0.5  # the fan-out counts the channels of all paths
        paths[f"path{number}"] = nn.Sequential(OrderedDict(reduce=reduce, spatial=spatial))
    return paths


Bottleneck = SummedBottleneck | ConcatenatedBottleneck | AggregatedBottleneck
FORMS: dict[Form, type[Bottleneck]] = {"a": SummedBottleneck, "b": ConcatenatedBottleneck, "c": AggregatedBottleneck}


class ResNeXt(Network):
    """The network of a config; images N×in_channels×H×W → logits N×num_classes.

    Every stage but the first halves H and W, and doubles the width, at first C·d, and the channels that it
    puts out, at first 256.
    """

    def __init__(self, config: ResNeXtConfig, *, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = stem_layers(config.stem, in_channels, 64)
        self.stride = STEM_STRIDES[config.stem]
        block = partial(FORMS[config.form], cardinality=config.cardinality, shortcut=config.shortcut)
        width = config.cardinality * config.base_width
        channels = self.add_stages(
            config.blocks, 64, lambda index: (partial(block, width=width * 2**index), 256 * 2**index)
        )
        self.head = PooledHead(channels, num_classes)
        set_survivals(self, config)


def imagenet(depth: int, cardinality: int, base_width: int, *, shortcut: Shortcut = "B") -> ResNeXtConfig:
    """Return section 4's network with `depth` layers: 50, 101 or 152."""
    return ResNeXtConfig(BLOCKS[depth], cardinality, base_width, shortcut=shortcut)


def cifar(blocks: int, cardinality: int, base_width: int) -> ResNeXtConfig:
    """Return section 5.3's network with `blocks` (n) in each of the three stages: 9n + 2 layers."""
    return ResNeXtConfig((blocks,) * 3, cardinality, base_width, stem="cifar")


def parse(name: str) -> Blueprint | None:
    """Return what `resnext{50|101|152}_{C}x{d}d` or `cifar_resnext{9n+2}_{C}x{d}d` means; None otherwise.

    Raises UserError for a depth that the family does not have.
    """
    if re.fullmatch(r"resnext(18|34)(_.*)?", name):
        raise UserError(
            f"There is no {name!r}: the blocks of ResNet-18 and 34 have two layers, and C such paths\n"
            "together are one wider dense block (arXiv:1611.05431 Fig. 4).\n"
            "Take 'resnet18', 'resnet34' or 'resnext50_32x4d'."
        )
    match = re.fullmatch(r"(cifar_)?resnext([1-9]\d*)_([1-9]\d*)x([1-9]\d*)d", name)
    if match is None:
        return None
    depth, cardinality, base_width = map(int, match.groups()[1:])
    if match[1]:
        check_depth(name, depth, step=9)
        config = cifar((depth - 2) // 9, cardinality, base_width)
        return Blueprint(ResNeXt, config, paper="arXiv:1611.05431 section 5.3", image_size=32, num_classes=10)
    if depth not in (50, 101, 152):
        raise UserError(f"There is no {name!r}: ResNeXt for ImageNet has 50, 101 or 152 layers. Take one of these.")
    config = imagenet(depth, cardinality, base_width)
    return Blueprint(ResNeXt, config, paper="arXiv:1611.05431 section 4", image_size=224)


# fmt: off
VARIANTS: dict[str, Variant] = {
    "resnext50_32x4d": Variant(ResNeXt, imagenet(50, 32, 4), paper="arXiv:1611.05431 Table 1", image_size=224,
        parameters=25_028_904, macs=4_230_479_872, stages=BOTTLENECK_STAGES),
    "resnext50_32x4d_no_shortcut": Variant(ResNeXt, imagenet(50, 32, 4, shortcut="none"),
        paper="arXiv:1611.05431 section 5.1", image_size=224,
        parameters=22_252_328, macs=3_870_818_304, stages=BOTTLENECK_STAGES),
    "resnext50_1x64d": Variant(
        ResNeXt, imagenet(50, 1, 64), paper="arXiv:1611.05431 Table 3", image_size=224,
        parameters=25_557_032, macs=4_089_184_256, stages=BOTTLENECK_STAGES),
    "resnext50_2x40d": Variant(ResNeXt, imagenet(50, 2, 40), paper="arXiv:1611.05431 Table 3", image_size=224,
        parameters=25_425_000, macs=4_124_508_160, stages=BOTTLENECK_STAGES),
    "resnext50_4x24d": Variant(ResNeXt, imagenet(50, 4, 24), paper="arXiv:1611.05431 Table 3", image_size=224,
        parameters=25_292_968, macs=4_159_832_064, stages=BOTTLENECK_STAGES),
    "resnext50_8x14d": Variant(ResNeXt, imagenet(50, 8, 14), paper="arXiv:1611.05431 Table 3", image_size=224,
        parameters=25_603_016, macs=4_267_409_408, stages=BOTTLENECK_STAGES),
    "resnext101_32x4d": Variant(ResNeXt, imagenet(101, 32, 4), paper="arXiv:1611.05431 Table 3", image_size=224,
        parameters=44_177_704, macs=7_969_996_800, stages=BOTTLENECK_STAGES),
    "resnext101_1x64d": Variant(
        ResNeXt, imagenet(101, 1, 64), paper="arXiv:1611.05431 Table 3", image_size=224,
        parameters=44_549_160, macs=7_801_405_440, stages=BOTTLENECK_STAGES),
    "resnext101_2x40d": Variant(ResNeXt, imagenet(101, 2, 40), paper="arXiv:1611.05431 Table 3", image_size=224,
        parameters=44_456_296, macs=7_843_553_280, stages=BOTTLENECK_STAGES),
    "resnext101_4x24d": Variant(ResNeXt, imagenet(101, 4, 24), paper="arXiv:1611.05431 Table 3", image_size=224,
        parameters=44_363_432, macs=7_885_701_120, stages=BOTTLENECK_STAGES),
    "resnext101_8x14d": Variant(ResNeXt, imagenet(101, 8, 14), paper="arXiv:1611.05431 Table 3", image_size=224,
        parameters=45_104_328, macs=8_076_871_680, stages=BOTTLENECK_STAGES),
    "resnext101_1x100d": Variant(ResNeXt, imagenet(101, 1, 100), paper="arXiv:1611.05431 Table 4", image_size=224,
        parameters=85_611_336, macs=15_272_862_720, stages=BOTTLENECK_STAGES),
    "resnext101_2x64d": Variant(ResNeXt, imagenet(101, 2, 64), paper="arXiv:1611.05431 Table 4", image_size=224,
        parameters=84_198_184, macs=15_123_087_360, stages=BOTTLENECK_STAGES),
    "resnext101_64x4d": Variant(ResNeXt, imagenet(101, 64, 4), paper="arXiv:1611.05431 Table 4", image_size=224,
        parameters=83_455_272, macs=15_460_270_080, stages=BOTTLENECK_STAGES),
    "resnext101_32x8d": Variant(ResNeXt, imagenet(101, 32, 8), paper="arXiv:1611.05431 (torchvision's size)",
        image_size=224, parameters=88_791_336, macs=16_414_015_488, stages=BOTTLENECK_STAGES),
    "resnext152_32x4d": Variant(ResNeXt, imagenet(152, 32, 4), paper="arXiv:1611.05431 (authors' code)", image_size=224,
        parameters=59_951_400, macs=11_709_513_728, stages=BOTTLENECK_STAGES),
    "cifar_resnext29_1x64d": Variant(ResNeXt, cifar(3, 1, 64), paper="arXiv:1611.05431 section 5.3", image_size=32,
        num_classes=10, parameters=4_914_250, macs=748_365_824, stages=CIFAR_STAGES),
    "cifar_resnext29_2x64d": Variant(ResNeXt, cifar(3, 2, 64), paper="arXiv:1611.05431 section 5.3", image_size=32,
        num_classes=10, parameters=9_130_314, macs=1_411_065_856, stages=CIFAR_STAGES),
    "cifar_resnext29_4x64d": Variant(ResNeXt, cifar(3, 4, 64), paper="arXiv:1611.05431 section 5.3", image_size=32,
        num_classes=10, parameters=17_562_442, macs=2_736_465_920, stages=CIFAR_STAGES),
    "cifar_resnext29_8x64d": Variant(ResNeXt, cifar(3, 8, 64), paper="arXiv:1611.05431 Table 7", image_size=32,
        num_classes=10, parameters=34_426_698, macs=5_387_266_048, stages=CIFAR_STAGES),
    "cifar_resnext29_16x64d": Variant(ResNeXt, cifar(3, 16, 64), paper="arXiv:1611.05431 Table 7", image_size=32,
        num_classes=10, parameters=68_155_210, macs=10_688_866_304, stages=CIFAR_STAGES),
    "cifar_resnext29_1x128d": Variant(ResNeXt, cifar(3, 1, 128), paper="arXiv:1611.05431 section 5.3", image_size=32,
        num_classes=10, parameters=13_775_178, macs=2_090_543_104, stages=CIFAR_STAGES),
    "cifar_resnext29_1x256d": Variant(ResNeXt, cifar(3, 1, 256), paper="arXiv:1611.05431 section 5.3", image_size=32,
        num_classes=10, parameters=45_431_626, macs=6_813_329_408, stages=CIFAR_STAGES),
    "cifar_resnext29_32x4d": Variant(ResNeXt, cifar(3, 32, 4), paper="arXiv:1611.05431 section 5.3", image_size=32,
        num_classes=10, parameters=4_775_754, macs=774_055_936, stages=CIFAR_STAGES),
    "cifar_resnext29_4x32d": Variant(ResNeXt, cifar(3, 4, 32), paper="arXiv:1611.05431 section 5.3", image_size=32,
        num_classes=10, parameters=6_807_882, macs=1_071_327_232, stages=CIFAR_STAGES),
    "cifar_resnext29_2x32d": Variant(ResNeXt, cifar(3, 2, 32), paper="arXiv:1611.05431 section 5.3", image_size=32,
        num_classes=10, parameters=3_753_034, macs=578_496_512, stages=CIFAR_STAGES),
}
# fmt: on
