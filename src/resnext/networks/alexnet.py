"""AlexNet: Krizhevsky, Sutskever and Hinton, "ImageNet Classification with Deep Convolutional Neural Networks".

NIPS 2012. Section 3.5 and Fig. 2 give the layers, section 5 the weights at the start.

Departures and readings:
- The paper says inputs of 224×224, but at stride 4 they give its 55×55 maps only when padded by 2 (227×227 would
  without padding), so conv1 pads by 2; parameters and multiply-adds are the same. Fig. 2's 253,440 neurons of
  conv1 would be 55·48·96; they are 55·55·96 = 290,400.
- conv2, conv4 and conv5 saw the half of the maps that lay on their own GPU: two groups. `alexnet_ungrouped` has
  the same widths, with every layer connected to all maps.
- Local response normalisation has the paper's α, which multiplies the sum; torch and Caffe divide theirs by n.
- Dropout falls on what the first two fully connected layers put out ("the output of each hidden neuron"). It is
  inverted: what is left is doubled in training instead of halved at test, which is the same function.
- Momentum, weight decay, learning rates and colour noise belong to the recipe.
- `alexnet_one_tower` is what torchvision calls alexnet, and comes from Krizhevsky's later code for one GPU
  (arXiv:1404.5997, which itself prints 384 maps for conv4): narrower, without groups and response normalisation,
  dropout before fc6 and fc7, and torch's own weights at the start: all, biases too, uniform in ±1/√fan-in.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from resnext.errors import UserError
from resnext.layers import Drawn, LocalResponseNorm, Network, PublishedSize
from resnext.variant import Blueprint, Variant, check_choice, check_dropout, check_series, check_sizes

DropoutAt = Literal["output", "input"]
Initialisation = Literal["paper", "torch"]


@dataclass(frozen=True)
class AlexNetConfig:
    """Which AlexNet.

    `channels` are those of conv1 … conv5; `groups` those of conv2, conv4 and conv5; `hidden` is the width of fc6
    and fc7; `response_norm` says whether conv1 and conv2 are followed by local response normalisation; `dropout`
    is the probability that a number is set to zero in training, at the `dropout_at` (output or input) of fc6 and
    fc7; `initialisation` is the paper's (weights from N(0, 0.01²), biases 1 in conv2, conv4, conv5, fc6 and fc7
    and 0 elsewhere) or torch's.
    """

    channels: tuple[int, ...] = (96, 256, 384, 384, 256)
    groups: int = 2
    hidden: int = 4096
    response_norm: bool = True
    dropout: float = 0.5
    dropout_at: DropoutAt = "output"
    initialisation: Initialisation = "paper"

    def __post_init__(self) -> None:
        check_series(channels=self.channels)
        check_sizes(groups=self.groups, hidden=self.hidden)
        check_choice("response_norm", self.response_norm, Literal[True, False])
        check_choice("dropout_at", self.dropout_at, DropoutAt)
        check_choice("initialisation", self.initialisation, Initialisation)
        check_dropout(self.dropout)
        if len(self.channels) != 5:
            raise UserError(f"channels={self.channels!r} does not fit: there are five convolutions. Give five numbers.")
        if any(channels % self.groups for channels in self.channels):
            raise UserError(f"channels={self.channels!r} do not divide by groups={self.groups}. Take multiples of it.")


class Normal(Drawn):
    """A layer that starts as the paper's: weights from N(0, 0.01²), biases 0 (section 5)."""

    draw = staticmethod(partial(nn.init.normal_, std=0.01))


class Conv2d(Normal, nn.Conv2d):
    """`nn.Conv2d` that starts as the paper's."""


class Linear(Normal, nn.Linear):
    """`nn.Linear` that starts as the paper's."""


