"""Wide ResNet: Zagoruyko and Komodakis, "Wide Residual Networks", arXiv:1605.07146.

Table 1 gives the networks for CIFAR and SVHN, WRN-n-k: pre-activation blocks of two 3×3 convolutions, k times as
wide. Tables 7 and 8 give those for ImageNet, which are not of the pre-activation kind.

Departures and readings:
- n counts convolutions: the first one, those of the blocks, and three projections; the linear layer is not counted.
  With k = 1 the first group has no projection (16 → 16 channels), so n says one too many there.
- Dropout is off by default, as in most of the paper's tables; its own is 0.3 for CIFAR and 0.4 for SVHN. It comes
  after batch norm and ReLU, right before the second convolution (section 2.4), and before every further one where a
  block has more.
- Weights of the CIFAR networks start in He's fan-in form (the authors' code).
- Block types B(·) of Table 2 are suffixes, as in `wrn_40_2_b131`: all convolutions of a block have its width, the
  first one strides, and n = 6N + 4 whatever the type, so that a block of three makes the network deeper than n. The
  parameters that the table prints come out so for all six types; but which depth and count belong to which type was
  read off a text copy with its columns out of order.
- Table 3's networks have l 3×3 convolutions to a block, suffix `_l3`. There n counts convolutions, n = 3·l·N + 4,
  since the table gives all of them 2.2 million parameters.
- `wide_resnet18_k` and `wide_resnet34_k` have conv2 to conv5 widened, not the stem; `wide_resnet50_2` doubles the
  inner width of the bottlenecks. These are post-activation networks with strides in the 3×3. Of the bottlenecks the
  paper has 50-2; 101-2 is torchvision's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from resnext.errors import UserError
from resnext.layers import Network, PooledHead
from resnext.networks.preact_resnet import NormRelu, PreactBlock, PreactHead
from resnext.networks.resnet import (
    BLOCKS,
    BOTTLENECK_STAGES,
    STEM_STRIDES,
    BasicBlock,
    Block,
    Bottleneck,
    stem_layers,
)
from resnext.networks.stochastic_depth import FanInConv2d
from resnext.residual import StochasticDepth, set_survivals
from resnext.variant import Blueprint, Variant, check_choice, check_dropout, check_series, check_sizes


@dataclass(frozen=True)
class WideResNetConfig(StochasticDepth):
    """Which WRN.

    `blocks` counts the blocks of each group; `widening` is k, for widths of 16·k, 32·k, 64·k; `kernels` are the
    sizes of a block's convolutions, B(3, 3) for most; `dropout` is the probability that a number is set to zero
    before every convolution of a block but the first.
    The fields of `StochasticDepth` come with it.
    """

    blocks: tuple[int, ...]
    widening: int
    kernels: tuple[int, ...] = (3, 3)
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_series(blocks=self.blocks, kernels=self.kernels)
        check_sizes(widening=self.widening)
        check_dropout(self.dropout)
        self.check_depth_options()
        if any(size % 2 == 0 for size in self.kernels):
            raise UserError(f"kernels={self.kernels!r} would shift the image by half a pixel. Take odd sizes.")


class WideBlock(PreactBlock):
    """Convolutions with batch norm, ReLU and (behind the first) dropout before each, and a shortcut (Fig. 1).

    N×in_channels×H×W → N×out_channels×⌈H/stride⌉×⌈W/stride⌉. The first convolution strides.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, kernels: tuple[int, ...], dropout: float, stride: int = 1
    ) -> None:
        super().__init__()
        first, *others = kernels
        self.activation = NormRelu(in_channels)
        self.branch = nn.Sequential()
        self.branch.conv1 = _convolution(in_channels, out_channels, first, stride)
        for number, kernel_size in enumerate(others, 2):
            self.branch.add_module(f"activation{number}", NormRelu(out_channels))
            if dropout:
                self.branch.add_module(f"dropout{number}", nn.Dropout(dropout))
            self.branch.add_module(f"conv{number}", _convolution(out_channels, out_channels, kernel_size))
        self.splits_late = in_channels != out_channels
        self.shortcut = _convolution(in_channels, out_channels, 1, stride) if self.splits_late else nn.Identity()

    def residual(self, images: Tensor) -> Tensor:
        """Return F of activated images."""
        branch: Tensor = self.branch(images)
        return branch


