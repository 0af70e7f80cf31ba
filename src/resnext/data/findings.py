"""What is wrong with a data set, in words: each finding says what it is, why it matters and what to do.

An *error* is certainly wrong: training will fail on it, or its figures will not be what they seem. A *warning* probably
harms, and needs a look. A *note* is good to know.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from resnext.data.copies import Copies
from resnext.data.fingerprints import Fingerprints
from resnext.data.images import suffixes
from resnext.data.listing import Listing

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

SMALL = 32
"""Pixels of the shorter side below which an image among larger ones is small, …"""

SMALL_SHARE = 0.5
"""… if it has less than this share of the median's, as data sets of small images are what they are."""

ODD_ASPECT = 3.0
"""Longer through shorter side; the centre square that a network sees is then a third of the image, or less."""

LARGE = 2000
"""Pixels of the median shorter side above which decoding takes most of the time of an epoch."""


@dataclass(frozen=True)
class Finding:
    """One thing found, about `count` images (or what `what` counts).

    `examples` are sets of paths, all of them: one path each, or copies of each other; `reasons`, where there are
    any, say something of each.
    """

    code: str
    severity: Severity
    what: str
    why: str
    remedy: str
    count: int
    examples: Sequence[Sequence[str]] = ()
    reasons: Sequence[str] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as JSON has it."""
        told: dict[str, Any] = {name: getattr(self, name) for name in ("code", "severity", "what", "why", "remedy")}
        told["count"] = self.count
        if self.reasons:
            pairs = zip(self.examples, self.reasons, strict=True)
            told["files"] = [{"path": paths[0], "reason": reason} for paths, reason in pairs]
        elif all(len(paths) == 1 for paths in self.examples):
            told["files"] = [paths[0] for paths in self.examples]
        else:
            told["sets"] = [list(paths) for paths in self.examples]
        return told


@dataclass(frozen=True)
class Evidence:
    """What is known of a data set: its listing, and labels (indices into `classes`), fingerprints and copies by row."""

    data: str
    listing: Listing
    classes: tuple[str, ...]
    labels: npt.NDArray[np.int32]
    prints: Fingerprints
    copies: Copies
    splits: npt.NDArray[np.str_] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "splits", np.array(self.listing.splits, dtype=np.str_))

    def paths(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> list[list[str]]:
        """Return each of the rows' paths, as examples."""
        return [[self.listing.paths[row]] for row in rows]

    def counts(self, split: str | None = None) -> npt.NDArray[np.int64]:
        """Return how many files each class has, in a split or in all."""
        labels = self.labels if split is None else self.labels[self.splits == split]
        return np.bincount(labels, minlength=len(self.classes))

    def usable(self, split: str) -> npt.NDArray[np.int64]:
        """Return how many images each class has in a split that can be read."""
        return np.bincount(self.labels[(self.splits == split) & self.prints.readable], minlength=len(self.classes))


def unreadable(evidence: Evidence) -> Iterator[Finding]:
    """Find files that no image can be read from."""
    rows = np.flatnonzero(~evidence.prints.readable)
    if len(rows):
        share = len(rows) / len(evidence.labels)
        yield Finding(
            "unreadable",
            "error",
            f"{len(rows):,} of {len(evidence.labels):,} files cannot be read as an image ({share:.2%})",
            "They are missing from training and evaluation, and above max_unreadable (a share of 0.01) a run stops.",
            "Replace them by good copies, or remove them.",
            len(rows),
            evidence.paths(rows),
            [evidence.prints.said(row) for row in rows.tolist()],
        )


def sizes(evidence: Evidence) -> Iterator[Finding]:
    """Find images that are small, odd in shape, or very large."""
    rows = np.flatnonzero(evidence.prints.readable)
    if not len(rows):
        return
    width, height = (evidence.prints.rows[side][rows].astype(np.int64) for side in ("width", "height"))
    shorter, longer = np.minimum(width, height), np.maximum(width, height)
    median = float(np.median(shorter))
    small = rows[(shorter < SMALL) & (shorter < SMALL_SHARE * median)]
    if len(small):
        yield Finding(
            "small",
            "warning",
            f"{len(small):,} images have a side below {SMALL} pixels, where the median is {median:.0f}",
            "Enlarged to the size of the others they are blurred; often they are icons or previews saved by mistake.",
            "Look at them, and remove those that show too little.",
            len(small),
            evidence.paths(small),
            [f"{w} × {h}" for w, h in zip(width[np.isin(rows, small)], height[np.isin(rows, small)], strict=True)],
        )
    odd = longer > ODD_ASPECT * shorter
    if odd.any():
        yield Finding(
            "aspect",
            "note",
            f"{odd.sum():,} images are more than {ODD_ASPECT:g} times as long as wide",
            "The network sees the square in the centre: a third of such an image, or less.",
            "Crop them to what matters, if that lies elsewhere.",
            int(odd.sum()),
            evidence.paths(rows[odd]),
            [f"{w} × {h}" for w, h in zip(width[odd], height[odd], strict=True)],
        )
    if median > LARGE:
        yield Finding(
            "large",
            "note",
            f"Half of the images are larger than {median:.0f} pixels on the shorter side",
            "Decoding them takes longer than training a small network does, whenever they are not cached.",
            "Keep the originals, and train on copies of 512 pixels or so on the shorter side.",
            int((shorter > LARGE).sum()),
        )


