"""An evaluation as pictures: SVG that a page holds inside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnext import pages
from resnext.evaluation.calibration import Bin
from resnext.pages import COLOURS, GREY

NUMBERED, DRAWN = 20, 100
"""Up to so many classes a confusion matrix has numbers, and up to so many it is drawn at all."""

BARS = 60
"""So many classes have bars; of more, the weakest half of that and the strongest few."""

LONGEST_NAME = 24


def short(name: str) -> str:
    """Return a class's name as pictures show it."""
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def confusion(matrix: NDArray[np.int64], classes: Sequence[str]) -> str:
    """Draw a confusion matrix, rows the truth, each row's shares as lightness; "" where there are too many classes."""
    count = len(classes)
    if count > DRAWN:
        return ""
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = max(3.6, min(9.5, 1.8 + 0.42 * count))
    drawn = pages.figure(side + 0.8, side)
    axes = drawn.subplots()
    image = axes.imshow(shares, cmap="cividis", vmin=0, vmax=1)
    names = [short(name) for name in classes]
    size = 9 if count <= 30 else max(4, 9 - 0.06 * count)
    axes.set_xticks(range(count), names, rotation=90, fontsize=size)
    axes.set_yticks(range(count), names, fontsize=size)
    axes.set(xlabel="predicted", ylabel="true")
    if count <= NUMBERED:
        for row in range(count):
            for column in range(count):
                if matrix[row, column]:
                    colour = "black" if shares[row, column] > 0.5 else "white"
                    axes.text(column, row, f"{matrix[row, column]}", ha="center", va="center", color=colour, fontsize=8)
    drawn.colorbar(image, ax=axes, shrink=0.7, label="share of the true class")
    return pages.svg(drawn)


def reliability(before: Sequence[Bin], after: Sequence[Bin] | None) -> str:
    """Draw how often answers are right against how sure they are, before and after the temperature."""
    panels = [("as the network says", before), *([("with the temperature", after)] if after else [])]
    drawn = pages.figure(4.2 * len(panels), 3.8)
    every = drawn.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, bins) in zip(every, panels, strict=True):
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
        total = sum(each.images for each in bins)
        for each in bins:
            if each.accuracy is not None:
                width = each.high - each.low
                strong = 0.25 + 0.75 * min(1.0, 8 * each.images / total)
                axes.bar(each.low, each.accuracy, width, align="edge", color=COLOURS[0], alpha=strong)
                axes.plot([each.confidence], [each.accuracy], ".", color=COLOURS[1])
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability of the answer", title=title)
        axes.set_aspect("equal")
        axes.spines[["top", "right"]].set_visible(False)
    every[0].set_ylabel("share of right answers")
    return pages.svg(drawn)


def per_class(table: Mapping[str, Mapping[str, Any]]) -> str:
    """Draw recall and precision of each class, the weakest first."""
    rows = sorted(
        ((name, row) for name, row in table.items() if row["support"]), key=lambda item: (item[1]["recall"], item[0])
    )
    if len(rows) > BARS:
        rows = [*rows[: BARS // 2], *rows[-BARS // 6 :]]
    drawn = pages.figure(8, 1.2 + 0.26 * len(rows))
    axes = drawn.subplots()
    places = np.arange(len(rows))
    recalls, precisions = ([100 * row[what] for _, row in rows] for what in ("recall", "precision"))
    axes.barh(places, recalls, height=0.62, color=COLOURS[0], label="recall: of its images, found")
    axes.plot(precisions, places, "D", color=COLOURS[1], markersize=5, label="precision: of its answers, right")
    axes.set_yticks(places, [f"{short(name)} ({row['support']})" for name, row in rows], fontsize=8)
    axes.set(xlim=(0, 101), ylim=(len(rows) - 0.4, -0.6), xlabel="%")
    axes.spines[["top", "right", "left"]].set_visible(False)
    drawn.legend(loc="outside upper center", ncols=2, frameon=False)
    return pages.svg(drawn)


def census(counts: Mapping[str, Sequence[int]], classes: Sequence[str]) -> str:
    """Draw how many images each class has in each split; of more than 60 classes the largest and the smallest."""
    totals = np.sum([list(each) for each in counts.values()], axis=0)
    order = np.argsort(-totals, kind="stable")
    if len(order) > BARS:
        order = np.concatenate([order[: BARS // 2], order[-BARS // 2 :]])
    drawn = pages.figure(8, 1.2 + 0.22 * len(order))
    axes = drawn.subplots()
    left = np.zeros(len(order))
    for number, (name, each) in enumerate(counts.items()):
        values = np.asarray(each)[order]
        axes.barh(range(len(order)), values, left=left, height=0.7, color=COLOURS[number], label=name)
        left += values
    axes.set_yticks(range(len(order)), [short(classes[index]) for index in order], fontsize=8)
    axes.set(ylim=(len(order) - 0.4, -0.6), xlabel="images")
    axes.spines[["top", "right", "left"]].set_visible(False)
    drawn.legend(loc="outside upper center", ncols=3, frameon=False)
    return pages.svg(drawn)


def curves(epochs: Sequence[Mapping[str, Any]]) -> str:
    """Draw training and validation loss, and validation top-1, by epoch; the best epoch is marked."""
    drawn = pages.figure(9, 3.2)
    left, right = drawn.subplots(1, 2)
    numbers = [each["epoch"] + 1 for each in epochs]
    left.plot(
        numbers, [each["train_loss"] for each in epochs], color=COLOURS[1], marker="s", markersize=3, label="training"
    )
    there = [(number, each["loss"]) for number, each in zip(numbers, epochs, strict=True) if each["loss"] is not None]
    left.plot(*zip(*there, strict=True), color=COLOURS[0], marker="o", markersize=3, label="validation")
    left.set(xlabel="epoch", ylabel="loss")
    left.legend(frameon=False)
    right.plot(numbers, [100 * each["top1"] for each in epochs], color=COLOURS[0], marker="o", markersize=3)
    best = [each for each in epochs if each["best"]]
    if best:
        right.plot(
            [best[-1]["epoch"] + 1], [100 * best[-1]["top1"]], "*", color=COLOURS[1], markersize=13, label="kept"
        )
        right.legend(frameon=False)
    right.set(xlabel="epoch", ylabel="validation top-1, %")
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
    return pages.svg(drawn)
