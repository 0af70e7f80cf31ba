"""The parts of an evaluation's page, in words, tables and pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from resnext.evaluation import calibration, charts, gallery, label_errors
from resnext.evaluation.gallery import Shown

if TYPE_CHECKING:
    from resnext.evaluation.report import Evaluated

MISTAKES, SUSPECTS, UNSURE, CONFUSIONS = 24, 24, 12, 15
FEW = 100
"""Images below which shares are rough, which is said."""


@dataclass(frozen=True)
class Section:
    """A part of the page: its title, and what it has of text, picture, table, images and code."""

    title: str
    text: tuple[str, ...] = ()
    svg: str = ""
    alt: str = ""
    small: bool = False
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    words: int = 1
    """Columns, from the first on, that are words and not numbers."""
    pictures: tuple[Shown, ...] = ()
    code: str = ""
    summary: str = ""


def summary(evaluated: Evaluated) -> list[str]:
    """Say in a few sentences how good the network is, where it fails, and whether its confidence can be trusted."""
    told, scores = evaluated.measures, evaluated.scores
    low, high = told["top1_interval"]
    where = f"95 % interval {low:.1%} to {high:.1%}"
    lines = [
        f"Of {scores.images:,} images ({evaluated.data}) {told['top1']:.1%} are named right ({where})."
        + (f" The true class is among the best five of {told['top5']:.1%}." if told["top5"] is not None else "")
    ]
    confusions = _confusions(evaluated)
    if confusions:
        true, guessed, count, _ = confusions[0]
        lines.append(f"Most often {true} is taken for {guessed} ({count} times).")
    before, after = told["expected_calibration_error_before"], told["expected_calibration_error"]
    if evaluated.temperature != 1:
        lines.append(
            f"A probability is off by {after:.1%} on average, and by {before:.1%} without its temperature of "
            f"{evaluated.temperature:.2f} ({evaluated.temperature_from})."
        )
    else:
        lines.append(f"A probability is off by {after:.1%} on average; it was not calibrated.")
    half = told["coverage"][-1]
    lines.append(f"Of the surest half {half['accuracy']:.1%} are right (probabilities from {half['threshold']:.2f}).")
    if scores.images < FEW:
        lines.append(f"{scores.images} images are few: every share here is rough.")
    if scores.skipped:
        lines.append(f"{len(scores.skipped)} images could not be read and are left out.")
    return lines


def figures_of_merit(evaluated: Evaluated) -> list[tuple[str, str]]:
    """Return the table of figures."""
    told = evaluated.measures

    def between(name: str) -> str:
        edges = told["intervals"][name]
        return "" if edges is None else f" ({edges[0]:.4f} to {edges[1]:.4f})"

    def share(value: float | None) -> str:
        return "–" if value is None else f"{value:.4f}"

    low, high = told["top1_interval"]
    return [
        ("top-1 (Wilson interval)", f"{told['top1']:.4f} ({low:.4f} to {high:.4f})"),
        ("top-1 (bootstrap interval)", f"{told['top1']:.4f}{between('top1')}"),
        *([("top-5", share(told["top5"]))] if told["top5"] is not None else []),
        ("balanced accuracy (bootstrap interval)", share(told["balanced_accuracy"]) + between("balanced_accuracy")),
        ("F1, mean of classes (bootstrap interval)", share(told["macro"]["f1"]) + between("macro_f1")),
        ("precision, recall, mean of classes", f"{told['macro']['precision']:.4f}, {told['macro']['recall']:.4f}"),
        ("F1, by images", share(told["weighted"]["f1"])),
        ("ROC-AUC, one against the rest", share(told["roc_auc"])),
        ("average precision, one against the rest", share(told["average_precision"])),
        ("log loss, Brier score", f"{told['log_loss']:.4f}, {told['brier']:.4f}"),
        ("expected calibration error", f"{told['expected_calibration_error']:.4f}{_without(evaluated)}"),
    ]


def _without(evaluated: Evaluated) -> str:
    if evaluated.temperature == 1:
        return ""
    return f" (without the temperature: {evaluated.measures['expected_calibration_error_before']:.4f})"


def every(evaluated: Evaluated) -> Iterator[Section]:
    """Yield the sections that there is something to say in."""
    scores = evaluated.scores
    if evaluated.slices:
        rows = [
            (s.name, f"{s.images:,}", f"{s.top1:.4f}", f"{s.interval[0]:.4f} to {s.interval[1]:.4f}")
            for s in evaluated.slices
        ]
        yield Section(
            "Slices, the weakest first", columns=("slice", "images", "top-1", "95 % interval"), rows=tuple(rows)
        )
    yield _confusion(evaluated)
    yield Section(
        "Class by class",
        svg=charts.per_class(evaluated.measures["per_class"]),
        alt="Recall and precision of each class, the weakest first; in brackets its images.",
    )
    before = calibration.bins(scores.labels, evaluated.raw)
    after = calibration.bins(scores.labels, evaluated.probabilities) if evaluated.temperature != 1 else None
    yield Section(
        "Can its confidence be trusted?",
        svg=charts.reliability(before, after),
        small=after is None,
        alt="How often answers are right against how sure they are: on the dashed line they are as right as sure. Pale "
        "bars hold few images.",
    )
    yield _coverage(evaluated)
    yield from _galleries(evaluated)
    if evaluated.epochs:
        alt = "Loss and validation top-1 by epoch; the star is the epoch that was kept."
        yield Section("Learning", svg=charts.curves(evaluated.epochs), alt=alt)
    if evaluated.counts:
        yield Section(
            "The images",
            svg=charts.census(evaluated.counts, scores.classes),
            alt="Images of each class, by split.",
        )
    if scores.skipped:
        yield Section("Images that could not be read", columns=("path", "why"), rows=scores.skipped[:50], words=2)
    if evaluated.facts or evaluated.recipe:
        yield Section(
            "How it was made",
            columns=("", ""),
            words=2,
            rows=tuple(evaluated.facts.items()),
            code=evaluated.recipe,
            summary="recipe.toml",
        )


def _confusions(evaluated: Evaluated) -> list[tuple[str, str, int, float]]:
    """Return true class, predicted class, how often, and of what share of the true class, the most frequent first."""
    matrix = np.array(evaluated.measures["confusion"])
    off = matrix.copy()
    np.fill_diagonal(off, 0)
    order = np.argsort(-off, axis=None, kind="stable")[:CONFUSIONS]
    names, totals = evaluated.scores.classes, matrix.sum(axis=1)
    found = []
    for cell in order:
        row, column = divmod(int(cell), len(names))
        if off[row, column]:
            found.append((names[row], names[column], int(off[row, column]), float(off[row, column] / totals[row])))
    return found


def _confusion(evaluated: Evaluated) -> Section:
    rows = tuple((true, guess, f"{count}", f"{share:.1%}") for true, guess, count, share in _confusions(evaluated))
    svg = charts.confusion(np.array(evaluated.measures["confusion"]), evaluated.scores.classes)
    return Section(
        "What is taken for what",
        text=()
        if svg
        else (f"{len(evaluated.scores.classes)} classes are too many to draw: the most frequent confusions.",),
        svg=svg,
        alt="Rows are the true classes, columns what they were taken for; the diagonal is right.",
        small=len(evaluated.scores.classes) <= 6,
        columns=("true", "taken for", "times", "of the class"),
        rows=rows,
        words=2,
    )


def _coverage(evaluated: Evaluated) -> Section:
    rows = tuple(
        (f"{each['coverage']:.0%}", f"{each['accuracy']:.4f}", f"{each['threshold']:.4f}")
        for each in evaluated.measures["coverage"]
    )
    return Section(
        "Answering only when sure",
        text=("The surest images are answered, the others left to a person.",),
        columns=("answered", "right", "probability from"),
        rows=rows,
    )


def _galleries(evaluated: Evaluated) -> Iterator[Section]:
    scores, shares = evaluated.scores, evaluated.probabilities
    best = shares[np.arange(scores.images), scores.predicted]
    wrong = np.flatnonzero(scores.place != 0)
    rows = wrong[np.argsort(-best[wrong], kind="stable")][:MISTAKES]
    if len(rows):
        yield Section(
            "The most confident mistakes",
            text=("As the network sees them, and where they speak for what they were taken for (Grad-CAM).",),
            pictures=tuple(_pictures(evaluated, rows, scores.predicted, heat=True)),
        )
    found = label_errors.suspects(scores.labels, shares)[:SUSPECTS]
    if found:
        rather = scores.labels.copy()
        rather[[each.row for each in found]] = [each.rather for each in found]
        yield Section(
            "Labels that may be wrong",
            text=("By confident learning: the network is surer of another class than it usually is of that one.",),
            pictures=tuple(_pictures(evaluated, np.array([each.row for each in found]), rather, heat=False)),
        )
    unsure = np.argsort(best, kind="stable")[:UNSURE]
    yield Section(
        "What it is least sure of", pictures=tuple(_pictures(evaluated, unsure, scores.predicted, heat=False))
    )


def _pictures(evaluated: Evaluated, rows: NDArray[Any], targets: NDArray[Any], *, heat: bool) -> list[Shown]:
    scores, shares = evaluated.scores, evaluated.probabilities

    def words(place: int) -> tuple[str, ...]:
        row = int(rows[place])
        said, true = int(targets[row]), int(scores.labels[row])
        name = scores.paths[row].rpartition("/")[2]
        return (
            f"{scores.classes[said]} {shares[row, said]:.1%}",
            f"labelled {scores.classes[true]} {shares[row, true]:.1%}",
            name,
        )

    return gallery.show(
        [scores.paths[int(row)] for row in rows],
        evaluated.preprocessing,
        words,
        network=evaluated.network if heat else None,
        targets=[int(targets[int(row)]) for row in rows],
    )