_KINDS: dict[str, tuple[Severity, str, str, str]] = {
    "16 bit": ("warning", "have 16 bits a channel", "The lower 8 bits are dropped, and with them faint differences.",
               "If what matters is in a part of the range, stretch that to 8 bits beforehand."),
    "transparent": ("note", "have transparent parts", "Those are laid over white, which may be no background of yours.",
                    "Lay them over a background that the other images have."),
    "CMYK": ("note", "are in CMYK, made for printing", "Their colours come out a little different from those of RGB.",
             "Convert them to RGB with their colour profile."),
}  # fmt: skip


def kinds(evidence: Evidence) -> Iterator[Finding]:
    """Find kinds of pixels that lose something in reading, mixtures of grey and colour, and misleading suffixes."""
    prints, readable = evidence.prints, evidence.prints.readable
    numbers = prints.rows["words"]
    for part, (severity, does, why, remedy) in _KINDS.items():
        of_kind = [number for number, words in enumerate(prints.words) if part in words]
        rows = np.flatnonzero(readable & np.isin(numbers, of_kind))
        if len(rows):
            code = part.replace(" ", "-").lower()
            yield Finding(code, severity, f"{len(rows):,} images {does}", why, remedy, len(rows), evidence.paths(rows))
    of_grey = [number for number, words in enumerate(prints.words) if " grey" in words]
    grey = readable & np.isin(numbers, of_grey)
    fewer = grey if grey.sum() * 2 <= readable.sum() else readable & ~grey
    if fewer.any():
        rows = np.flatnonzero(fewer)
        what = "grey among images in colour" if fewer is grey else "in colour among grey ones"
        yield Finding(
            "mixed-channels",
            "note",
            f"{len(rows):,} images are {what}",
            "All are read as RGB. If one class has more of them than others, the network learns that instead.",
            "Compare the classes, or train with channels = 1.",
            len(rows),
            evidence.paths(rows),
        )
    yield from _suffixes(evidence)


def _suffixes(evidence: Evidence) -> Iterator[Finding]:
    named = np.array([Path(path).suffix.lower() for path in evidence.listing.paths])
    formats = np.array([words.partition(" ")[0] for words in evidence.prints.words] or [""])[
        evidence.prints.rows["words"]
    ]
    wrong = evidence.prints.readable.copy()
    for form in np.unique(formats):
        wrong[(formats == form) & np.isin(named, list(suffixes(str(form))))] = False
    if wrong.any():
        rows = np.flatnonzero(wrong)
        yield Finding(
            "suffix",
            "note",
            f"{len(rows):,} files are of another format than their name says",
            "They are read all the same, here; other tools may refuse them.",
            "Rename them.",
            len(rows),
            evidence.paths(rows),
            [f"is {formats[row]}" for row in rows],
        )


def passed_over(evidence: Evidence) -> Iterator[Finding]:
    """Find what lies among the images and is not taken for one."""
    for reason, paths in (evidence.listing.ignored_paths or {}).items():
        lost = reason in ("outside a class folder", "beside the splits", "not a file")
        yield Finding(
            f"ignored-{reason.replace(' ', '-')}",
            "warning" if lost and reason != "beside the splits" else "note",
            f"{len(paths):,} passed over: {reason}",
            "They are no part of the data set." if not lost else "If images were meant, these are missing.",
            _WHERE.get(reason, "Nothing, if that is right."),
            len(paths),
            [[path] for path in paths],
        )
    for note in evidence.listing.notes:
        yield Finding("listing", "note", note, "It may be a mistake in a name.", "Nothing, if that is right.", 1)


_WHERE = {
    "outside a class folder": "Put each image in the folder of its class.",
    "beside the splits": "The splits are called train, val and test; rename a folder that is meant as one.",
    "not a file": "Mend links that lead nowhere, and replace pipes and devices by files.",
    "repeated row": "Remove the rows that are there twice.",
}
