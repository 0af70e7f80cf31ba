"""GoogLeNet: Szegedy et al., "Going Deeper with Convolutions", arXiv:1409.4842.

Table 1 gives the layers: 22 with parameters, 27 with pools. Section 5 gives the auxiliary classifiers.

Departures and readings:
- Table 1's first row (2.7K weights, 34M operations) fits only a 7×7 convolution that is depthwise (8 filters a
  colour) and then 1×1; the text and every replica have a full one (9.4K, 118M), and so has this. The weights that the
  table prints for 4a to 5b are 1 to 7 % off those of its own widths; they make 7.0 million in all.
- Local response normalisation stands where the Caffe replica has it (after the first pool, before the second), as in
  Fig. 3. The paper gives no constants for it; these are AlexNet's, which the paper refers to (Caffe's: k = 1, α/n).
- Max-pools that halve the map round up, as in the Caffe replica: 112, 56, 28, 14, 7.
- The paper does not say how weights start. Here, as in the Caffe replica: uniform in ±√(3/fan-in), which is Glorot's
  distribution as Caffe has it, without the fan-out; biases 0.2, so that rectifiers start out open and gradients pass
  through all 22 layers, and 0 in classifiers.
- Auxiliary classifiers were made for maps of 14×14; maps of other sizes are brought to it.
- Dropout is inverted, as in AlexNet.
- `googlenet_bn` has batch norm in place of biases and of local response normalisation, as in the networks of
  arXiv:1502.03167. Its convolutions, and those of the next, start from He's normal distribution.
- `googlenet_torchvision` is what torchvision calls googlenet, after TF-slim's inception_v1: 3×3 for 5×5 (a slip, kept
  since the released weights have it), batch norm with ε = 0.001, a last max-pool of 2×2, dropout 0.2, and auxiliary
  classifiers that pool any map to 4×4.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

from torch import nn

from resnext.errors import UserError
from resnext.layers import Branches, ConvNorm, LocalResponseNorm, Network, PooledHead, PublishedSize
from resnext.variant import Blueprint, Variant, check_choice, check_dropout, check_positive

Convolution = Callable[..., nn.Module]  # (in_channels, out_channels, kernel_size, *, stride=1), ends in ReLU
LargeKernel = Literal["5x5", "3x3"]
LastPool = Literal["3x3", "2x2"]
AuxiliaryPool = Literal["5x5", "4x4"]


class Widths(NamedTuple):
    """The channels of an Inception module's convolutions: a row of Table 1."""

    single: int
    reduce3: int
    conv3: int
    reduce5: int
    conv5: int
    project: int

    @property
    def out(self) -> int:
        """The channels that the module puts out."""
        return self.single + self.conv3 + self.conv5 + self.project


# Table 1, by stage.
MODULES: tuple[dict[str, Widths], ...] = (
    {
        "3a": Widths(64, 96, 128, 16, 32, 32),
        "3b": Widths(128, 128, 192, 32, 96, 64),
    },
    {
        "4a": Widths(192, 96, 208, 16, 48, 64),
        "4b": Widths(160, 112, 224, 24, 64, 64),
        "4c": Widths(128, 128, 256, 24, 64, 64),
        "4d": Widths(112, 144, 288, 32, 64, 64),
        "4e": Widths(256, 160, 320, 32, 128, 128),
    },
    {
        "5a": Widths(256, 160, 320, 32, 128, 128),
        "5b": Widths(384, 192, 384, 48, 128, 128),
    },
)


