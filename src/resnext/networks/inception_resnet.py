"""Inception-ResNet-v1 and v2: Szegedy, Ioffe, Vanhoucke and Alemi, arXiv:1602.07261 (AAAI 2017), Fig. 15.

"Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning". Each block is
ReLU(x + scale·F(x)), where F ends in a linear 1×1 convolution: with a bias, without batch norm (section 3.2).

Departures and readings:
- `inception_resnet_v1` (Figs. 10–14) and `inception_resnet_v2_paper` (Figs. 3, 16–19) are as drawn: their
  integers are read off figures, and 5, 10 and 5 blocks off Fig. 15. Where Fig. 17 says 1154 and Fig. 19 2048, the sums
  with x ask for 1152 and 2144.
- `inception_resnet_v2` is the network that the authors released (TF-slim): another stem, 10, 20 and 9 blocks and
  one more without scale and ReLU, then 1×1-1536, and an auxiliary classifier with a loss weight of 0.4. The text says
  that v2 costs what Inception-v4 does (12.3 G multiply-adds), which is true of this one (13.2 G) rather than
  of the drawing (9.3 G).
- `inception_resnet_v1_facenet` is the widely used one of the facenet project, with a last block without scale and
  ReLU as well; here the classifier follows directly, without facenet's 128 numbers for a face.
- The paper gives scales of 0.1 to 0.3; here they are the released code's 0.17, 0.10 and 0.20.
- Average pools do not count the zeros of the padding. Dropout keeps 0.8. Weights start as those of
  `inception_v3`; the paper does not say (TF-slim: Glorot's uniform distribution; facenet: a truncated normal
  one of 0.1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor, nn

from resnext.errors import UserError
from resnext.layers import Branches, Conv2d, GlobalHead, Network, PooledHead
from resnext.networks import inception_v3, inception_v4
from resnext.networks.inception_v3 import (
    SMALLEST,
    AuxiliaryHead,
    Conv,
    HeadOptions,
    Layers,
    Reduction,
    draw_weights,
    pooled,
    stage,
    tower,
)
from resnext.networks.inception_v4 import check_blocks
from resnext.residual import ResidualBlock, StochasticDepth, set_survivals
from resnext.variant import Blueprint, Variant, check_choice, check_sizes

Modules = Literal["v1", "v2"]
Stem = Literal["v1", "v4", "released"]


@dataclass(frozen=True)
class InceptionResNetConfig(HeadOptions, StochasticDepth):
    """Which Inception-ResNet.

    `modules` are the widths of v1 or v2; `stem` is v1's (Fig. 14), that of Inception-v4 (Fig. 3), or the released
    v2's; `blocks` counts the blocks A, B and C, of the stages at 35×35, 17×17 and 8×8, and `scales` is what their
    branches are multiplied with; with `unscaled_last` one more block C follows, without scale and ReLU; `features`
    is the channels of a last 1×1 convolution, or None for none.
    The fields of `HeadOptions` and `StochasticDepth` come with it.
    """

    modules: Modules
    stem: Stem
    blocks: tuple[int, ...] = (5, 10, 5)
    scales: tuple[float, ...] = (0.17, 0.10, 0.20)
    unscaled_last: bool = False
    features: int | None = None

    def __post_init__(self) -> None:
        check_choice("modules", self.modules, Modules)
        check_choice("stem", self.stem, Stem)
        check_blocks(self.blocks)
        if not (isinstance(self.scales, tuple) and len(self.scales) == 3 and all(map(_is_scale, self.scales))):
            raise UserError(f"scales={self.scales!r} does not fit. Give three numbers above 0 and up to 1.")
        check_choice("unscaled_last", self.unscaled_last, Literal[True, False])
        if self.features is not None:
            check_sizes(features=self.features)
        self.check_head_options()
        self.check_depth_options()


def _is_scale(value: object) -> bool:
    return type(value) in (int, float) and 0 < value <= 1  # type: ignore[operator]


@dataclass(frozen=True)
class Widths:
    """The branches of the residual blocks A, B and C, and of the reductions between them."""

    a: tuple[Layers, ...]
    to_17: tuple[Layers, ...]
    b: tuple[Layers, ...]
    to_8: tuple[Layers, ...]
    c: tuple[Layers, ...]


WIDTHS = {
    "v1": Widths(
        a=(((32, 1),), ((32, 1), (32, 3)), ((32, 1), (32, 3), (32, 3))),
        to_17=(((384, 3),), ((192, 1), (192, 3), (256, 3))),
        b=(((128, 1),), ((128, 1), (128, (1, 7)), (128, (7, 1)))),
        to_8=(((256, 1), (384, 3)), ((256, 1), (256, 3)), ((256, 1), (256, 3), (256, 3))),
        c=(((192, 1),), ((192, 1), (192, (1, 3)), (192, (3, 1)))),
    ),
    "v2": Widths(
        a=(((32, 1),), ((32, 1), (32, 3)), ((32, 1), (48, 3), (64, 3))),
        to_17=(((384, 3),), ((256, 1), (256, 3), (384, 3))),
        b=(((192, 1),), ((128, 1), (160, (1, 7)), (192, (7, 1)))),
        to_8=(((256, 1), (384, 3)), ((256, 1), (288, 3)), ((256, 1), (288, 3), (320, 3))),
        c=(((192, 1),), ((192, 1), (224, (1, 3)), (256, (3, 1)))),
    ),
}


def stem_v1(in_channels: int) -> nn.Sequential:
    """Return v1's stem: N×in_channels×299×299 → N×256×35×35 (Fig. 14)."""
    layers = inception_v3.stem(in_channels)
    layers[-1] = Conv(192, 256, 3, stride=2, valid=True)  # in the place of a max-pool
    return layers


