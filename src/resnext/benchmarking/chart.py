"""A race as a picture: one bar a contender, one panel a precision."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from resnext import machine
from resnext.benchmarking.contenders import OURS, PRECISIONS
from resnext.benchmarking.figures import Figures, ratio
from resnext.benchmarking.race import Race
from resnext.benchmarking.report import ours, rate, times
from resnext.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Two colours of Okabe and Ito's palette, which differ in lightness as well, and dark enough grey for text.
OUR_COLOUR, PEER_COLOUR, TEXT = "#0072B2", "#E69F00", "#333333"
WIDTH, BAR, FRAME = 9.0, 0.37, 1.5
"""Inches: the picture's width, the height of a bar with its gap, and what title and axis take."""

GAP = 0.9
"""Bars that the title of a panel takes."""

AXIS = (
    "images a second: median; whiskers from the slowest round to the fastest\n"
    "in brackets: how many times as fast ours is"
)
ROOM = 1.3
"""How much longer than its longest bar the axis is, so that labels fit."""


def draw(race: Race, file: Path) -> None:
    """Write a bar chart of images a second as a PNG; whiskers reach from the slowest round to the fastest.

    Raises UserError where matplotlib is not installed, and where no contender ran.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("There is no chart: matplotlib is not installed. pip install 'resnext[report]'") from None
    panels = [panel for precision in PRECISIONS if (panel := _panel(race, precision))]
    fastest = max((one.spread[1] for panel in panels for one in panel if not one.failure), default=0)
    if not fastest:
        raise UserError("There is no chart: no contender ran.")
    counts = [len(panel) + GAP for panel in panels]
    figure = Figure(figsize=(WIDTH, FRAME + BAR * sum(counts)), dpi=150, layout="constrained", facecolor="white")
    every = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=counts)[:, 0]
    for axes, panel in zip(every, panels, strict=True):
        _bars(race, axes, panel)
        axes.spines["bottom"].set_visible(axes is every[-1])
        axes.tick_params(axis="x", length=4 if axes is every[-1] else 0, color=TEXT, labelcolor=TEXT)
    every[0].set_xlim(0, ROOM * fastest)
    every[-1].set_xlabel(AXIS, color=TEXT)
    figure.suptitle(_title(race, [panel[0].contender.precision for panel in panels]), fontsize=12, color=TEXT)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)  # type: ignore[union-attr, call-arg]
    figure.savefig(file)


def _title(race: Race, precisions: list[str]) -> str:
    about, threads = machine.description(), race.plan.threads or machine.cores()
    return (
        f"{race.network} at {race.image_size} px in {', '.join(precisions)}\n"
        f"{about['processor']}, {threads} thread{'s' if threads > 1 else ''}"
    )


def _panel(race: Race, precision: str) -> list[Figures]:
    """Return who takes part in a precision, the fastest first, and last those that did not run."""
    here = [one for one in race.figures if one.contender.precision == precision]
    return sorted(here, key=lambda one: 0 if one.failure else -one.rate)


def _bars(race: Race, axes: Axes, panel: list[Figures]) -> None:
    precision = panel[0].contender.precision
    for place, one in enumerate(panel):
        mine, end = one.contender.peer == OURS, 0.0
        if not one.failure:
            low, end = one.spread
            axes.barh(place, one.rate, height=0.74, color=OUR_COLOUR if mine else PEER_COLOUR)
            whiskers = ([one.rate - low], [end - one.rate])
            axes.errorbar(one.rate, place, xerr=whiskers, fmt="none", ecolor=TEXT, elinewidth=1, capsize=3)
        label = axes.annotate(_label(race, one), (end, place), xytext=(7, 0), textcoords="offset points")
        label.set(va="center", color=TEXT, weight="bold" if mine else "normal")
    names = [one.contender.name.replace(f" {precision}", "") for one in panel]
    axes.set_yticks(range(len(panel)), names, color=TEXT)
    for tick, one in zip(axes.get_yticklabels(), panel, strict=True):
        tick.set(weight="bold" if one.contender.peer == OURS else "normal")
    axes.set_ylim(len(panel) - 0.5, -0.5)
    axes.set_title(precision, loc="left", fontsize=11, weight="bold", color=TEXT)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _label(race: Race, one: Figures) -> str:
    """Return what stands behind a bar."""
    if one.failure:
        return "did not run"
    factor = None if one.contender.peer == OURS else ratio(ours(race, one.contender.precision), one)
    label = rate(one.rate) + (f"   (ours: {times(factor)})" if factor else "")
    return label if one.same_function else f"{label}   computes something else"