@dataclass(frozen=True, kw_only=True)
class GoogLeNetConfig:
    """Which GoogLeNet.

    `batch_norm` takes the place of biases and of local response normalisation, with `epsilon` in its square root;
    `large_kernel` is that of the modules' third branch; `last_pool` is the max-pool before 5a; `dropout` is the
    probability that a number before the classifier is set to zero in training. `auxiliary` says whether there
    are auxiliary classifiers, which serve in training alone; `auxiliary_pool` is their average pool (5×5 with
    stride 3, or any map to 4×4), `auxiliary_dropout` their dropout, and `auxiliary_weight` what the loss of each
    counts.
    """

    batch_norm: bool = False
    epsilon: float = 1e-5
    large_kernel: LargeKernel = "5x5"
    last_pool: LastPool = "3x3"
    dropout: float = 0.4
    auxiliary: bool = True
    auxiliary_pool: AuxiliaryPool = "5x5"
    auxiliary_dropout: float = 0.7
    auxiliary_weight: float = 0.3

    def __post_init__(self) -> None:
        check_choice("batch_norm", self.batch_norm, Literal[True, False])
        check_choice("large_kernel", self.large_kernel, LargeKernel)
        check_choice("last_pool", self.last_pool, LastPool)
        check_choice("auxiliary", self.auxiliary, Literal[True, False])
        check_choice("auxiliary_pool", self.auxiliary_pool, AuxiliaryPool)
        check_dropout(self.dropout)
        check_dropout(self.auxiliary_dropout)
        check_positive(epsilon=self.epsilon, auxiliary_weight=self.auxiliary_weight)


class ConvRelu(nn.Sequential):
    """Convolution with a bias, and ReLU: N×C×H×W → N×out_channels×⌈H/stride⌉×⌈W/stride⌉; `kernel_size` is odd.

    Children: `conv`, `relu`.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2)
        self.relu = nn.ReLU(inplace=True)


def halving_pool(kernel_size: int = 3) -> nn.MaxPool2d:
    """Return a max-pool with stride 2 that rounds up, and so halves even sides: N×C×H×W → N×C×H/2×W/2."""
    return nn.MaxPool2d(kernel_size, stride=2, ceil_mode=True)


class Stem(nn.Sequential):
    """What comes before module 3a: N×in_channels×H×W → N×192×H/8×W/8. `first` makes 64 channels and strides by 2."""

    def __init__(self, first: nn.Module, conv: Convolution, *, response_norm: bool) -> None:
        super().__init__()
        self.conv1 = first
        self.pool1 = halving_pool()
        if response_norm:
            self.norm1 = LocalResponseNorm()
        self.reduce = conv(64, 64, 1)
        self.conv2 = conv(64, 192, 3)
        if response_norm:
            self.norm2 = LocalResponseNorm()
        self.pool2 = halving_pool()


class Inception(Branches):
    """1×1, 3×3, 5×5 and max-pool side by side, with 1×1 before or after them (Fig. 2b): N×C×H×W → N×widths.out×H×W."""

    def __init__(self, in_channels: int, widths: Widths, *, conv: Convolution, large_kernel: LargeKernel) -> None:
        super().__init__(
            branch1x1=conv(in_channels, widths.single, 1),
            branch3x3=nn.Sequential(
                OrderedDict(
                    reduce=conv(in_channels, widths.reduce3, 1),
                    spatial=conv(widths.reduce3, widths.conv3, 3),
                )
            ),
            branch5x5=nn.Sequential(
                OrderedDict(
                    reduce=conv(in_channels, widths.reduce5, 1),
                    spatial=conv(widths.reduce5, widths.conv5, 5 if large_kernel == "5x5" else 3),
                )
            ),
            branch_pool=nn.Sequential(
                OrderedDict(
                    pool=nn.MaxPool2d(3, stride=1, padding=1),
                    project=conv(in_channels, widths.project, 1),
                )
            ),
        )


class AuxiliaryHead(nn.Sequential):
    """A classifier of an inner map (section 5): N×C×14×14 → logits N×K.

    Average pool to 4×4, 1×1 convolution to 128 channels, 1024 hidden units, dropout, linear layer.
    """

    def __init__(
        self, in_channels: int, num_classes: int, *, conv: Convolution, pool: AuxiliaryPool, dropout: float
    ) -> None:
        super().__init__()
        published = nn.Sequential(PublishedSize(14), nn.AvgPool2d(5, stride=3))
        self.pool = published if pool == "5x5" else PublishedSize(4)
        self.reduce = conv(in_channels, 128, 1)
        self.flatten = nn.Flatten()
        self.hidden = nn.Linear(4 * 4 * 128, 1024)
        self.relu = nn.ReLU(inplace=True)
        if dropout:
            self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(1024, num_classes)


class GoogLeNet(Network):
    """The network of a config; images N×in_channels×H×W → logits N×num_classes.

    Children: `stem`, `stage1` (modules 3a, 3b), `stage2` (max-pool, 4a … 4e), `stage3` (max-pool, 5a, 5b), `head`;
    auxiliary classifiers behind 4a and 4d.
    """

    stride = 32

    def __init__(self, config: GoogLeNetConfig, *, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        conv: Convolution = partial(ConvNorm, epsilon=config.epsilon) if config.batch_norm else ConvRelu
        inception = partial(Inception, conv=conv, large_kernel=config.large_kernel)
        last_pool = 3 if config.last_pool == "3x3" else 2
        self.stem = Stem(conv(in_channels, 64, 7, stride=2), conv, response_norm=not config.batch_norm)
        channels = 192
        for number, (modules, pool) in enumerate(zip(MODULES, (None, 3, last_pool), strict=True), 1):
            stage = nn.Sequential(OrderedDict(() if pool is None else {"pool": halving_pool(pool)}))
            for name, widths in modules.items():
                stage.add_module(f"inception{name}", inception(channels, widths))
                channels = widths.out
            self.add_module(f"stage{number}", stage)
        self.head = PooledHead(channels, num_classes, dropout=config.dropout)
        if config.auxiliary:
            self.auxiliary_weight = config.auxiliary_weight
            head = partial(AuxiliaryHead, conv=conv, pool=config.auxiliary_pool, dropout=config.auxiliary_dropout)
            self.auxiliary = nn.ModuleDict(
                {f"stage2_inception{name}": head(MODULES[1][name].out, num_classes) for name in ("4a", "4d")}
            )
        if not config.batch_norm:
            start_as_caffe(self.named_modules())


def start_as_caffe(modules: Iterable[tuple[str, nn.Module]]) -> None:
    """Draw the weights of convolutions and linear layers uniformly in ±√(3/fan-in); biases 0.2, classifiers' 0."""
    for name, layer in modules:
        if isinstance(layer, nn.Conv2d | nn.Linear) and not layer.weight.is_meta:  # as in layers.Conv2d
            assert layer.bias is not None
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="linear")
            nn.init.constant_(layer.bias, 0.0 if name.endswith(".fc") else 0.2)


