"""Stochastic depth: Huang, Sun, Liu, Sedra and Weinberger, "Deep Networks with Stochastic Depth", arXiv:1603.09382.

The method is in `residual.py`, and every residual network has it through the options `final_survival` (p_L) and
`survival_rule`: "linear", p_l = 1 − (l/L)(1 − p_L), or "uniform", p_l = p_L. Here are the paper's own networks,
linear with p_L = 0.5: 110 layers for CIFAR-10 and 100, 152 for SVHN, 1202 for CIFAR-10, and ResNet-152 for ImageNet
(section 4), where the paper found no gain: 21.98 % error against 21.78 % with constant depth, after 120 epochs.

Departures and readings:
- A gate is drawn once for a mini-batch and block, and it is the test that multiplies by p_l. Libraries have another
  method under this name, which is `drop_path` here: torchvision and timm divide by the survival in training,
  timm draws for each image, and its linear rule spares the first block; their argument is the share that is dropped.
- The networks are those of arXiv:1512.03385, whose option A takes every second row and column. The authors' code
  averages 2×2 pixels instead, has biases in its convolutions and draws weights in the fan-in form: that is
  `cifar_resnet110_stochastic_depth_authors`. For odd sides, which it does not have, border windows average what
  there is.
- The errors do not compare with those of arXiv:1512.03385 one to one: 45,000 training images and the epoch of the
  best validation out of 500, against 50,000, 164 epochs and the best of five runs. For CIFAR-100 at constant depth
  the text says 27.22, the table 27.76.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from resnext.layers import Conv2d, Network, PooledHead
from resnext.networks import resnet
from resnext.networks.resnet import BOTTLENECK_STAGES, CIFAR_STAGES, ResNet, ResNetConfig, check_depth
from resnext.residual import ResidualBlock, StochasticDepth, set_survivals
from resnext.variant import Blueprint, Variant, check_series, check_sizes


@dataclass(frozen=True)
class AuthorsResNetConfig(StochasticDepth):
    """Which network of the authors' code: the blocks of each stage, and the channels of the first, then doubled.

    The fields of `StochasticDepth` come with it.
    """

    blocks: tuple[int, ...]
    width: int = 16

    def __post_init__(self) -> None:
        check_series(blocks=self.blocks)
        check_sizes(width=self.width)
        self.check_depth_options()


class FanInConv2d(Conv2d):
    """A convolution that starts from He's normal distribution in the fan-in form, and zero biases.

    The standard deviation is sqrt(2 / (k·k·in_channels)) (arXiv:1502.01852 equation 10).
    """

    draw = staticmethod(partial(nn.init.kaiming_normal_, mode="fan_in", nonlinearity="relu"))


class AuthorsConvNorm(nn.Sequential):
    """3×3 convolution with a bias, batch norm and (with `relu`) ReLU.

    N×C×H×W → N×out_channels×⌈H/stride⌉×⌈W/stride⌉. Children: `conv`, `norm`, `relu`.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, relu: bool = True) -> None:
        super().__init__()
        self.conv = FanInConv2d(in_channels, out_channels, 3, stride, 1)
        self.norm = nn.BatchNorm2d(out_channels)
        if relu:
            self.relu = nn.ReLU(inplace=True)


class AveragedShortcut(nn.Module):
    """The mean of stride×stride pixels, and `extra` channels of zeros after the others.

    N×C×H×W → N×(C+extra)×⌈H/stride⌉×⌈W/stride⌉, without parameters.
    """

    def __init__(self, extra: int, stride: int) -> None:
        super().__init__()
        self.extra, self.stride = extra, stride

    def forward(self, images: Tensor) -> Tensor:
        """Return the smaller, deeper images."""
        return F.pad(F.avg_pool2d(images, self.stride, ceil_mode=True), (0, 0, 0, 0, 0, self.extra))

    def extra_repr(self) -> str:
        """Return the settings for `repr`."""
        return f"extra={self.extra}, stride={self.stride}"