def _convolution(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> FanInConv2d:
    return FanInConv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)


class WideResNet(Network):
    """The network of Table 1 for a config; images N×in_channels×H×W → logits N×num_classes.

    Every group but the first halves H and W and doubles the width.
    """

    def __init__(self, config: WideResNetConfig, *, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = _convolution(in_channels, 16, 3)
        self.stride = 1
        block = partial(WideBlock, kernels=config.kernels, dropout=config.dropout)
        channels = self.add_stages(config.blocks, 16, lambda index: (block, 16 * config.widening * 2**index))
        self.head = PreactHead(channels, num_classes)
        set_survivals(self, config)


@dataclass(frozen=True)
class WideImageNetConfig(StochasticDepth):
    """Which of Tables 7 and 8: `blocks` and `block` as for ResNet, `widening` (k) such as 1.5.

    The fields of `StochasticDepth` come with it.
    """

    blocks: tuple[int, ...]
    block: Block
    widening: float

    def __post_init__(self) -> None:
        check_series(blocks=self.blocks)
        check_choice("block", self.block, Block)
        self.check_depth_options()
        k = self.widening
        if type(k) not in (int, float) or not 0 < k <= 1000 or 64 * k != round(64 * k):
            raise UserError(f"widening={k!r} makes no whole number of 64 channels. Take one such as 1.5 or 2.")


class WideImageNet(Network):
    """ResNet with wider stages; images N×in_channels×H×W → logits N×num_classes.

    Every stage but the first halves H and W and doubles the width, at first 64·k. Basic blocks put out their width;
    bottlenecks as many channels as in ResNet, at first 256.
    """

    def __init__(self, config: WideImageNetConfig, *, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = stem_layers("imagenet", in_channels, 64)
        self.stride = STEM_STRIDES["imagenet"]
        width = round(64 * config.widening)

        def stage_of(index: int) -> tuple[Callable[..., nn.Module], int]:
            if config.block == "basic":
                return BasicBlock, width * 2**index
            return partial(Bottleneck, width=width * 2**index), 256 * 2**index

        channels = self.add_stages(config.blocks, 64, stage_of)
        self.head = PooledHead(channels, num_classes)
        set_survivals(self, config)


def cifar(blocks: int, widening: int, *kernels: int) -> WideResNetConfig:
    """Return the network with `blocks` (N) in each group, B(kernels) or B(3, 3), and k = `widening`."""
    return WideResNetConfig((blocks,) * 3, widening, kernels or (3, 3))


def imagenet(depth: int, widening: float) -> WideImageNetConfig:
    """Return Table 7's network of 18 or 34 layers, or Table 8's of 50 or 101, with width k = `widening`."""
    return WideImageNetConfig(BLOCKS[depth], "basic" if depth < 50 else "bottleneck", widening)


def parse(name: str) -> Blueprint | None:
    """Return what `wrn_{n}_{k}`, `wrn_{n}_{k}_b{kernels}`, `wrn_{n}_{k}_l{l}` or `wide_resnet{depth}_{k}` means.

    None for another name. Raises UserError for a depth that the family does not have.
    """
    if match := re.fullmatch(r"wrn_([1-9]\d*)_([1-9]\d*)(?:_b([13]+)|_l([1-9]\d?))?", name):
        convolutions = int(match[4] or 2)
        kernels = map(int, match[3] or "3" * convolutions)
        config = cifar(_blocks(name, match[1], 3 * convolutions), int(match[2]), *kernels)
        return Blueprint(WideResNet, config, paper="arXiv:1605.07146 Table 1", image_size=32, num_classes=10)
    match = re.fullmatch(r"wide_resnet([1-9]\d*)_([1-9]\d*(?:\.\d*[1-9])?)", name)
    if match is None:
        return None
    depth, widening = int(match[1]), float(match[2]) if "." in match[2] else int(match[2])
    if depth not in (18, 34, 50, 101):
        raise UserError(f"There is no {name!r}: wide ResNets for ImageNet have 18, 34, 50 or 101 layers.")
    paper = f"arXiv:1605.07146 Table {7 if depth < 50 else 8}"
    return Blueprint(WideImageNet, imagenet(depth, widening), paper=paper, image_size=224)


def _blocks(name: str, depth: str, step: int) -> int:
    """Return N for the first number in `name`, `depth`; raise UserError unless it is step·N + 4 with N ≥ 1."""
    blocks, rest = divmod(int(depth) - 4, step)
    if blocks >= 1 and rest == 0:
        return blocks
    below = max(1, blocks)
    near = " or ".join(repr(name.replace(depth, str(step * n + 4), 1)) for n in (below, below + 1))
    raise UserError(f"There is no {name!r}: networks of this family have {step}N + 4 convolutions. Take {near}.")


def _groups(widening: int) -> tuple[tuple[int, int, int], ...]:
    """Return what the groups put out at 32×32 pixels: 16·k, 32·k and 64·k channels."""
    return (16 * widening, 32, 32), (32 * widening, 16, 16), (64 * widening, 8, 8)


def _basic_stages(width: int) -> tuple[tuple[int, int, int], ...]:
    """Return what stages of basic blocks put out at 224×224 pixels."""
    return (width, 56, 56), (2 * width, 28, 28), (4 * width, 14, 14), (8 * width, 7, 7)


# fmt: off
VARIANTS: dict[str, Variant] = {
    "wrn_16_4": Variant(WideResNet, cifar(2, 4), paper="arXiv:1605.07146 Table 6", image_size=32,
        num_classes=10, parameters=2_748_890, macs=392_612_352, stages=_groups(4)),
    "wrn_16_8": Variant(WideResNet, cifar(2, 8), paper="arXiv:1605.07146 Table 5", image_size=32,
        num_classes=10, parameters=10_961_370, macs=1_548_145_664, stages=_groups(8)),
    "wrn_16_10": Variant(WideResNet, cifar(2, 10), paper="arXiv:1605.07146 Table 4", image_size=32,
        num_classes=10, parameters=17_116_634, macs=2_412_173_568, stages=_groups(10)),
    "wrn_22_8": Variant(WideResNet, cifar(3, 8), paper="arXiv:1605.07146 Table 4", image_size=32,
        num_classes=10, parameters=17_158_106, macs=2_454_115_328, stages=_groups(8)),
    "wrn_22_10": Variant(WideResNet, cifar(3, 10), paper="arXiv:1605.07146 Table 4", image_size=32,
        num_classes=10, parameters=26_797_914, macs=3_827_751_168, stages=_groups(10)),
    "wrn_28_2": Variant(WideResNet, cifar(4, 2), paper="arXiv:1605.07146 Table 2", image_size=32,
        num_classes=10, parameters=1_467_610, macs=214_353_152, stages=_groups(2)),
    "wrn_28_10": Variant(WideResNet, cifar(4, 10), paper="arXiv:1605.07146 Table 5", image_size=32,
        num_classes=10, parameters=36_479_194, macs=5_243_328_768, stages=_groups(10)),
    "wrn_28_12": Variant(WideResNet, cifar(4, 12), paper="arXiv:1605.07146 Table 4", image_size=32,
        num_classes=10, parameters=52_517_850, macs=7_543_905_792, stages=_groups(12)),
    "wrn_40_1": Variant(WideResNet, cifar(6, 1), paper="arXiv:1605.07146 Table 4", image_size=32,
        num_classes=10, parameters=563_930, macs=83_280_512, stages=_groups(1)),
    "wrn_40_2": Variant(WideResNet, cifar(6, 2), paper="arXiv:1605.07146 Table 4", image_size=32,
        num_classes=10, parameters=2_243_546, macs=327_599_360, stages=_groups(2)),
    "wrn_40_4": Variant(WideResNet, cifar(6, 4), paper="arXiv:1605.07146 Table 5", image_size=32,
        num_classes=10, parameters=8_949_210, macs=1_298_582_016, stages=_groups(4)),
    "wrn_40_8": Variant(WideResNet, cifar(6, 8), paper="arXiv:1605.07146 Table 4", image_size=32,
        num_classes=10, parameters=35_748_314, macs=5_172_024_320, stages=_groups(8)),
    "wrn_40_10": Variant(WideResNet, cifar(6, 10), paper="arXiv:1605.07146 Table 9", image_size=32,
        num_classes=10, parameters=55_841_754, macs=8_074_483_968, stages=_groups(10)),
    "wrn_52_1": Variant(WideResNet, cifar(8, 1), paper="arXiv:1605.07146 Table 6", image_size=32,
        num_classes=10, parameters=758_362, macs=111_592_064, stages=_groups(1)),
    "wrn_40_2_b131": Variant(WideResNet, cifar(6, 2, 1, 3, 1), paper="arXiv:1605.07146 Table 2", image_size=32,
        num_classes=10, parameters=1_429_082, macs=208_061_696, stages=_groups(2)),
    "wrn_40_2_b31": Variant(WideResNet, cifar(6, 2, 3, 1), paper="arXiv:1605.07146 Table 2", image_size=32,
        num_classes=10, parameters=1_211_354, macs=176_604_416, stages=_groups(2)),
    "wrn_40_2_b13": Variant(WideResNet, cifar(6, 2, 1, 3), paper="arXiv:1605.07146 Table 2", image_size=32,
        num_classes=10, parameters=1_297_370, macs=189_187_328, stages=_groups(2)),
    "wrn_40_2_b311": Variant(WideResNet, cifar(6, 2, 3, 1, 1), paper="arXiv:1605.07146 Table 2", image_size=32,
        num_classes=10, parameters=1_343_066, macs=195_478_784, stages=_groups(2)),
    "wrn_22_2_b313": Variant(WideResNet, cifar(3, 2, 3, 1, 3), paper="arXiv:1605.07146 Table 2", image_size=32,
        num_classes=10, parameters=1_145_498, macs=167_167_232, stages=_groups(2)),
    "wrn_40_2_l1": Variant(WideResNet, cifar(12, 2, 3), paper="arXiv:1605.07146 Table 3", image_size=32,
        num_classes=10, parameters=2_243_546, macs=327_599_360, stages=_groups(2)),
    "wrn_40_2_l3": Variant(WideResNet, cifar(4, 2, 3, 3, 3), paper="arXiv:1605.07146 Table 3", image_size=32,
        num_classes=10, parameters=2_243_546, macs=327_599_360, stages=_groups(2)),
    "wrn_40_2_l4": Variant(WideResNet, cifar(3, 2, 3, 3, 3, 3), paper="arXiv:1605.07146 Table 3", image_size=32,
        num_classes=10, parameters=2_243_546, macs=327_599_360, stages=_groups(2)),
    "wide_resnet18_1.5": Variant(WideImageNet, imagenet(18, 1.5), paper="arXiv:1605.07146 Table 7", image_size=224,
        parameters=25_875_816, macs=3_866_327_040, stages=_basic_stages(96)),
    "wide_resnet18_2": Variant(WideImageNet, imagenet(18, 2), paper="arXiv:1605.07146 Table 7", image_size=224,
        parameters=45_618_216, macs=6_695_706_624, stages=_basic_stages(128)),
    "wide_resnet18_3": Variant(WideImageNet, imagenet(18, 3), paper="arXiv:1605.07146 Table 7", image_size=224,
        parameters=101_783_976, macs=14_724_378_624, stages=_basic_stages(192)),
    "wide_resnet34_1.5": Variant(WideImageNet, imagenet(34, 1.5), paper="arXiv:1605.07146 Table 7", image_size=224,
        parameters=48_613_608, macs=8_028_125_184, stages=_basic_stages(96)),
    "wide_resnet34_2": Variant(WideImageNet, imagenet(34, 2), paper="arXiv:1605.07146 Table 7", image_size=224,
        parameters=86_036_008, macs=14_094_458_880, stages=_basic_stages(128)),
    "wide_resnet50_2": Variant(WideImageNet, imagenet(50, 2), paper="arXiv:1605.07146 Table 8", image_size=224,
        parameters=68_883_240, macs=11_398_021_120, stages=BOTTLENECK_STAGES),
    "wide_resnet101_2": Variant(WideImageNet, imagenet(101, 2), paper="arXiv:1605.07146 (torchvision's size)",
        image_size=224, parameters=126_886_696, macs=22_753_050_624, stages=BOTTLENECK_STAGES),
}
# fmt: on
