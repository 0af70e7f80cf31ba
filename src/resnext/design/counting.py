"""What points of a family cost, to the last parameter and multiply-add.

Counts are those of `complexity.py`, and for listed networks those of the catalogue, which are the same. With depth and
image size held, they are a quadratic in the width, and with groups one in C·d and C·d²: a convolution within the blocks
has as many weights as the product of what it reads and puts out, divided by its groups. Three counts thus give all
others, so that a solver may ask for any.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from resnext.design.families import Family, Point


@dataclass(frozen=True)
class Cost:
    """Parameters of inference and multiply-adds of one image; `block` as in `Family.block`."""

    parameters: int
    macs: int
    block: int


@dataclass(frozen=True)
class Counter:
    """Count points of a family for a number of classes (None: the published one)."""

    family: Family
    num_classes: int | None = None

    @cached_property
    def rows(self) -> dict[Point, dict[str, object]]:
        """The listed networks of the family."""
        return dict(self.family.listed())

    def count(self, point: Point, image_size: int) -> Cost:
        """Return what a point costs, as it is listed, or by building it without contents."""
        row = self.rows.get(point)
        if row is not None and self.num_classes is None and image_size == row["image_size"]:
            return Cost(int(str(row["parameters"])), int(str(row["macs"])), self.family.block(point))
        name, options = self.family.build(point)
        parameters, macs = _counted(name, tuple(sorted(options.items())), self.num_classes, image_size)
        return Cost(parameters, macs, self.family.block(point))

    def predict(self, point: Point, image_size: int) -> Cost:
        """Return what `count` would, from three counts of the depth."""
        if point.width == self.family.unlike:
            return self.count(point, image_size)
        first = self.family.unlike + 1
        counts = [self.count(Point(point.depth, width), image_size) for width in range(first, first + 3)]
        linear, square = point.cardinality * point.width, point.cardinality * point.width**2
        parameters, macs = (
            _quadratic(first, [getattr(each, what) for each in counts], linear, square)
            for what in ("parameters", "macs")
        )
        return Cost(parameters, macs, self.family.block(point))


def _quadratic(first: int, values: list[int], linear: int, square: int) -> int:
    """Return a + b·linear + c·square, where a + bw + cw² has these values at first, first + 1 and first + 2."""
    twice_c = values[2] - 2 * values[1] + values[0]
    assert twice_c % 2 == 0, values
    c = twice_c // 2
    b = values[1] - values[0] - c * (2 * first + 1)
    a = values[0] - b * first - c * first**2
    return a + b * linear + c * square


@cache
def _counted(
    name: str, options: tuple[tuple[str, Any], ...], num_classes: int | None, image_size: int
) -> tuple[int, int]:
    from resnext import complexity  # torch, which listed networks do without

    told = complexity.describe(name, image_size=image_size, num_classes=num_classes, **dict(options))
    return told["parameters"], told["macs"]
