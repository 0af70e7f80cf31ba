"""Copies and groups where they do harm: on two sides of a split, under two labels, or many times in one class."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from resnext.data.findings import Evidence, Finding, Severity

Sets = Sequence[npt.NDArray[np.int64]]


def copies(evidence: Evidence) -> Iterator[Finding]:
    """Find leaks, conflicting labels and repetitions among exact and near copies."""
    near = [rows for rows in evidence.copies.near if len(rows) > 1]
    yield from _leaks(evidence, evidence.copies.exact, "exact")
    yield from _leaks(evidence, near, "near")
    yield from _conflicts(evidence, evidence.copies.exact, "exact")
    yield from _conflicts(evidence, near, "near")
    yield from _repeated(evidence, evidence.copies.exact, "exact")
    yield from _repeated(evidence, near, "near")
    yield from _groups(evidence)


def leaking(evidence: Evidence, sets: Sets, split: str) -> tuple[list[npt.NDArray[np.int64]], int]:
    """Return the sets with rows in train and in `split`, and how many rows of `split` they have."""
    found, count = [], 0
    for rows in sets:
        there = evidence.splits[rows]
        if (there == "train").any() and (there == split).any():
            found.append(rows[(there == "train") | (there == split)])
            count += int((there == split).sum())
    return found, count


def _leaks(evidence: Evidence, sets: Sets, how: str) -> Iterator[Finding]:
    for split in ("val", "test"):
        found, count = leaking(evidence, sets, split)
        if not found:
            continue
        total = int((evidence.splits == split).sum())
        severity: Severity = "error" if how == "exact" else "warning"
        copy = "an exact copy" if how == "exact" else "a near copy (re-encoded, resized, brighter or cropped)"
        yield Finding(
            f"leak-{how}-{split}",
            severity,
            f"Leak: {count:,} of {total:,} images of {split} ({count / total:.2%}) have {copy} in train",
            f"{'They' if how == 'exact' else 'Those that show the same'} were seen in training, so what is measured on "
            f"{split} is better than the truth.",
            "Remove these images from train, or from both." if how == "exact" else "Look at the pairs, and remove "
            "those from train that show the same.",
            count,
            _paths(evidence, found),
        )  # fmt: skip


def _conflicts(evidence: Evidence, sets: Sets, how: str) -> Iterator[Finding]:
    found = [rows for rows in sets if (evidence.labels[rows] != evidence.labels[rows[0]]).any()]
    if found:
        count = sum(map(len, found))
        of = "exact" if how == "exact" else "near"
        yield Finding(
            f"conflict-{how}",
            "error" if how == "exact" else "warning",
            f"Label conflict: {count:,} images in {len(found):,} sets of {of} copies have different labels",
            "At most one of the labels is right, unless an image may have several; the others teach what is wrong.",
            "Decide on a label for each set, and remove the copies under the others.",
            count,
            _paths(evidence, found),
        )


def _repeated(evidence: Evidence, sets: Sets, how: str) -> Iterator[Finding]:
    """Find copies within each split; copies that are leaks are told as such."""
    by_split: dict[str, list[npt.NDArray[np.int64]]] = defaultdict(list)
    for rows in sets:
        there = evidence.splits[rows]
        if (there == there[0]).all():
            by_split[str(there[0])].append(rows)
    for split, found in sorted(by_split.items()):
        count = sum(map(len, found)) - len(found)
        yield Finding(
            f"duplicates-{how}-{split}",
            "warning",
            f"{count:,} images of {split} are {how} copies of others there ({len(found):,} sets)",
            "What is there twice counts twice. (Training keeps copies on one side where it cuts a validation split.)",
            "Keep one of each set, unless it is meant." if how == "exact" else "Look at the sets, and keep one of "
            "those that show the same.",
            count,
            _paths(evidence, found),
        )  # fmt: skip


def _groups(evidence: Evidence) -> Iterator[Finding]:
    """Find groups of a CSV file that are not on one side."""
    members: dict[str, list[int]] = defaultdict(list)
    for row, group in enumerate(evidence.listing.groups):
        if group is not None:
            members[group].append(row)
    sets = [np.array(rows) for rows in members.values()]
    for split in ("val", "test"):
        found, count = leaking(evidence, sets, split)
        if found:
            yield Finding(
                f"leak-group-{split}",
                "error",
                f"Leak: {count:,} images of {split} are of {len(found):,} groups that train has images of, too",
                f"A group belongs on one side; what is measured on {split} is better than the truth.",
                "Move each group as a whole, or leave the split column out: the cut then keeps groups together.",
                count,
                _paths(evidence, found),
            )


def _paths(evidence: Evidence, sets: Sets) -> list[list[str]]:
    return [[evidence.listing.paths[row] for row in rows.tolist()] for rows in sets]
