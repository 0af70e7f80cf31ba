"""BN-Inception: Ioffe and Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal
Covariate Shift", arXiv:1502.03167.

Figure 5, in the appendix, gives the layers; the widths here are read off that figure.

Departures and readings:
- `bn_inception` takes Figure 5 at its word: modules 4c and 4d have a pool projection of 128, and so put out 608 maps,
  although the figure prints 576. `bn_inception_slim` is TF-slim's (its inception_v2), where 96 make 576, and the
  first 7×7 convolution is separable: 8 filters of each colour, then 1×1. It has γ in every batch norm, ε = 0.001, and
  dropout 0.2, which the paper removed.
- The figure prints for 3c and 4e the sides of the map that enters; they stride by 2 and halve it. Here 3c opens
  stage 2 and 4e stage 3, as every stage but the first opens with the block that strides.
- The paper's 13.6 million parameters fit no reading of its figure, which makes 11.3 million. `bias=True` adds the
  biases that the Caffe model keeps before its batch norms: 10,016.
- There are no auxiliary classifiers: Figure 5 has none, and the paper says that only the softmax layer at the end is
  fully connected. Nor is there dropout or local response normalisation (section 4.2.1).
- Average pools do not count the border of zeros, as in Google's own code. Convolutions and pools that stride by 2 pad
  both sides alike in 3c and 4e; TensorFlow pads more at the end. Sizes are the same for even sides.
- The paper does not say how weights start; here convolutions from He's normal distribution.
- Names: arXiv:1602.07261 calls this network Inception-v2, and arXiv:1512.00567 another one.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import nn

from resnext.layers import Branches, Conv2d, ConvNorm, Network, PooledHead
from resnext.networks.googlenet import Convolution, Stem
from resnext.variant import Blueprint, Variant, check_choice, check_dropout, check_positive, check_sizes

First = Literal["full", "separable"]
Pool = Literal["average", "max"]


class Widths(NamedTuple):
    """The channels of a module's convolutions, a row of Figure 5; `double` is that of two 3×3 in succession."""

    single: int
    reduce3: int
    conv3: int
    reduce_double: int
    double: int
    project: int
    pool: Pool = "average"


class StridedWidths(NamedTuple):
    """The same of a module that strides: it has no 1×1 branch, and its max-pool passes on all channels."""

    reduce3: int
    conv3: int
    reduce_double: int
    double: int


# Figure 5, by stage: each but the first opens with a module that strides.
MODULES: tuple[dict[str, Widths | StridedWidths], ...] = (
    {
        "3a": Widths(64, 64, 64, 64, 96, 32),
        "3b": Widths(64, 64, 96, 64, 96, 64),
    },
    {
        "3c": StridedWidths(128, 160, 64, 96),
        "4a": Widths(224, 64, 96, 96, 128, 128),
        "4b": Widths(192, 96, 128, 96, 128, 128),
        "4c": Widths(160, 128, 160, 128, 160, 128),
        "4d": Widths(96, 128, 192, 160, 192, 128),
    },
    {
        "4e": StridedWidths(128, 192, 192, 256),
        "5a": Widths(352, 192, 320, 160, 224, 128),
        "5b": Widths(352, 192, 320, 192, 224, 128, "max"),
    },
)


@dataclass(frozen=True, kw_only=True)
class BNInceptionConfig:
    """Which BN-Inception.

    `first` is the first convolution, a full or a separable 7×7; `project` is the width of the pool projection in
    4c and 4d; `bias` gives the convolutions biases, which the batch norms behind them cancel; `epsilon` is the
    one in the batch norms' square roots; `dropout` is the probability that a number before the classifier is set
    to zero in training.
    """

    first: First = "full"
    project: int = 128
    bias: bool = False
    epsilon: float = 1e-5
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_choice("first", self.first, First)
        check_sizes(project=self.project)
        check_choice("bias", self.bias, Literal[True, False])
        check_positive(epsilon=self.epsilon)
        check_dropout(self.dropout)