def stem_released(in_channels: int) -> nn.Sequential:
    """Return the released v2's stem, that of Inception-v3 and a module: N×in_channels×299×299 → N×320×35×35."""
    module = Branches(
        point=tower(192, (96, 1)),
        short=tower(192, (48, 1), (64, 5)),
        long=tower(192, (64, 1), (96, 3), (96, 3)),
        pool=pooled(192, 64, count_padding=False),
    )
    return inception_v3.stem(in_channels).append(module)


STEMS: dict[str, tuple[Callable[[int], nn.Sequential], int]] = {
    "v1": (stem_v1, 256),
    "v4": (inception_v4.stem, 384),
    "released": (stem_released, 320),
}


class InceptionResidual(ResidualBlock):
    """ReLU(x + scale·F(x)), or without `relu` the sum itself: N×channels×H×W → the same (Fig. 20).

    F is the `branches` side by side, and a linear 1×1 convolution to `channels`.
    """

    def __init__(self, channels: int, branches: tuple[Layers, ...], *, scale: float, relu: bool = True) -> None:
        super().__init__()
        towers = {f"conv{number}": tower(channels, *layers) for number, layers in enumerate(branches, 1)}
        self.branches = Branches(**towers)
        self.expand = Conv2d(sum(layers[-1][0] for layers in branches), channels, 1)
        self.shortcut = nn.Identity()
        self.scale, self.relu = scale, relu

    def residual(self, images: Tensor) -> Tensor:
        """Return scale·F(x)."""
        branch: Tensor = self.expand(self.branches(images))
        return branch * self.scale

    def forward(self, images: Tensor) -> Tensor:
        """Return the block's output; with a closed gate in training, without computing the branch."""
        if self.relu:
            return super().forward(images)
        return images if self.is_closed else images + self.gated(self.residual(images))

    def extra_repr(self) -> str:
        """Return the settings for `repr`."""
        return f"scale={self.scale}, relu={self.relu}"