class AuthorsBlock(ResidualBlock):
    """Two 3×3 convolutions and a shortcut without parameters, as in the authors' code.

    N×in_channels×H×W → N×out_channels×⌈H/stride⌉×⌈W/stride⌉.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.first = AuthorsConvNorm(in_channels, out_channels, stride=stride)
        self.second = AuthorsConvNorm(out_channels, out_channels, relu=False)
        same_shape = in_channels == out_channels and stride == 1
        self.shortcut = nn.Identity() if same_shape else AveragedShortcut(out_channels - in_channels, stride)

    def residual(self, images: Tensor) -> Tensor:
        """Return F(x)."""
        branch: Tensor = self.second(self.first(images))
        return branch


class AuthorsResNet(Network):
    """The network of the authors' code; images N×in_channels×H×W → logits N×num_classes.

    Every stage but the first halves H and W and doubles the width.
    """

    def __init__(self, config: AuthorsResNetConfig, *, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = AuthorsConvNorm(in_channels, config.width)
        self.stride = 1
        channels = self.add_stages(config.blocks, config.width, lambda index: (AuthorsBlock, config.width * 2**index))
        self.head = PooledHead(channels, num_classes)
        set_survivals(self, config)


def cifar(blocks: int) -> ResNetConfig:
    """Return section 4's network with `blocks` (n) in each of the three stages: 6n + 2 layers."""
    return replace(resnet.cifar(blocks, "A"), final_survival=0.5)


def authors(blocks: int) -> AuthorsResNetConfig:
    """Return the same as the authors' code has it."""
    return AuthorsResNetConfig((blocks,) * 3, final_survival=0.5)


def imagenet(depth: int) -> ResNetConfig:
    """Return ResNet for ImageNet with `depth` layers; the paper's has 152."""
    return replace(resnet.imagenet(depth), final_survival=0.5)


def parse(name: str) -> Blueprint | None:
    """Return what `cifar_resnet{6n+2}_stochastic_depth`, with or without `_authors`, means; None for another name.

    Raises UserError for a depth that the family does not have.
    """
    match = re.fullmatch(r"cifar_resnet([1-9]\d*)_stochastic_depth(_authors)?", name)
    if match is None:
        return None
    depth = int(match[1])
    check_depth(name, depth, step=6)
    blocks, paper = (depth - 2) // 6, "arXiv:1603.09382 section 4"
    if match[2]:
        return Blueprint(AuthorsResNet, authors(blocks), paper=paper, image_size=32, num_classes=10)
    return Blueprint(ResNet, cifar(blocks), paper=paper, image_size=32, num_classes=10)


# fmt: off
VARIANTS: dict[str, Variant] = {
    "cifar_resnet110_stochastic_depth": Variant(ResNet, cifar(18), paper="arXiv:1603.09382 Table 1", image_size=32,
        num_classes=10, parameters=1_727_962, macs=252_887_680, stages=CIFAR_STAGES),
    "cifar_resnet110_stochastic_depth_authors": Variant(AuthorsResNet, authors(18),
        paper="arXiv:1603.09382 (authors' code)", image_size=32, num_classes=10,
        parameters=1_732_010, macs=252_887_680, stages=CIFAR_STAGES),
    "cifar_resnet152_stochastic_depth": Variant(ResNet, cifar(25), paper="arXiv:1603.09382 Table 1", image_size=32,
        num_classes=10, parameters=2_408_474, macs=351_978_112, stages=CIFAR_STAGES),
    "cifar_resnet1202_stochastic_depth": Variant(ResNet, cifar(200), paper="arXiv:1603.09382 section 4", image_size=32,
        num_classes=10, parameters=19_421_274, macs=2_829_238_912, stages=CIFAR_STAGES),
    "resnet152_stochastic_depth": Variant(ResNet, imagenet(152), paper="arXiv:1603.09382 section 4", image_size=224,
        parameters=60_192_808, macs=11_513_626_624, stages=BOTTLENECK_STAGES),
}
# fmt: on