class BiasedConvNorm(ConvNorm):
    """`ConvNorm` of which the convolution has a bias, at first 0."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, epsilon: float = 1e-5
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, epsilon=epsilon)
        self.conv.bias = nn.Parameter(torch.zeros(out_channels))


class DoubleInception(Branches):
    """1×1, 3×3, two 3×3, and a pool side by side, with 1×1 before or after them: N×C×H×W → N×out_channels×H×W."""

    def __init__(self, in_channels: int, widths: Widths, *, conv: Convolution) -> None:
        pool = nn.AvgPool2d(3, 1, 1, count_include_pad=False) if widths.pool == "average" else nn.MaxPool2d(3, 1, 1)
        super().__init__(
            branch1x1=conv(in_channels, widths.single, 1),
            **convolution_branches(in_channels, widths, conv=conv, stride=1),
            branch_pool=nn.Sequential(OrderedDict(pool=pool, project=conv(in_channels, widths.project, 1))),
        )
        self.out_channels = widths.single + widths.conv3 + widths.double + widths.project


class StridedInception(Branches):
    """3×3, two 3×3, and a max-pool side by side, each with stride 2: N×C×H×W → N×out_channels×⌈H/2⌉×⌈W/2⌉."""

    def __init__(self, in_channels: int, widths: StridedWidths, *, conv: Convolution) -> None:
        super().__init__(
            **convolution_branches(in_channels, widths, conv=conv, stride=2),
            branch_pool=nn.MaxPool2d(3, 2, 1),
        )
        self.out_channels = widths.conv3 + widths.double + in_channels


def convolution_branches(
    in_channels: int, widths: Widths | StridedWidths, *, conv: Convolution, stride: int
) -> dict[str, nn.Module]:
    """Return the branches that every module has: 1×1 and a 3×3, 1×1 and two 3×3; the last 3×3 strides."""
    return {
        "branch3x3": nn.Sequential(
            OrderedDict(
                reduce=conv(in_channels, widths.reduce3, 1),
                spatial=conv(widths.reduce3, widths.conv3, 3, stride=stride),
            )
        ),
        "branch3x3_double": nn.Sequential(
            OrderedDict(
                reduce=conv(in_channels, widths.reduce_double, 1),
                spatial1=conv(widths.reduce_double, widths.double, 3),
                spatial2=conv(widths.double, widths.double, 3, stride=stride),
            )
        ),
    }


class BNInception(Network):
    """The network of a config; images N×in_channels×H×W → logits N×num_classes.

    Children: `stem`, `stage1` (modules 3a, 3b), `stage2` (3c, 4a … 4d), `stage3` (4e, 5a, 5b), `head`.
    """

    stride = 32

    def __init__(self, config: BNInceptionConfig, *, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        conv: Convolution = partial(BiasedConvNorm if config.bias else ConvNorm, epsilon=config.epsilon)
        self.stem = Stem(_first(config.first, in_channels, conv), conv, response_norm=False)
        channels = 192
        for number, modules in enumerate(MODULES, 1):
            stage = nn.Sequential()
            for name, widths in modules.items():
                module = _module(channels, widths, conv, project=config.project if name in ("4c", "4d") else None)
                stage.add_module(f"inception{name}", module)
                channels = module.out_channels
            self.add_module(f"stage{number}", stage)
        self.head = PooledHead(channels, num_classes, dropout=config.dropout)


def _first(first: First, in_channels: int, conv: Convolution) -> nn.Module:
    """Return the first convolution: N×in_channels×H×W → N×64×⌈H/2⌉×⌈W/2⌉."""
    if first == "full":
        return conv(in_channels, 64, 7, stride=2)
    depthwise = Conv2d(in_channels, 8 * in_channels, 7, stride=2, padding=3, groups=in_channels, bias=False)
    return nn.Sequential(OrderedDict(depthwise=depthwise, pointwise=conv(8 * in_channels, 64, 1)))


def _module(
    in_channels: int, widths: Widths | StridedWidths, conv: Convolution, *, project: int | None
) -> DoubleInception | StridedInception:
    """Return the module of a row of Figure 5, with another pool projection where `project` gives one."""
    if isinstance(widths, StridedWidths):
        return StridedInception(in_channels, widths, conv=conv)
    return DoubleInception(in_channels, widths._replace(project=project or widths.project), conv=conv)


def parse(name: str) -> Blueprint | None:
    """Return None: beyond its table, this family has no grammar of names."""
    return None


SLIM = BNInceptionConfig(first="separable", project=96, epsilon=1e-3, dropout=0.2)
STAGES = ((320, 28, 28), (608, 14, 14), (1024, 7, 7))
SLIM_STAGES = ((320, 28, 28), (576, 14, 14), (1024, 7, 7))

# fmt: off
VARIANTS: dict[str, Variant] = {
    "bn_inception": Variant(BNInception, BNInceptionConfig(), paper="arXiv:1502.03167 Fig. 5", image_size=224,
        parameters=11_285_224, macs=2_032_600_064, stages=STAGES),
    "bn_inception_slim": Variant(BNInception, SLIM, paper="arXiv:1502.03167 Fig. 5 (TF-slim's)", image_size=224,
        parameters=11_188_288, macs=1_934_857_216, stages=SLIM_STAGES),
}
# fmt: on
