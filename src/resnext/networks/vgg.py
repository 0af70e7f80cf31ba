"""VGG: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition".

arXiv:1409.1556. Table 1 gives the columns A, A-LRN, B, C, D and E: 11, 11, 13, 16, 16 and 19 layers.

Departures and readings:
- Plain numbers are the columns that the field means by them: `vgg11` A, `vgg13` B, `vgg16` D, `vgg19` E;
  `vgg11_lrn` is A-LRN and `vgg16_c` is C, whose last convolutions of stages 3, 4 and 5 are 1×1.
- A-LRN normalises after the first convolution's ReLU, with AlexNet's constants. The table shows the layer only;
  its place after the ReLU is AlexNet's, which the paper refers to.
- The paper drew weights from N(0, variance 0.01), so with standard deviation 0.1, and took some layers of the
  deep networks from a trained A. It adds that Glorot's initialisation needs no pre-training: this is the one
  here, Glorot's uniform draw; recipes name the other. Biases start at 0.
- `_bn` has batch norm before every ReLU of a convolution and keeps the convolutions' biases, as torchvision does;
  the paper has none.
- Dropout is inverted, as in AlexNet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from resnext.layers import Drawn, LocalResponseNorm, Network
from resnext.networks.alexnet import FullyConnectedHead
from resnext.variant import Blueprint, Variant, check_choice, check_dropout, check_sizes

Column = Literal["A", "A-LRN", "B", "C", "D", "E"]

# Table 1: the kernel sizes of the convolutions, stage by stage.
KERNELS: dict[str, tuple[tuple[int, ...], ...]] = {
    "A": ((3,), (3,), (3, 3), (3, 3), (3, 3)),
    "A-LRN": ((3,), (3,), (3, 3), (3, 3), (3, 3)),
    "B": ((3, 3), (3, 3), (3, 3), (3, 3), (3, 3)),
    "C": ((3, 3), (3, 3), (3, 3, 1), (3, 3, 1), (3, 3, 1)),
    "D": ((3, 3), (3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
    "E": ((3, 3), (3, 3), (3, 3, 3, 3), (3, 3, 3, 3), (3, 3, 3, 3)),
}
WIDENING = (1, 2, 4, 8, 8)  # the channels of the stages, as multiples of the first one's


@dataclass(frozen=True)
class VGGConfig:
    """Which VGG.

    `column` is that of Table 1; `batch_norm` adds a batch norm after every convolution; `width` is the channels
    of stage 1; `hidden` is the width of the first two fully connected layers, and `dropout` the probability that
    a number out of these is set to zero in training.
    """

    column: Column
    batch_norm: bool = False
    width: int = 64
    hidden: int = 4096
    dropout: float = 0.5

    def __post_init__(self) -> None:
        check_choice("column", self.column, Column)
        check_choice("batch_norm", self.batch_norm, Literal[True, False])
        check_sizes(width=self.width, hidden=self.hidden)
        check_dropout(self.dropout)


class Glorot(Drawn):
    """A layer that starts from Glorot's uniform distribution and zero biases."""

    draw = staticmethod(nn.init.xavier_uniform_)


class Conv2d(Glorot, nn.Conv2d):
    """`nn.Conv2d` that starts from Glorot's uniform distribution."""


class Linear(Glorot, nn.Linear):
    """`nn.Linear` that starts from Glorot's uniform distribution."""


