"""Networks of equal complexity: what is left open is solved for, so that a network costs what another one does."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from resnext import catalog
from resnext.design import families
from resnext.design.counting import Cost, Counter
from resnext.design.families import Family, Point
from resnext.errors import UserError

Match = Literal["block", "macs", "parameters"]
Free = Literal["width", "cardinality", "depth", "image-size"]
ORDER: tuple[Free, ...] = ("width", "cardinality", "depth", "image-size")
"""The first of these that the caller leaves open is solved for."""

NEAR = 0.1
"""Listed networks are shown whose deviation from the budget is at most this."""

MOST = 1 << 20
"""No width and no cardinality is above it."""


@dataclass(frozen=True)
class Candidate:
    """A network, what it costs, and its `deviation` from the budget, as a share of it, in the measure `match`.

    `solved` is what was solved for, "" for a network that is listed as it is; `paper` says where it is from, if from
    anywhere.
    """

    name: str
    options: dict[str, Any]
    point: Point
    image_size: int
    cost: Cost
    match: Match
    deviation: float
    solved: str = ""
    paper: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the candidate as JSON holds it."""
        return {
            "name": self.name,
            "options": self.options,
            "cardinality": self.point.cardinality,
            "base_width": self.point.width,
            "depth": self.point.depth,
            "image_size": self.image_size,
            "block": self.cost.block,
            "parameters": self.cost.parameters,
            "macs": self.cost.macs,
            "match": self.match,
            "deviation": self.deviation,
            "solved": self.solved,
            "paper": self.paper,
        }


@dataclass(frozen=True)
class Fixed:
    """What the caller holds: several values of one are as many candidates; empty is the reference's, or solved for."""

    cardinality: tuple[int, ...] = ()
    width: tuple[int, ...] = ()
    depth: tuple[int, ...] = ()
    image_size: tuple[int, ...] = ()

    def open(self) -> list[Free]:
        """Return what may be solved for, the first of which is where nothing else is said."""
        return [name for name in ORDER if not getattr(self, name.replace("-", "_"))]


@dataclass(frozen=True)
class Wish:
    """What the candidates are to cost: `factor` times the reference, or an amount of `macs` or `parameters`.

    `match` says in which measure, the block of eq. (4) where it is not given; with `under` no candidate is above.
    """

    factor: float = 1.0
    macs: int | None = None
    parameters: int | None = None
    match: Match | None = None
    under: bool = False


@dataclass(frozen=True)
class Answer:
    """The reference, what is matched, the candidates that were solved for, and listed networks that are near."""

    reference: Candidate
    match: Match
    budget: float
    candidates: tuple[Candidate, ...]
    listed: tuple[Candidate, ...]
    is_grouped: bool
    """Whether cardinality is one of the family's choices."""


def design(
    like: str,
    *,
    fixed: Fixed = Fixed(),
    free: Free | None = None,
    wish: Wish = Wish(),
    num_classes: int | None = None,
) -> Answer:
    """Return networks of a reference's family that cost as much as it does, or what is wished.

    What `fixed` leaves open is the reference's, but for one thing, which is solved for: `free`, or the first that is
    open of width, cardinality, depth and image size. With a budget that is not the reference's own and nothing held,
    width, cardinality and depth are solved for in turn. Costs are exact (arXiv:1611.05431 eq. (4) and Tables 2 to 4
    are what this reproduces). Raises UserError for a network without a family, and for what cannot be solved.
    """
    family, point = families.of(like)
    side = catalog.resolve(like).image_size
    counter = Counter(family, num_classes)
    solver = _Solver(family, counter, point, side, _measure(wish), wish)
    reference = replace(solver.candidate(point, side, solver.match, ""), name=like, options={})
    _check(family, fixed, free)
    several = free is None and fixed == Fixed() and solver.budget != solver.cost(point, side)
    wanted: Sequence[Free] = _kinds(family) if several else [_only(family, fixed, free)]
    found = [one for kind in wanted for one in solver.solve(kind, fixed)]
    unique = list({(one.point, one.image_size): one for one in found}.values())
    listed = tuple(solver.near(unique))
    return Answer(reference, solver.match, solver.budget, tuple(unique), listed, family.is_grouped)


