"""Inception-v3: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", arXiv:1512.00567.

The network of the last row of Table 3, as the authors coded it (TF-slim): the paper's Table 1 is another one,
`inception_v2`. The pieces that the later Inception networks share are here as well.

Departures and readings:
- Average pools within the modules leave the zeros of the padding out, as TensorFlow's do. Torchvision's count them
  (`count_padding`), and it drops 0.5 before the classifier: `inception_v3_torchvision`, else the same.
- The auxiliary classifier reads the last 17×17 map; its loss counts 0.4, as in Google's training code. Dropout keeps
  0.8, as in TF-slim.
- Weights start as in TF-slim: truncated normals of variance 2/fan-in (0.01 and 0.001 wide at the end of the
  auxiliary classifier); the paper does not say. Running averages of batch norm move by 0.1 a step, TF-slim's by
  0.0003.
- Images are expected normalised; nothing is rescaled within the network, as torchvision's `transform_input` does.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import nn

from resnext.layers import Branches, Conv2d, ConvNorm, Network, PooledHead, PublishedSize
from resnext.variant import Blueprint, Variant, check_choice, check_dropout, check_positive

# The layers of one branch of a module, each as (channels, kernel).
Kernel = int | tuple[int, int]
Layers = tuple[tuple[int, Kernel], ...]

Conv = partial(ConvNorm, epsilon=1e-3)
SMALLEST = 75  # pixels: the side that the valid convolutions and pools bring to 1×1 before the head


@dataclass(frozen=True, kw_only=True)
class HeadOptions:
    """The fields that the configs of Inception networks have in common.

    `auxiliary` says whether there is an auxiliary classifier, which runs in training only, and
    `auxiliary_weight` what its loss counts; `dropout` is the probability that a number before the classifier is
    set to zero in training.
    """

    auxiliary: bool = True
    auxiliary_weight: float = 0.4
    dropout: float = 0.2

    def check_head_options(self) -> None:
        """Raise UserError for values that make no network."""
        check_choice("auxiliary", self.auxiliary, Literal[True, False])
        check_positive(auxiliary_weight=self.auxiliary_weight)
        check_dropout(self.dropout)


@dataclass(frozen=True)
class InceptionV3Config(HeadOptions):
    """Which Inception-v3, which has one size.

    `count_padding` says whether average pools within modules count the zeros of the padding. The fields of
    `HeadOptions` come with it.
    """

    count_padding: bool = False

    def __post_init__(self) -> None:
        check_choice("count_padding", self.count_padding, Literal[True, False])
        self.check_head_options()


def tower(in_channels: int, *layers: tuple[int, Kernel], halve: bool = False) -> nn.Sequential:
    """Return convolutions one behind the other: N×in_channels×H×W → N×(channels of the last)×H×W.

    With `halve` the last one is valid and has stride 2: H → ⌊(H−1)/2⌋ for its kernel of 3.
    """
    convs = nn.Sequential()
    for number, (channels, kernel) in enumerate(layers, 1):
        ends = halve and number == len(layers)
        convs.append(Conv(in_channels, channels, kernel, stride=2 if ends else 1, valid=ends))
        in_channels = channels
    return convs


def fan(in_channels: int, channels: int) -> Branches:
    """Return a 1×3 and a 3×1 convolution side by side: N×in_channels×H×W → N×(2·channels)×H×W (Fig. 7)."""
    return Branches(row=Conv(in_channels, channels, (1, 3)), column=Conv(in_channels, channels, (3, 1)))


def pooled(in_channels: int, channels: int, *, count_padding: bool) -> nn.Sequential:
    """Return a 3×3 average pool and a 1×1 convolution: N×in_channels×H×W → N×channels×H×W."""
    pool = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=count_padding)
    return nn.Sequential(pool, Conv(in_channels, channels, 1))


class InceptionA(Branches):
    """64 | 48-64 | 64-96-96 | average-`pool`: N×in_channels×H×W → N×(224+pool)×H×W (Fig. 5).

    `kernel` is that of the second branch: 5 in the authors' code, 3 in the figure.
    """

    def __init__(self, in_channels: int, *, pool: int, kernel: int = 5, count_padding: bool = False) -> None:
        super().__init__(
            point=tower(in_channels, (64, 1)),
            short=tower(in_channels, (48, 1), (64, kernel)),
            long=tower(in_channels, (64, 1), (96, 3), (96, 3)),
            pool=pooled(in_channels, pool, count_padding=count_padding),
        )


class InceptionC(Branches):
    """192 | a 7×7 as 1×7, 7×1 | two of them | average-192: N×768×H×W → the same (Fig. 6 with n = 7).

    `width` is that of the factorised convolutions before the last.
    """

    def __init__(self, *, width: int, count_padding: bool = False) -> None:
        row, column = (1, 7), (7, 1)
        super().__init__(
            point=tower(768, (192, 1)),
            short=tower(768, (width, 1), (width, row), (192, column)),
            long=tower(768, (width, 1), (width, column), (width, row), (width, column), (192, row)),
            pool=pooled(768, 192, count_padding=count_padding),
        )


class InceptionE(Branches):
    """320 | 384-fan | 448-384-fan | average-192, with fans of 2·384: N×in_channels×H×W → N×2048×H×W (Fig. 7)."""

    def __init__(self, in_channels: int, *, count_padding: bool = False) -> None:
        super().__init__(
            point=tower(in_channels, (320, 1)),
            short=tower(in_channels, (384, 1)).append(fan(384, 384)),
            long=tower(in_channels, (448, 1), (384, 3)).append(fan(384, 384)),
            pool=pooled(in_channels, 192, count_padding=count_padding),
        )


class Reduction(Branches):
    """Branches that end in a stride of 2, and a 3×3 max-pool (Fig. 10).

    N×in_channels×H×W → N×(channels of the branches + in_channels)×⌊(H−1)/2⌋×⌊(W−1)/2⌋.
    """

    def __init__(self, in_channels: int, *branches: Layers) -> None:
        towers = {f"conv{number}": tower(in_channels, *each, halve=True) for number, each in enumerate(branches, 1)}
        super().__init__(**towers, pool=nn.MaxPool2d(3, stride=2))


def reduction_to_17() -> Reduction:
    """Return 384 | 64-96-96 | max-pool: N×288×35×35 → N×768×17×17."""
    return Reduction(288, ((384, 3),), ((64, 1), (96, 3), (96, 3)))


def reduction_to_8() -> Reduction:
    """Return 192-320 | 192-192-192-192, a 7×7 as 1×7, 7×1 | max-pool: N×768×17×17 → N×1280×8×8."""
    return Reduction(768, ((192, 1), (320, 3)), ((192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3)))


class AuxiliaryHead(nn.Sequential):
    """A classifier on the last 17×17 map, for training: N×channels×17×17 → logits N×num_classes (Fig. 8).

    Average pool 5/3, 1×1-128, 5×5-768, linear. `normalised` is the paper's "BN-auxiliary": whether a batch norm
    follows the 5×5, which covers the whole map and so is a fully connected layer, as one follows the 1×1.
    """

    def __init__(self, channels: int, num_classes: int, *, normalised: bool = True) -> None:
        super().__init__()
        self.size = PublishedSize(17)
        self.pool = nn.AvgPool2d(5, stride=3)  # N×channels×5×5
        self.reduce = Conv(channels, 128, 1)
        plain = OrderedDict(conv=Conv2d(128, 768, 5), relu=nn.ReLU(inplace=True))
        self.hidden = Conv(128, 768, 5, valid=True) if normalised else nn.Sequential(plain)  # N×768×1×1
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(768, num_classes)
        nn.init.zeros_(self.fc.bias)


def stage(*blocks: nn.Module, reduction: nn.Module | None = None) -> nn.Sequential:
    """Return `reduction`, if there is one, and the blocks behind it, named `block1` …"""
    named = OrderedDict() if reduction is None else OrderedDict(reduction=reduction)
    named.update((f"block{number}", block) for number, block in enumerate(blocks, 1))
    return nn.Sequential(named)


def stem(in_channels: int) -> nn.Sequential:
    """Return what comes before the modules: N×in_channels×299×299 → N×192×35×35."""
    return nn.Sequential(
        Conv(in_channels, 32, 3, stride=2, valid=True),  # N×32×149×149
        Conv(32, 32, 3, valid=True),  # N×32×147×147
        Conv(32, 64, 3),
        nn.MaxPool2d(3, stride=2),  # N×64×73×73
        Conv(64, 80, 1),
        Conv(80, 192, 3, valid=True),  # N×192×71×71
        nn.MaxPool2d(3, stride=2),
    )


def draw_weights(network: Network) -> None:
    """Draw all weights as TF-slim does, from normal distributions truncated at two standard deviations."""
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    # What truncation leaves of a variance of 2.6/fan-in is 2/fan-in.
    deviations = {layer: math.sqrt(2.6 / layer.weight[0].numel()) for layer in layers}
    for head in (network.auxiliary or nn.ModuleDict()).values():
        assert isinstance(head, AuxiliaryHead)
        deviations |= {head.get_submodule("hidden.conv"): 0.01, head.fc: 0.001}  # type: ignore[dict-item]
    for layer, deviation in deviations.items():
        if not layer.weight.is_meta:  # nothing to draw
            nn.init.trunc_normal_(layer.weight, std=deviation, a=-2 * deviation, b=2 * deviation)


class InceptionV3(Network):
    """Inception-v3; images N×in_channels×H×W → logits N×num_classes; `stage2` has the auxiliary classifier."""

    stride = 32
    smallest = SMALLEST

    def __init__(self, config: InceptionV3Config, *, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = stem(in_channels)
        module_a = partial(InceptionA, count_padding=config.count_padding)
        module_c = partial(InceptionC, count_padding=config.count_padding)
        module_e = partial(InceptionE, count_padding=config.count_padding)
        self.stage1 = stage(module_a(192, pool=32), module_a(256, pool=64), module_a(288, pool=64))
        wider = [module_c(width=width) for width in (128, 160, 160, 192)]
        self.stage2 = stage(*wider, reduction=reduction_to_17())
        self.stage3 = stage(module_e(1280), module_e(2048), reduction=reduction_to_8())
        self.head = PooledHead(2048, num_classes, dropout=config.dropout)
        if config.auxiliary:
            self.auxiliary = nn.ModuleDict({"stage2": AuxiliaryHead(768, num_classes)})
            self.auxiliary_weight = config.auxiliary_weight
        draw_weights(self)


def parse(name: str) -> Blueprint | None:
    """Return None: the family's names are listed."""
    return None


# fmt: off
VARIANTS: dict[str, Variant] = {
    "inception_v3": Variant(
        InceptionV3, InceptionV3Config(), paper="arXiv:1512.00567 Table 3", image_size=299,
        parameters=23_834_568, training_parameters=27_161_264, macs=5_713_216_096,
        stages=((288, 35, 35), (768, 17, 17), (2048, 8, 8))),
    "inception_v3_torchvision": Variant(
        InceptionV3, InceptionV3Config(count_padding=True, dropout=0.5),
        paper="arXiv:1512.00567 Table 3 (torchvision's pools)", image_size=299,
        parameters=23_834_568, training_parameters=27_161_264, macs=5_713_216_096,
        stages=((288, 35, 35), (768, 17, 17), (2048, 8, 8))),
}
# fmt: on