class ConvolutionStage(nn.Sequential):
    """A convolution for each of `kernels`, all with ReLU, and a max-pool.

    N×in_channels×H×W → N×out_channels×⌊H/2⌋×⌊W/2⌋. `batch_norm` stands before every ReLU, `response_norm` after
    the first. Children: conv1, norm1, relu1, lrn1, conv2 …, pool.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernels: tuple[int, ...],
        *,
        batch_norm: bool = False,
        response_norm: bool = False,
    ) -> None:
        super().__init__()
        for number, kernel in enumerate(kernels, 1):
            self.add_module(f"conv{number}", Conv2d(in_channels, out_channels, kernel, padding=kernel // 2))
            if batch_norm:
                self.add_module(f"norm{number}", nn.BatchNorm2d(out_channels))
            self.add_module(f"relu{number}", nn.ReLU(inplace=True))
            if response_norm and number == 1:
                self.lrn1 = LocalResponseNorm()
            in_channels = out_channels
        self.pool = nn.MaxPool2d(2, 2)


class VGG(Network):
    """The network of a config; images N×in_channels×H×W → logits N×num_classes.

    Children: `stage1` … `stage5`, each of which halves H and W, and `head`; there is no stem.
    """

    stride = 32

    def __init__(self, config: VGGConfig, *, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        channels = in_channels
        for number, (kernels, widening) in enumerate(zip(KERNELS[config.column], WIDENING, strict=True), 1):
            out_channels = config.width * widening
            stage = ConvolutionStage(
                channels,
                out_channels,
                kernels,
                batch_norm=config.batch_norm,
                response_norm=config.column == "A-LRN" and number == 1,
            )
            self.add_module(f"stage{number}", stage)
            channels = out_channels
        self.head = FullyConnectedHead(
            channels, num_classes, side=7, hidden=config.hidden, dropout=config.dropout, linear=Linear
        )


def parse(name: str) -> Blueprint | None:
    """Return None: beyond its table, this family has no grammar of names."""
    return None


STAGES = ((64, 112, 112), (128, 56, 56), (256, 28, 28), (512, 14, 14), (512, 7, 7))

# fmt: off
VARIANTS: dict[str, Variant] = {
    "vgg11": Variant(VGG, VGGConfig("A"), paper="arXiv:1409.1556 Table 1 (A)", image_size=224,
        parameters=132_863_336, macs=7_609_090_048, stages=STAGES),
    "vgg11_lrn": Variant(VGG, VGGConfig("A-LRN"), paper="arXiv:1409.1556 Table 1 (A-LRN)", image_size=224,
        parameters=132_863_336, macs=7_609_090_048, stages=STAGES),
    "vgg13": Variant(VGG, VGGConfig("B"), paper="arXiv:1409.1556 Table 1 (B)", image_size=224,
        parameters=133_047_848, macs=11_308_466_176, stages=STAGES),
    "vgg16_c": Variant(VGG, VGGConfig("C"), paper="arXiv:1409.1556 Table 1 (C)", image_size=224,
        parameters=133_638_952, macs=11_770_888_192, stages=STAGES),
    "vgg16": Variant(VGG, VGGConfig("D"), paper="arXiv:1409.1556 Table 1 (D)", image_size=224,
        parameters=138_357_544, macs=15_470_264_320, stages=STAGES),
    "vgg19": Variant(VGG, VGGConfig("E"), paper="arXiv:1409.1556 Table 1 (E)", image_size=224,
        parameters=143_667_240, macs=19_632_062_464, stages=STAGES),
    "vgg11_bn": Variant(VGG, VGGConfig("A", batch_norm=True), paper="arXiv:1409.1556 Table 1 (A + BN)", image_size=224,
        parameters=132_868_840, macs=7_609_090_048, stages=STAGES),
    "vgg13_bn": Variant(VGG, VGGConfig("B", batch_norm=True), paper="arXiv:1409.1556 Table 1 (B + BN)", image_size=224,
        parameters=133_053_736, macs=11_308_466_176, stages=STAGES),
    "vgg16_bn": Variant(VGG, VGGConfig("D", batch_norm=True), paper="arXiv:1409.1556 Table 1 (D + BN)", image_size=224,
        parameters=138_365_992, macs=15_470_264_320, stages=STAGES),
    "vgg19_bn": Variant(VGG, VGGConfig("E", batch_norm=True), paper="arXiv:1409.1556 Table 1 (E + BN)", image_size=224,
        parameters=143_678_248, macs=19_632_062_464, stages=STAGES),
}
# fmt: on
