"""A study as pictures: SVG that a page holds inside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from resnext import pages
from resnext.design.outcomes import Summary
from resnext.design.study import Plan
from resnext.pages import COLOURS, GREY

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = "osD^vPX"


def against_costs(summaries: Sequence[Summary]) -> str:
    """Draw accuracy against parameters, multiply-adds, time and memory: means with intervals, and every seed."""
    panels = (
        ("parameters, millions", [one.parameters / 1e6 for one in summaries]),
        ("multiply-adds, billions", [one.macs / 1e9 for one in summaries]),
        ("training, ms an image", [1e3 * one.step_seconds for one in summaries]),
        ("peak memory, MiB", [one.peak_memory_mib for one in summaries]),
    )
    figure = pages.figure(10, 3.4)
    axes = figure.subplots(1, len(panels), sharey=True)
    for place, (title, costs) in zip(axes, panels, strict=True):
        for number, (one, cost) in enumerate(zip(summaries, costs, strict=True)):
            colour, marker = style(number)
            mean = one.top1
            error = None if mean.high is None else [[100 * (mean.high - mean.mean)]] * 2
            place.errorbar(
                cost, 100 * mean.mean, yerr=error, color=colour, marker=marker, capsize=3, label=one.candidate
            )
            place.plot(
                [cost] * len(one.results), [100 * each.top1 for each in one.results], ".", color=colour, alpha=0.4
            )
        place.set_xlabel(title)
        place.margins(x=0.2)
        place.grid(alpha=0.25)
    axes[0].set_ylabel("top-1, %")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(4, len(labels)), frameon=False)
    return pages.svg(figure)


def differences(plan: Plan, summaries: Sequence[Summary]) -> str:
    """Draw each candidate's paired differences from the reference: every seed, and the mean with its interval."""
    others = [(number, one) for number, one in enumerate(summaries) if one.difference is not None]
    if not others:
        return ""
    figure = pages.figure(8, 1.3 + 0.5 * len(others))
    axes = figure.subplots()
    reference = {each.seed: each.top1 for each in summaries[0].results}
    for place, (number, one) in enumerate(others):
        assert one.difference is not None
        colour, marker = style(number)
        gaps = [100 * (each.top1 - reference[each.seed]) for each in one.results if each.seed in reference]
        axes.plot(gaps, [place] * len(gaps), ".", color=colour, alpha=0.5, markersize=9)
        mean = one.difference.mean
        error = None if mean.high is None else [[100 * (mean.high - mean.mean)]] * 2
        axes.errorbar(100 * mean.mean, place + 0.18, xerr=error, color=colour, marker=marker, capsize=4)
    axes.axvline(0, color=GREY, linewidth=1)
    axes.set_yticks(range(len(others)), [one.candidate for _, one in others])
    axes.set_ylim(len(others) - 0.4, -0.6)
    axes.set_xlabel(f"points of top-1, less {plan.reference}")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25)
    return pages.svg(figure)


def curves(summaries: Sequence[Summary]) -> str:
    """Draw training loss and validation top-1 by epoch: every seed thin, the mean thick."""
    figure = pages.figure(10, 3.6)
    left, right = figure.subplots(1, 2)
    for number, one in enumerate(summaries):
        _curves(left, one, [each.losses for each in one.results], number)
        _curves(right, one, [[100 * top1 for top1 in each.validations] for each in one.results], number)
    for axes, title in ((left, "training loss"), (right, "validation top-1, %")):
        axes.set(xlabel="epoch", ylabel=title)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(4, len(labels)), frameon=False)
    return pages.svg(figure)


def _curves(axes: Axes, one: Summary, lines: Sequence[Sequence[float]], number: int) -> None:
    colour, marker = style(number)
    length = min(map(len, lines))
    epochs = range(1, length + 1)
    for line in lines:
        axes.plot(epochs, line[:length], color=colour, alpha=0.25, linewidth=0.8)
    mean = [sum(line[place] for line in lines) / len(lines) for place in range(length)]
    axes.plot(epochs, mean, color=colour, linewidth=2, marker=marker, markersize=4, label=one.candidate)


def style(number: int) -> tuple[str, str]:
    """Return the colour and the marker of a candidate."""
    return COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