def parse(name: str) -> Blueprint | None:
    """Return None: beyond its table, this family has no grammar of names.

    Raises UserError for "inception_v1", another name of GoogLeNet, which does not say which.
    """
    if name == "inception_v1":
        raise UserError(
            "There is no 'inception_v1': it is another name of GoogLeNet, and used for several networks.\n"
            "Take 'googlenet' (the paper's), 'googlenet_bn' or 'googlenet_torchvision' (close to TF-slim's)."
        )
    return None


TORCHVISION = GoogLeNetConfig(
    batch_norm=True, epsilon=1e-3, large_kernel="3x3", last_pool="2x2", dropout=0.2, auxiliary_pool="4x4"
)
STAGES = ((480, 28, 28), (832, 14, 14), (1024, 7, 7))

# fmt: off
VARIANTS: dict[str, Variant] = {
    "googlenet": Variant(GoogLeNet, GoogLeNetConfig(), paper="arXiv:1409.4842 Table 1", image_size=224,
        parameters=6_998_552, training_parameters=13_378_280, macs=1_582_671_872, stages=STAGES),
    "googlenet_bn": Variant(GoogLeNet, GoogLeNetConfig(batch_norm=True), paper="arXiv:1409.4842 Table 1 (with BN)",
        image_size=224, parameters=7_005_832, training_parameters=13_385_816, macs=1_582_671_872, stages=STAGES),
    "googlenet_torchvision": Variant(GoogLeNet, TORCHVISION, paper="arXiv:1409.4842 (torchvision's)", image_size=224,
        parameters=6_624_904, training_parameters=13_004_888, macs=1_498_376_192, stages=STAGES),
}
# fmt: on
