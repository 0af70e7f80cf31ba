"""`resnext design`: networks of equal complexity."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from resnext.cli.lists import numbers
from resnext.cli.output import Output, note, print_json, print_table
from resnext.cli.progress import Display

if TYPE_CHECKING:
    from resnext.design.budget import Answer, Candidate
    from resnext.design.measuring import Times


@Parameter(name="*")
@dataclass(frozen=True)
class Held:
    """What is given; the first of width, cardinality, depth and image size that is not is solved for."""

    cardinality: str | None = None
    """C, paths of a block: one or several, as 1,2,4,8,32."""
    width: str | None = None
    """d, channels of a path in the first stage; for basic blocks those of the first stage; k of wrn_…"""
    depth: str | None = None
    """Layers: published stage layouts."""
    image_size: str | None = None
    """Sides in pixels."""
    free: Literal["width", "cardinality", "depth", "image-size"] | None = None
    """What to solve for, where it is not the first that is left open."""


@Parameter(name="*")
@dataclass(frozen=True)
class Budget:
    """What networks are to cost."""

    factor: float = 1.0
    """Times what the reference costs. With nothing given, depth, width and cardinality are solved for in turn."""
    macs: int | None = None
    """Multiply-adds of an image, in place of the reference's."""
    parameters: int | None = None
    """Parameters, in place of the reference's."""
    match: Literal["block", "macs", "parameters"] | None = None
    """What is to be equal: a block of the first stage (arXiv:1611.05431 eq. 4; the default), or the whole network."""
    under: Annotated[bool, Parameter(negative="")] = False
    """Nothing above the budget."""


def design(
    *,
    like: str,
    held: Held = Held(),
    budget: Budget = Budget(),
    classes: int | None = None,
    measure: Annotated[bool, Parameter(negative="")] = False,
    picture: Path | None = None,
    output: Output = Output(),
) -> None:
    """Find networks that cost as much as another one, exactly counted, by changing one thing.

    Example: resnext design --like resnet50 --cardinality 1,2,4,8,32

    Parameters
    ----------
    like
        The reference: a ResNet, ResNeXt or wide ResNet.
    classes
        Number of classes; as published where it is not given.
    measure
        Time a training step and inference of each on this machine: equal complexity is not equal time.
    picture
        A file to draw the costs into: .png, .svg or .pdf.
    """
    from resnext.design import budget as designs

    fixed = designs.Fixed(
        cardinality=numbers("cardinality", held.cardinality),
        width=numbers("width", held.width),
        depth=numbers("depth", held.depth),
        image_size=numbers("image-size", held.image_size),
    )
    answer = designs.design(like, fixed=fixed, free=held.free, wish=designs.Wish(**asdict(budget)), num_classes=classes)
    every = [*answer.candidates, *answer.listed]
    times = _times(every) if measure else None
    if picture is not None:
        from resnext.design import chart

        chart.draw(answer, times, picture)
    if output.json:
        print_json([_told(one, None if times is None else times[place]) for place, one in enumerate(every)])
        return
    _print(answer, every, times)
    if picture is not None:
        note(f"The picture is {picture}.")


def _times(every: list[Candidate]) -> list[Times]:
    from resnext.design.measuring import Subject, measure

    with Display() as display:
        return measure([Subject(one.name, one.options, one.image_size) for one in every], display.bar)


def _told(one: Candidate, times: Times | None) -> dict[str, Any]:
    if times is None:
        return one.to_dict()
    milliseconds = {"training_ms": 1e3 * times.step, "inference_ms": 1e3 * times.inference}
    return one.to_dict() | {**milliseconds, "batch_size": times.batch_size}


def _print(answer: Answer, every: list[Candidate], times: list[Times] | None) -> None:
    from resnext.design.chart import label

    grouped = answer.is_grouped
    columns = ["network", *(["C", "d"] if grouped else ["width"]), "depth", "pixels", "block"]
    columns += ["parameters", "multiply-adds", "deviation", "of", "solved for", "listed in"]
    if times is not None:
        columns += ["training ms", "inference ms"]
    rows = []
    for place, one in enumerate(every):
        point, cost = one.point, one.cost
        row = [label(one), *([point.cardinality] if grouped else []), point.width, point.depth, one.image_size]
        row += [f"{cost.block:,}", f"{cost.parameters:,}", f"{cost.macs:,}", f"{100 * one.deviation:+.2f} %"]
        row += [one.match, one.solved or "–", one.paper or "–"]
        if times is not None:
            row += [f"{1e3 * times[place].step:.2f}", f"{1e3 * times[place].inference:.2f}"]
        rows.append(row)
    words = {"block": "parameters a block", "macs": "multiply-adds", "parameters": "parameters"}[answer.match]
    print(f"Like {answer.reference.name}; budget {answer.budget:,.0f} {words}\n")
    left = {columns.index(name) for name in ("network", "of", "solved for", "listed in")}
    print_table(columns, rows, right=[place for place in range(len(columns)) if place not in left])
    if times is not None:
        sizes = " and ".join(str(size) for size in sorted({each.batch_size for each in times}))
        note(f"Milliseconds an image, medians, in batches of {sizes}.")
