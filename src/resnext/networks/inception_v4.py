"""Inception-v4: Szegedy, Ioffe, Vanhoucke and Alemi, arXiv:1602.07261 (AAAI 2017), Fig. 9.

"Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning". The residual networks of the
same paper are in `inception_resnet`.

Departures and readings:
- Channels are those of the authors' code (TF-slim), which are the figures'.
- Average pools within the modules do not count the zeros of the padding: TensorFlow's meaning, and timm's.
- The auxiliary classifier, with a loss weight of 0.4, is in the authors' code and not in the paper.
- Dropout keeps 0.8, as printed. Weights start as those of `inception_v3`; the paper does not say.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from resnext.errors import UserError
from resnext.layers import Branches, Network, PooledHead
from resnext.networks.inception_v3 import (
    SMALLEST,
    AuxiliaryHead,
    Conv,
    HeadOptions,
    Reduction,
    draw_weights,
    fan,
    pooled,
    stage,
    tower,
)
from resnext.variant import Blueprint, Variant, check_series


@dataclass(frozen=True)
class InceptionV4Config(HeadOptions):
    """Which Inception-v4.

    `blocks` counts the modules A, B and C, of the stages at 35×35, 17×17 and 8×8. The fields of `HeadOptions` come
    with it.
    """

    blocks: tuple[int, ...] = (4, 7, 3)

    def __post_init__(self) -> None:
        check_blocks(self.blocks)
        self.check_head_options()


def check_blocks(blocks: tuple[int, ...]) -> None:
    """Raise UserError unless `blocks` counts the modules of three stages."""
    check_series(blocks=blocks)
    if not (isinstance(blocks, tuple) and len(blocks) == 3):
        raise UserError(f"blocks={blocks!r} does not fit: this network has three stages. Give three numbers.")


def stem(in_channels: int) -> nn.Sequential:
    """Return what comes before the modules: N×in_channels×299×299 → N×384×35×35 (Fig. 3)."""
    row, column = (1, 7), (7, 1)
    return nn.Sequential(
        Conv(in_channels, 32, 3, stride=2, valid=True),  # N×32×149×149
        Conv(32, 32, 3, valid=True),  # N×32×147×147
        Conv(32, 64, 3),
        Branches(pool=nn.MaxPool2d(3, stride=2), conv=tower(64, (96, 3), halve=True)),  # N×160×73×73
        Branches(
            short=tower(160, (64, 1)).append(Conv(64, 96, 3, valid=True)),
            long=tower(160, (64, 1), (64, row), (64, column)).append(Conv(64, 96, 3, valid=True)),
        ),  # N×192×71×71
        Branches(conv=tower(192, (192, 3), halve=True), pool=nn.MaxPool2d(3, stride=2)),
    )


class InceptionA(Branches):
    """96 | 64-96 | 64-96-96 | average-96: N×384×H×W → the same (Fig. 4)."""

    def __init__(self) -> None:
        super().__init__(
            point=tower(384, (96, 1)),
            short=tower(384, (64, 1), (96, 3)),
            long=tower(384, (64, 1), (96, 3), (96, 3)),
            pool=pooled(384, 96, count_padding=False),
        )


class InceptionB(Branches):
    """384 | 192-224-256 | 192-192-224-224-256 | average-128, with 1×7 and 7×1: N×1024×H×W → the same (Fig. 5)."""

    def __init__(self) -> None:
        row, column = (1, 7), (7, 1)
        super().__init__(
            point=tower(1024, (384, 1)),
            short=tower(1024, (192, 1), (224, row), (256, column)),
            long=tower(1024, (192, 1), (192, column), (224, row), (224, column), (256, row)),
            pool=pooled(1024, 128, count_padding=False),
        )


class InceptionC(Branches):
    """256 | 384-fan | 384-448-512-fan | average-256, with fans of 2·256: N×1536×H×W → the same (Fig. 6)."""

    def __init__(self) -> None:
        super().__init__(
            point=tower(1536, (256, 1)),
            short=tower(1536, (384, 1)).append(fan(384, 256)),
            long=tower(1536, (384, 1), (448, (3, 1)), (512, (1, 3))).append(fan(512, 256)),
            pool=pooled(1536, 256, count_padding=False),
        )


class InceptionV4(Network):
    """Inception-v4; images N×in_channels×H×W → logits N×num_classes; `stage2` has the auxiliary classifier."""

    stride = 32
    smallest = SMALLEST

    def __init__(self, config: InceptionV4Config, *, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        a, b, c = config.blocks
        # Fig. 7 with the k, l, m, n of Table 1, and Fig. 8.
        to_17 = Reduction(384, ((384, 3),), ((192, 1), (224, 3), (256, 3)))
        to_8 = Reduction(1024, ((192, 1), (192, 3)), ((256, 1), (256, (1, 7)), (320, (7, 1)), (320, 3)))
        self.stem = stem(in_channels)
        self.stage1 = stage(*(InceptionA() for _ in range(a)))
        self.stage2 = stage(*(InceptionB() for _ in range(b)), reduction=to_17)
        self.stage3 = stage(*(InceptionC() for _ in range(c)), reduction=to_8)
        self.head = PooledHead(1536, num_classes, dropout=config.dropout)
        if config.auxiliary:
            self.auxiliary = nn.ModuleDict({"stage2": AuxiliaryHead(1024, num_classes)})
            self.auxiliary_weight = config.auxiliary_weight
        draw_weights(self)


def parse(name: str) -> Blueprint | None:
    """Return None: the family has one name, which is listed."""
    return None


# fmt: off
VARIANTS: dict[str, Variant] = {
    "inception_v4": Variant(
        InceptionV4, InceptionV4Config(), paper="arXiv:1602.07261 Fig. 9", image_size=299,
        parameters=42_679_816, training_parameters=46_039_280, macs=12_253_974_624,
        stages=((384, 35, 35), (1024, 17, 17), (1536, 8, 8))),
}
# fmt: on