class ExpandedHead(GlobalHead):
    """A 1×1 convolution to `features` channels, then `PooledHead`: N×channels×H×W → logits N×num_classes."""

    def __init__(self, channels: int, features: int, num_classes: int, *, dropout: float) -> None:
        super().__init__()
        self.expand = Conv(channels, features, 1)
        self.pooled = PooledHead(features, num_classes, dropout=dropout)


class InceptionResNet(Network):
    """The network of a config; images N×in_channels×H×W → logits N×num_classes.

    The auxiliary classifier, if there is one, reads `stage2`.
    """

    stride = 32
    smallest = SMALLEST

    def __init__(self, config: InceptionResNetConfig, *, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        widths, (make_stem, channels) = WIDTHS[config.modules], STEMS[config.stem]
        (a, b, c), (scale_a, scale_b, scale_c) = config.blocks, config.scales
        self.stem = make_stem(in_channels)
        block = partial(InceptionResidual, channels, widths.a, scale=scale_a)
        self.stage1 = stage(*(block() for _ in range(a)))
        reduction = Reduction(channels, *widths.to_17)
        channels = wide = channels + _ends(widths.to_17)
        block = partial(InceptionResidual, channels, widths.b, scale=scale_b)
        self.stage2 = stage(*(block() for _ in range(b)), reduction=reduction)
        reduction = Reduction(channels, *widths.to_8)
        channels += _ends(widths.to_8)
        block = partial(InceptionResidual, channels, widths.c)
        last = [block(scale=1.0, relu=False)] if config.unscaled_last else []
        self.stage3 = stage(*(block(scale=scale_c) for _ in range(c)), *last, reduction=reduction)
        if config.features is None:
            self.head: nn.Sequential = PooledHead(channels, num_classes, dropout=config.dropout)
        else:
            self.head = ExpandedHead(channels, config.features, num_classes, dropout=config.dropout)
        if config.auxiliary:
            self.auxiliary = nn.ModuleDict({"stage2": AuxiliaryHead(wide, num_classes)})
            self.auxiliary_weight = config.auxiliary_weight
        draw_weights(self)
        set_survivals(self, config)


def _ends(branches: tuple[Layers, ...]) -> int:
    """Return the channels that branches put out together."""
    return sum(layers[-1][0] for layers in branches)


def parse(name: str) -> Blueprint | None:
    """Return None: the names of this family are all listed."""
    return None


V1 = InceptionResNetConfig("v1", "v1", auxiliary=False)
V1_FACENET = InceptionResNetConfig("v1", "v1", unscaled_last=True, auxiliary=False)
V2 = InceptionResNetConfig("v2", "released", (10, 20, 9), unscaled_last=True, features=1536)
V2_PAPER = InceptionResNetConfig("v2", "v4", auxiliary=False)

# fmt: off
VARIANTS: dict[str, Variant] = {
    "inception_resnet_v1": Variant(
        InceptionResNet, V1, paper="arXiv:1602.07261 Figs. 10-15", image_size=299,
        parameters=22_756_328, macs=6_206_361_696,
        stages=((256, 35, 35), (896, 17, 17), (1792, 8, 8))),
    "inception_resnet_v1_facenet": Variant(
        InceptionResNet, V1_FACENET, paper="arXiv:1602.07261 (facenet's form)", image_size=299,
        parameters=24_357_096, macs=6_308_597_856,
        stages=((256, 35, 35), (896, 17, 17), (1792, 8, 8))),
    "inception_resnet_v2": Variant(
        InceptionResNet, V2, paper="arXiv:1602.07261 (authors' code)", image_size=299,
        parameters=55_843_464, training_parameters=59_211_120, macs=13_155_794_016,
        stages=((320, 35, 35), (1088, 17, 17), (2080, 8, 8))),
    "inception_resnet_v2_paper": Variant(
        InceptionResNet, V2_PAPER, paper="arXiv:1602.07261 Figs. 15-19", image_size=299,
        parameters=32_433_928, macs=9_257_953_632,
        stages=((384, 35, 35), (1152, 17, 17), (2144, 8, 8))),
}
# fmt: on
