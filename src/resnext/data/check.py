"""The data doctor: read a data set as training and evaluation do, all of it, and say what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from resnext.data import balance, findings, leaks, shortcuts
from resnext.data.copies import find
from resnext.data.copies import known as known_copies
from resnext.data.findings import SEVERITIES, Evidence, Finding
from resnext.data.fingerprints import fingerprints, known
from resnext.data.listing import list_images, natural_key
from resnext.data.manifest import SPLITS, Manifest, Progress, as_paths, located, nothing_found
from resnext.errors import UserError

AT_ONCE = 50_000
"""Images among which near copies are found within seconds."""


@dataclass(frozen=True)
class Report:
    """What was found: images by split, and by class and split; sizes in pixels; kinds of files; findings, worst first.

    `sizes` has minimum, median and maximum of "width" and "height"; `kinds` counts "JPEG RGB" and the like.
    """

    data: str
    splits: dict[str, int]
    classes: dict[str, dict[str, int]]
    sizes: dict[str, tuple[float, float, float]]
    kinds: dict[str, int]
    findings: tuple[Finding, ...]

    def count(self, severity: str) -> int:
        """Return how many findings are of a severity."""
        return sum(finding.severity == severity for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON has it, with all paths."""
        names = ("min", "median", "max")
        return {
            "data": self.data,
            "images": sum(self.splits.values()),
            "splits": self.splits,
            "classes": self.classes,
            "sizes": {side: dict(zip(names, of_side, strict=True)) for side, of_side in self.sizes.items()},
            "kinds": self.kinds,
            **{f"{severity}s": self.count(severity) for severity in SEVERITIES},
            "findings": [finding.to_dict() for finding in self.findings],
        }


def check(data: str | Path, *, progress: Progress | None = None, note: Callable[[str], None] | None = None) -> Report:
    """Look at every image of DATA, in all of its splits, and report what is wrong.

    What was read of a file is kept in the user's cache, and is read again only when size or modification time differ.
    `progress` is called with what is being done, how much is done and of how much. Raises `UserError` for DATA that is
    missing, cannot be listed or holds no images.
    """
    evidence = _gathered(data, progress or (lambda name, done, total: None), note)
    found = [
        *findings.unreadable(evidence),
        *leaks.copies(evidence),
        *balance.classes(evidence),
        *findings.sizes(evidence),
        *findings.kinds(evidence),
        *shortcuts.shortcuts(evidence),
        *findings.passed_over(evidence),
    ]
    found.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    present = [split for split in SPLITS if (evidence.splits == split).any()]
    counts = {split: evidence.counts(split).tolist() for split in present}
    return Report(
        str(data),
        {split: sum(counts[split]) for split in present},
        {name: {split: counts[split][row] for split in present} for row, name in enumerate(evidence.classes)},
        _sizes(evidence),
        _kinds(evidence),
        tuple(found),
    )


def brief(manifest: Manifest, *, balanced: bool = False) -> list[str]:
    """Say in a line each what hurts a training run most: uneven or tiny classes, and copies of train in val.

    Nothing is read: copies are told of where all files are known already, near ones where finding them takes seconds.
    Where the run is `balanced`, by weights or sampling, uneven classes are no news.
    """
    train = manifest.split("train")
    counts = np.bincount(train.labels, minlength=len(manifest.classes))
    uneven = None if balanced else balance.imbalance(manifest.classes, counts)
    found = [finding for finding in (uneven, balance.tiny(manifest.classes, counts)) if finding]
    notes = [f"{finding.what}. {finding.remedy}" for finding in found]
    if not any(note.startswith("validation:") for note in manifest.notes):  # else the cut kept copies together
        notes += _leaks_into_validation(manifest)
    return notes


def _leaks_into_validation(manifest: Manifest) -> list[str]:
    table = manifest.table
    sizes, mtimes_ns = (table[column].to_numpy() for column in ("size", "mtime_ns"))
    prints = known(manifest.root, table["path"].combine_chunks(), sizes, mtimes_ns)
    copies = None if prints is None else known_copies(prints, at_once=AT_ONCE)
    if copies is None:
        return []
    splits = np.array(table["split"].to_pylist())
    leaked = {row for rows in copies.together() if len(set(splits[rows])) > 1 for row in rows if splits[row] == "val"}
    if not leaked:
        return []
    return [
        f"Leak: {len(leaked):,} of {(splits == 'val').sum():,} validation images have a copy in train, exact or near, "
        "so validation flatters. `resnext check` names them."
    ]


def _gathered(data: str | Path, progress: Progress, note: Callable[[str], None] | None) -> Evidence:
    listing = list_images(located(data), "check")
    if not listing.paths:
        raise UserError(nothing_found(data, listing.ignored))
    names = tuple(sorted(set(listing.names), key=natural_key))
    index = {name: number for number, name in enumerate(names)}
    labels = np.fromiter((index[name] for name in listing.names), np.int32, len(listing.names))
    prints = fingerprints(
        listing.root,
        as_paths(listing.paths),
        np.array(listing.sizes, np.int64),
        np.array(listing.mtimes_ns, np.int64),
        progress=lambda done, total: progress("reading images", done, total),
        note=note,
    )
    copies = find(prints, lambda done, total: progress("looking for copies", done, total))
    return Evidence(str(data), listing, names, labels, prints, copies)


def _sizes(evidence: Evidence) -> dict[str, tuple[float, float, float]]:
    rows = evidence.prints.rows[evidence.prints.readable]
    if not len(rows):
        return {}
    return {
        side: (float(rows[side].min()), float(np.median(rows[side])), float(rows[side].max()))
        for side in ("width", "height")
    }


def _kinds(evidence: Evidence) -> dict[str, int]:
    numbers = evidence.prints.rows["words"][evidence.prints.readable]
    counts = np.bincount(numbers, minlength=len(evidence.prints.words))
    order = sorted(np.flatnonzero(counts).tolist(), key=lambda number: -counts[number])
    return {evidence.prints.words[number]: int(counts[number]) for number in order}
