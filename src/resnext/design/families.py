"""Families of residual networks as points: a depth, a width, a cardinality.

What a width is depends on the family: d, the channels of each of C paths in the first stage of bottlenecks
(arXiv:1611.05431 section 3.1); the channels of the first stage of basic blocks; k of wide ResNets for CIFAR.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from resnext import catalog
from resnext.errors import UserError


@dataclass(frozen=True)
class Point:
    """One network of a family."""

    depth: int
    width: int
    cardinality: int = 1


@dataclass(frozen=True)
class Family:
    """Networks that differ in depth, width and cardinality alone.

    `name` is how a point is called, with its fields and `times`, its width as a multiple of the plain one; `patterns`
    are all names that the family has, with groups of these words. `depths` are the published stage layouts. `stage` is
    what the first stage puts out, 0 for basic blocks. Sides of images are multiples of `step` pixels.
    """

    title: str
    name: str
    patterns: tuple[str, ...]
    depths: tuple[int, ...]
    plain: Point
    step: int
    stage: int = 0
    width_option: str = ""
    """The option that widens a network where its name does not."""
    layouts: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """The blocks of each stage for depths that names do not have."""
    unit: int = 1
    """Channels of the first stage's 3×3 convolutions for each unit of width."""
    least: int = 1
    """The least width that has a name."""
    unlike: int = 0
    """The width at which the first stage needs no projection, so that costs leave their formula; 0 where none is."""

    @property
    def is_grouped(self) -> bool:
        """Whether blocks have three layers; paths of two are together one wider block (arXiv:1611.05431 Fig. 4)."""
        return self.stage > 0

    def parse(self, name: str) -> Point | None:
        """Return the point that a name means, or None where it is not of this family."""
        for pattern in self.patterns:
            if match := re.fullmatch(pattern, name):
                told = match.groupdict()
                width = told.get("width") or self.plain.width * float(told.get("times") or 1)
                return Point(int(told["depth"]), int(width), int(told.get("cardinality") or 1))
        return None

    def build(self, point: Point) -> tuple[str, dict[str, Any]]:
        """Return the catalogue's name for a point, and the options that it needs besides."""
        options: dict[str, Any] = {}
        depth = point.depth
        if depth in self.layouts:
            options["blocks"] = self.layouts[depth]
            depth = max(set(self.depths) - self.layouts.keys())
        if self.width_option and point.width != self.plain.width:
            options[self.width_option] = point.width
        times = f"{point.width / self.plain.width:.6f}".rstrip("0").rstrip(".")
        return self.name.format(depth=depth, width=point.width, cardinality=point.cardinality, times=times), options

    def block(self, point: Point) -> int:
        """Return the parameters of a block of the first stage that keeps the shape, without batch norm.

        Of bottlenecks it is C(256d + 9d² + 256d), arXiv:1611.05431 eq. (4), with 256 for what the stage puts out; of
        basic blocks it is two 3×3 convolutions.
        """
        width = point.width * self.unit
        if not self.is_grouped:
            return 2 * 9 * width * width
        return point.cardinality * (self.stage * width + 9 * width * width + width * self.stage)

    def listed(self) -> Iterator[tuple[Point, dict[str, object]]]:
        """Yield the listed networks of this family, each point once, with their rows of the catalogue.

        Of several names for one point, such as resnet50 and resnext50_1x64d, it is the one that `build` gives.
        """
        rows: dict[Point, dict[str, object]] = {}
        for row in catalog.rows():
            point = self.parse(str(row["name"]))
            if point is not None and (point not in rows or self.build(point)[0] == row["name"]):
                rows[point] = row
        yield from rows.items()


_DEPTH, _WIDTH, _TIMES = r"(?P<depth>\d+)", r"(?P<width>\d+)", r"(?P<times>\d+(?:\.\d+)?)"
_PATHS = rf"(?P<cardinality>\d+)x{_WIDTH}d"


def _cifar_basic(before: str, behind: str = "") -> Family:
    return Family(
        title=f"{before}{{6n+2}}{behind}",
        name=f"{before}{{depth}}{behind}",
        patterns=(f"{before}{_DEPTH}{behind}",),
        depths=tuple(6 * n + 2 for n in (*range(1, 10), 18, 25, 200)),
        plain=Point(20, 16),
        step=4,
        width_option="width",
    )


FAMILIES = (
    Family(
        title="resnext{50|101|152}_{C}x{d}d with resnet{50|101|152|200}",
        name="resnext{depth}_{cardinality}x{width}d",
        patterns=(
            rf"resnext{_DEPTH}_{_PATHS}",
            r"resnet(?P<depth>50|101|152|200)",
            rf"wide_resnet(?P<depth>50|101)_{_TIMES}",
        ),
        depths=(50, 101, 152, 200),
        plain=Point(50, 64),
        step=32,
        stage=256,
        layouts={200: (3, 24, 36, 3)},
    ),
    Family(
        title="cifar_resnext{9n+2}_{C}x{d}d",
        name="cifar_resnext{depth}_{cardinality}x{width}d",
        patterns=(rf"cifar_resnext{_DEPTH}_{_PATHS}",),
        depths=tuple(9 * n + 2 for n in range(1, 19)),
        plain=Point(29, 64),
        step=4,
        stage=256,
    ),
    Family(
        title="wide_resnet{18|34}_{k} with resnet{18|34}",
        name="wide_resnet{depth}_{times}",
        patterns=(rf"wide_resnet(?P<depth>18|34)_{_TIMES}", r"resnet(?P<depth>18|34)"),
        depths=(18, 34),
        plain=Point(18, 64),
        step=32,
        least=64,
        unlike=64,
    ),
    Family(
        title="wrn_{6n+4}_{k}",
        name="wrn_{depth}_{width}",
        patterns=(rf"wrn_{_DEPTH}_{_WIDTH}",),
        depths=tuple(6 * n + 4 for n in (*range(1, 9), 25)),
        plain=Point(28, 1),
        step=4,
        unit=16,
        unlike=1,
    ),
    _cifar_basic("cifar_resnet"),
    _cifar_basic("cifar_resnet", "_b"),
    _cifar_basic("cifar_plain"),
)


def of(name: str) -> tuple[Family, Point]:
    """Return the family of a network, and the point that it is there.

    Raises UserError for a name that means no network, and for a network that is of none of these families.
    """
    catalog.resolve(name)
    for family in FAMILIES:
        if (point := family.parse(name)) is not None:
            return family, point
    known = ", ".join(family.title for family in FAMILIES)
    raise UserError(f"{name} is of no family whose width, depth and cardinality can be solved for.\nThere are {known}.")