class FullyConnectedHead(nn.Sequential):
    """Two hidden layers with ReLU and dropout, and a linear classifier: N×C×H×W → logits N×K.

    They were made for maps of side×side; others are brought to this size. Children: `size`, `flatten`, then fc6,
    relu6, fc7, relu7, fc8, named as in AlexNet, and the dropouts between them where `dropout` is not 0. `linear`
    makes the fully connected layers.
    """

    size: PublishedSize
    fc6: nn.Linear

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        side: int,
        hidden: int,
        dropout: float,
        dropout_at: DropoutAt = "output",
        linear: type[nn.Linear] = nn.Linear,
    ) -> None:
        super().__init__()
        self.size = PublishedSize(side)
        self.flatten = nn.Flatten()
        for number, features in ((6, channels * side**2), (7, hidden)):
            if dropout and dropout_at == "input":
                self.add_module(f"dropout{number}", nn.Dropout(dropout))
            self.add_module(f"fc{number}", linear(features, hidden))
            self.add_module(f"relu{number}", nn.ReLU(inplace=True))
            if dropout and dropout_at == "output":
                self.add_module(f"dropout{number}", nn.Dropout(dropout))
        self.fc8 = linear(hidden, num_classes)

    def dense(self, images: Tensor) -> Tensor:
        """Return the mean of the logits at all places of the maps, N×C×H×W, where side×side fit.

        fc6 runs as a convolution of side×side, the others as convolutions of 1×1 (arXiv:1409.1556 section 3.2).
        Where side×side do not fit, this is `forward`.
        """
        side = self.size.side
        if min(images.shape[2:]) < side:
            logits: Tensor = self(images)
            return logits
        for layer in self:
            if layer is self.fc6:
                kernels = self.fc6.weight.view(self.fc6.out_features, -1, side, side)
                images = F.conv2d(images, kernels, self.fc6.bias).permute(0, 2, 3, 1)  # N×places×places×hidden
            elif not isinstance(layer, PublishedSize | nn.Flatten):
                images = layer(images)
        return images.mean((1, 2))


class AlexNet(Network):
    """The network of a config; images N×in_channels×H×W → logits N×num_classes.

    Children: `stem` (conv1 to its max-pool), `stage1` (conv2), `stage2` (conv3, conv4, conv5), `head`.
    """

    stride = 32

    def __init__(self, config: AlexNetConfig, *, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        is_paper = config.initialisation == "paper"
        conv = Conv2d if is_paper else nn.Conv2d
        one, two, three, four, five = config.channels
        self.stem = _in_order(
            conv1=conv(in_channels, one, 11, stride=4, padding=2),
            relu1=nn.ReLU(inplace=True),
            norm1=LocalResponseNorm() if config.response_norm else None,
            pool1=nn.MaxPool2d(3, 2),
        )
        self.stage1 = _in_order(
            conv2=conv(one, two, 5, padding=2, groups=config.groups),
            relu2=nn.ReLU(inplace=True),
            norm2=LocalResponseNorm() if config.response_norm else None,
            pool2=nn.MaxPool2d(3, 2),
        )
        self.stage2 = _in_order(
            conv3=conv(two, three, 3, padding=1),
            relu3=nn.ReLU(inplace=True),
            conv4=conv(three, four, 3, padding=1, groups=config.groups),
            relu4=nn.ReLU(inplace=True),
            conv5=conv(four, five, 3, padding=1, groups=config.groups),
            relu5=nn.ReLU(inplace=True),
            pool5=nn.MaxPool2d(3, 2),
        )
        self.head = FullyConnectedHead(
            five,
            num_classes,
            side=6,
            hidden=config.hidden,
            dropout=config.dropout,
            dropout_at=config.dropout_at,
            linear=Linear if is_paper else nn.Linear,
        )
        if is_paper:
            for name in ("stage1.conv2", "stage2.conv4", "stage2.conv5", "head.fc6", "head.fc7"):
                nn.init.ones_(self.get_parameter(f"{name}.bias"))

    @property
    def smallest(self) -> int:
        """The side of the smallest legal image, in pixels: 3×3 before the last pool, 7×7 and 15×15 before others."""
        return 63


def _in_order(**layers: nn.Module | None) -> nn.Sequential:
    """Return the layers one after the other, each under its name; None is left out."""
    return nn.Sequential(OrderedDict((name, layer) for name, layer in layers.items() if layer is not None))


ONE_TOWER = AlexNetConfig(
    (64, 192, 384, 256, 256), groups=1, response_norm=False, dropout_at="input", initialisation="torch"
)


def parse(name: str) -> Blueprint | None:
    """Return None: beyond its table, this family has no grammar of names."""
    return None


# fmt: off
VARIANTS: dict[str, Variant] = {
    "alexnet": Variant(
        AlexNet, AlexNetConfig(), paper="NIPS 2012 Fig. 2", image_size=224,
        parameters=60_965_224, macs=724_406_816, stages=((256, 13, 13), (256, 6, 6))),
    "alexnet_ungrouped": Variant(
        AlexNet, AlexNetConfig(groups=1), paper="NIPS 2012 Fig. 2 (without grouping)", image_size=224,
        parameters=62_378_344, macs=1_135_256_096, stages=((256, 13, 13), (256, 6, 6))),
    "alexnet_one_tower": Variant(
        AlexNet, ONE_TOWER, paper="arXiv:1404.5997 (torchvision's widths)", image_size=224,
        parameters=61_100_840, macs=714_188_480, stages=((192, 13, 13), (256, 6, 6))),
}
# fmt: on