def _measure(wish: Wish) -> Match:
    """Return what is matched; raises UserError where two budgets are given, or one that is none."""
    if wish.macs is not None and wish.parameters is not None:
        raise UserError("There are two budgets, --macs and --parameters. Give one.")
    given: Match | None = "macs" if wish.macs is not None else "parameters" if wish.parameters is not None else None
    if given is not None and wish.match not in (None, given):
        raise UserError(f"The budget is one of {given}, which --match {wish.match} does not measure. Leave one out.")
    if given is not None and wish.factor != 1:
        raise UserError(f"--factor multiplies what the reference costs. Leave it out, or --{given}.")
    if not 0 < wish.factor < float("inf"):
        raise UserError(f"--factor {wish.factor:g} is no share of anything. Give a number above 0.")
    for name, amount in (("macs", wish.macs), ("parameters", wish.parameters)):
        if amount is not None and amount < 1:
            raise UserError(f"--{name} {amount} buys no network. Give 1 or more.")
    return given or wish.match or "block"


def _kinds(family: Family) -> list[Free]:
    """Return what Table 4 of arXiv:1611.05431 changes: depth, width, cardinality."""
    return ["depth", "width", "cardinality"] if family.is_grouped else ["depth", "width"]


def _only(family: Family, fixed: Fixed, free: Free | None) -> Free:
    """Return the one thing to solve for."""
    if free is not None:
        if free not in fixed.open():
            raise UserError(f"--{free} is given, and to be solved for as well. Leave one out.")
        return free
    for name in fixed.open():
        if name != "cardinality" or family.is_grouped:
            return name
    raise UserError("Cardinality, width, depth and image size are all given: nothing is left to solve for.")


def _check(family: Family, fixed: Fixed, free: Free | None) -> None:
    """Raise UserError for values that no network of the family has."""
    if not family.is_grouped and (free == "cardinality" or any(c != 1 for c in fixed.cardinality)):
        raise UserError(
            "Blocks of two layers have no cardinality: C such paths together are one wider dense block\n"
            "(arXiv:1611.05431 Fig. 4). Take a network of bottlenecks, such as resnet50, or leave cardinality out."
        )
    for name, least in (("cardinality", 1), ("width", family.least)):
        for value in getattr(fixed, name):
            if not least <= value <= MOST:
                raise UserError(f"--{name} {value} makes no network. Give {least} or more.")
    for depth in fixed.depth:
        if depth not in family.depths:
            known = ", ".join(map(str, family.depths))
            raise UserError(f"There is no published layout of {depth} layers in this family. Take one of {known}.")
    for side in fixed.image_size:
        if side < family.step or side % family.step:
            raise UserError(f"--image-size {side}: sides here are multiples of {family.step} pixels. Take one.")


