"""Designs as a picture: what each choice costs, a panel a measure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from resnext.design.budget import Answer, Candidate
from resnext.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from resnext.design.measuring import Times

# Of Okabe and Ito's palette, apart in lightness too.
SOLVED, LISTED, TEXT, LINE = "#0072B2", "#E69F00", "#333333", "#D55E00"
PANEL, BAR, FRAME = 3.2, 0.36, 1.9
"""Inches: the width of a panel, the height of a bar with its gap, and what titles and axes take."""

ROOM = 1.38
"""How much longer than its longest bar an axis is, so that labels fit."""


def label(one: Candidate) -> str:
    """Return how a candidate is called in tables and pictures: its name, and what else makes it."""
    options = ", ".join(f"{name}={_plain(value)}" for name, value in one.options.items())
    return one.name + (f" ({options})" if options else "")


def _plain(value: object) -> str:
    return "-".join(map(str, value)) if isinstance(value, tuple) else str(value)


def draw(answer: Answer, times: Sequence[Times] | None, file: Path) -> None:
    """Write the picture; its format is that of the file's name. `times` are those of all candidates and listed ones.

    Raises UserError where matplotlib is not installed, or knows no such format.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("There is no picture: matplotlib is not installed. pip install 'resnext[report]'") from None
    every = [*answer.candidates, *answer.listed]
    panels: list[tuple[str, list[float], float | None]] = [
        ("parameters, millions", [one.cost.parameters / 1e6 for one in every], answer.reference.cost.parameters / 1e6),
        ("multiply-adds, billions", [one.cost.macs / 1e9 for one in every], answer.reference.cost.macs / 1e9),
    ]
    if times is not None:
        panels += [
            ("training, ms an image", [1e3 * each.step for each in times], None),
            ("inference, ms an image", [1e3 * each.inference for each in times], None),
        ]
    size = (2.2 + PANEL * len(panels), FRAME + BAR * len(every))
    figure = Figure(figsize=size, dpi=150, layout="constrained", facecolor="white")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for place, (title, values, reference) in zip(axes, panels, strict=True):
        _bars(place, title, values, every)
        if reference is not None:
            place.axvline(reference, color=LINE, linewidth=1.2, linestyle="--")
    axes[0].set_yticks(range(len(every)), [label(one) for one in every], color=TEXT)
    axes[0].set_ylim(len(every) - 0.5, -0.5)
    figure.suptitle(
        f"Like {label(answer.reference)} (dashed): solved for in blue, listed networks nearby in orange",
        fontsize=11,
        color=TEXT,
    )
    try:
        figure.savefig(file)
    except ValueError as error:
        raise UserError(f"{file} is no picture that can be written ({error}). Name it .png, .svg or .pdf.") from error


def _bars(axes: Axes, title: str, values: Sequence[float], every: Sequence[Candidate]) -> None:
    colours = [SOLVED if one.solved else LISTED for one in every]
    axes.barh(range(len(values)), values, height=0.7, color=colours)
    for place, value in enumerate(values):
        text = axes.annotate(f"{value:.4g}", (value, place), xytext=(4, 0), textcoords="offset points")
        text.set(va="center", color=TEXT, fontsize=9)
    axes.set_xlim(0, ROOM * max(values))
    axes.set_title(title, fontsize=10, color=TEXT, loc="left")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", color=TEXT, labelcolor=TEXT, labelsize=8)
