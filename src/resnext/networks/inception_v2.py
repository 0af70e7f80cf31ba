"""Inception-v2 of arXiv:1512.00567 Table 1 (Szegedy et al., "Rethinking the Inception Architecture").

Not the network of the batch-norm paper, which others call Inception-v2 (`bn_inception` here), and not
`inception_v3`, which is coded otherwise: no 1×1-80 and no pool at the end of the stem.

Printed: the stem's convolutions, and the size before every row (35×35×288, 17×17×768, 8×8×1280, 8×8×2048).
The modules' widths stood in a file that came with the paper's source.

Departures and readings:
- Each row's modules bring its printed size to the next row's, so the reductions are counted among the 3 and the
  5: two modules of Fig. 5 and a reduction, four of Fig. 6 (n = 7) and a reduction, two of Fig. 7. The widths are
  those of `inception_v3`, whose sums are the printed sizes; its 5×5 is the figure's 3×3.
- With this reading it costs 5.58 G multiply-adds, 3.5 times `googlenet`, and has 24.0 M parameters and 46 layers
  on the longest path. The paper says about 2.5 times, fewer than 25 M, and 42 layers; it counts 3.8 G while
  the stem has a 7×7, 4.8 G with the 3×3 of Table 1 (Table 3), and 4.8 G for Inception-v3, which as coded
  is 5.71 G. Reductions beside the 3 and the 5 would make it 6.35 G, 26.0 M and 54 layers, further off in all.
- The auxiliary classifier has batch norm behind its 1×1 only: the paper adds the second with Inception-v3
  ("BN-auxiliary"). Its loss weight, dropout, pools and first weights, of which the paper says nothing, are as for
  `inception_v3`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from resnext.layers import Network, PooledHead
from resnext.networks.inception_v3 import (
    SMALLEST,
    AuxiliaryHead,
    Conv,
    HeadOptions,
    InceptionA,
    InceptionC,
    InceptionE,
    draw_weights,
    reduction_to_8,
    reduction_to_17,
    stage,
)
from resnext.variant import Blueprint, Variant


@dataclass(frozen=True)
class InceptionV2Config(HeadOptions):
    """Which Inception-v2: it has the fields of `HeadOptions`, and one size."""

    def __post_init__(self) -> None:
        self.check_head_options()


def stem(in_channels: int) -> nn.Sequential:
    """Return what comes before the modules: N×in_channels×299×299 → N×288×35×35."""
    return nn.Sequential(
        Conv(in_channels, 32, 3, stride=2, valid=True),  # N×32×149×149
        Conv(32, 32, 3, valid=True),  # N×32×147×147
        Conv(32, 64, 3),
        nn.MaxPool2d(3, stride=2),  # N×64×73×73
        Conv(64, 80, 3, valid=True),  # N×80×71×71
        Conv(80, 192, 3, stride=2, valid=True),  # N×192×35×35
        Conv(192, 288, 3),
    )


class InceptionV2(Network):
    """Inception-v2; images N×in_channels×H×W → logits N×num_classes; `stage2` has the auxiliary classifier."""

    stride = 32
    smallest = SMALLEST

    def __init__(self, config: InceptionV2Config, *, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = stem(in_channels)
        self.stage1 = stage(InceptionA(288, pool=64, kernel=3), InceptionA(288, pool=64, kernel=3))
        wider = [InceptionC(width=width) for width in (128, 160, 160, 192)]
        self.stage2 = stage(*wider, reduction=reduction_to_17())
        self.stage3 = stage(InceptionE(1280), InceptionE(2048), reduction=reduction_to_8())
        self.head = PooledHead(2048, num_classes, dropout=config.dropout)
        if config.auxiliary:
            self.auxiliary = nn.ModuleDict({"stage2": AuxiliaryHead(768, num_classes, normalised=False)})
            self.auxiliary_weight = config.auxiliary_weight
        draw_weights(self)


def parse(name: str) -> Blueprint | None:
    """Return None: the family has one name, which is listed."""
    return None


# fmt: off
VARIANTS: dict[str, Variant] = {
    "inception_v2": Variant(
        InceptionV2, InceptionV2Config(), paper="arXiv:1512.00567 Table 1", image_size=299,
        parameters=24_027_240, training_parameters=27_353_168, macs=5_576_975_456,
        stages=((288, 35, 35), (768, 17, 17), (2048, 8, 8))),
}
# fmt: on