class _Solver:
    """Solve for one thing at a time, for a budget."""

    def __init__(
        self, family: Family, counter: Counter, point: Point, image_size: int, match: Match, wish: Wish
    ) -> None:
        self.family, self.counter, self.wish, self.match = family, counter, wish, match
        self.point, self.image_size = point, image_size
        given = wish.macs or wish.parameters
        self.budget: float = given or wish.factor * self.cost(point, image_size)

    def cost(self, point: Point, image_size: int, match: Match | None = None) -> int:
        """Return a point's cost in the measure that is matched."""
        match = match or self.match
        if match == "block":
            return self.family.block(point)
        listed = point in self.counter.rows
        cost = self.counter.count(point, image_size) if listed else self.counter.predict(point, image_size)
        amount: int = getattr(cost, match)
        return amount

    def solve(self, free: Free, fixed: Fixed) -> Iterator[Candidate]:
        """Yield one candidate for each combination of what is held."""
        held = (
            fixed.cardinality or (self.point.cardinality,),
            fixed.width or (self.point.width,),
            fixed.depth or (self.point.depth,),
            fixed.image_size or (self.image_size,),
        )
        if free == "image-size" and self.match == "parameters":
            raise UserError("Parameters do not depend on the image size. Solve for it with --match macs.")
        for cardinality, width, depth, image_size in itertools.product(*held):
            yield self._one(free, Point(depth, width, cardinality), image_size)

    def _one(self, free: Free, point: Point, image_size: int) -> Candidate:
        match = self.measure(None if free in ("depth", "image-size") else point, image_size)
        budget = self.budget_in(match)

        def at(value: int) -> tuple[Point, int]:
            if free == "image-size":
                return point, value
            return replace(point, **{free: value}), image_size

        def cost(value: int) -> int:
            return self.cost(*at(value), match)

        values: Sequence[int] = self.family.depths if free == "depth" else range(1, MOST + 1)
        if free == "width":
            values = range(self.family.least, MOST + 1)
        if free == "image-size":
            values = range(self.family.step, MOST, self.family.step)
        value = nearest(cost, values, budget, under=self.wish.under)
        if value is None:
            raise UserError(
                f"Not even {free} {values[0]} is within {budget:,.0f} {_in_words(match)}. Take a larger budget."
            )
        return self.candidate(*at(value), match, free)

    def measure(self, point: Point | None, image_size: int) -> Match:
        """Return the measure for a point, None where its depth or image size is sought.

        A block says nothing of how many blocks there are, nor of how often it is applied: beside another depth or image
        size than the reference's, multiply-adds are matched in its place.
        """
        alike = point is not None and point.depth == self.point.depth and image_size == self.image_size
        return "macs" if self.match == "block" and not alike else self.match

    def budget_in(self, match: Match) -> float:
        """Return the budget in a measure."""
        if match == self.match:
            return self.budget
        return self.wish.factor * self.cost(self.point, self.image_size, match)

    def candidate(self, point: Point, image_size: int, match: Match, solved: str) -> Candidate:
        """Return a point with its exact costs, counted."""
        row = self.counter.rows.get(point)
        name, options = self.family.build(point) if row is None else (str(row["name"]), {})
        cost = self.counter.count(point, image_size)
        deviation = getattr(cost, match) / self.budget_in(match) - 1
        paper = str(row["paper"]) if row is not None and image_size == self.image_size else ""
        return Candidate(name, options, point, image_size, cost, match, deviation, solved, paper)

    def near(self, solved: Sequence[Candidate]) -> Iterator[Candidate]:
        """Yield listed networks of the family that cost about as much as the budget, but those that were solved for."""
        have = {(one.point, one.image_size) for one in solved}
        for point in self.counter.rows:
            match = self.measure(point, self.image_size)
            deviation = self.cost(point, self.image_size, match) / self.budget_in(match) - 1
            if (point, self.image_size) not in have and abs(deviation) <= NEAR:
                yield self.candidate(point, self.image_size, match, "")


def _in_words(match: Match) -> str:
    return {"block": "parameters a block", "macs": "multiply-adds", "parameters": "parameters"}[match]


def nearest(cost: Callable[[int], int], values: Sequence[int], budget: float, *, under: bool) -> int | None:
    """Return the value whose cost is nearest to a budget, the smaller of two; with `under` the largest within it.

    `cost` rises with the values, which are sorted. None where the first is above and none may be.
    """
    low, high = 0, 1
    while high < len(values) and cost(values[high]) <= budget:
        low, high = high, 2 * high
    high = min(high, len(values))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(values[middle]) <= budget else (low, middle)
    below = values[low]
    if cost(below) > budget:
        return None if under else below
    if under or low + 1 == len(values):
        return below
    above = values[low + 1]
    return above if cost(above) - budget < budget - cost(below) else below
