"""Which images are copies of each other: exact ones by digest, near ones by thumbnail; what was found is kept.

Near copies are looked for among the different contents in the order of their digests, so that what is found depends
on the contents alone, not on names, folders or an earlier search.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from resnext import durable
from resnext.data import duplicates, remembered
from resnext.data.fingerprints import LAYOUT, UNOPENED, Fingerprints

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Copies:
    """Sets of two or more rows, each sorted, by their first rows.

    Those in `exact` have files with the same bytes. In `near`, not all files of a set are equal, and each is a copy,
    exact or near, of another one in the set.
    """

    exact: list[Ints]
    near: list[Ints]

    def together(self) -> list[list[int]]:
        """Return all sets, those of exact copies too."""
        return [rows.tolist() for rows in (*self.exact, *self.near)]


def find(prints: Fingerprints, progress: Callable[[int, int], None] | None = None) -> Copies:
    """Return the copies among files. `progress` is called with the images compared and to compare."""
    contents = _Contents(prints)
    pairs = contents.known_pairs()
    if pairs is None:
        rows = contents.firsts
        pairs = duplicates.near(prints.rows["grey"][rows], prints.rows["colour"][rows], progress)
        contents.keep(pairs)
    return contents.copies(pairs)


def known(prints: Fingerprints, *, at_once: int) -> Copies | None:
    """Return the copies where that takes no time: the search is remembered, or is among `at_once` images at most."""
    contents = _Contents(prints)
    if len(contents.firsts) <= at_once:
        return find(prints)
    pairs = contents.known_pairs()
    return None if pairs is None else contents.copies(pairs)


class _Contents:
    """The different contents of files."""

    def __init__(self, prints: Fingerprints) -> None:
        rows = np.flatnonzero((prints.rows["state"] != UNOPENED) & (prints.rows["size"] > 0))
        digests = prints.rows["digest"][rows]
        order = np.lexsort((rows, digests[:, 1], digests[:, 0]))
        rows, digests = rows[order], digests[order]
        starts = np.flatnonzero(np.r_[True, (digests[1:] != digests[:-1]).any(axis=1)][: len(rows)])
        self._rows, self._bounds = rows, np.append(starts, len(rows))
        readable = prints.readable[rows[starts]]
        self._of_image = np.flatnonzero(readable)  # which of the contents are images
        self.firsts: Ints = rows[starts][readable]
        self._digests = digests[starts][readable]

    def _files(self, content: int) -> Ints:
        """Return the rows of the files of one content."""
        return self._rows[self._bounds[content] : self._bounds[content + 1]]

    def _path(self) -> Path:
        key = hashlib.sha256(f"{LAYOUT}, search {duplicates.VERSION}".encode())
        key.update(np.ascontiguousarray(self._digests).tobytes())
        return durable.cache_directory() / "copies" / f"{key.hexdigest()[:32]}.npy"

    def known_pairs(self) -> Ints | None:
        content = remembered.read(self._path())
        with contextlib.suppress(ValueError, EOFError):
            if content is not None:
                pairs: Ints = np.load(io.BytesIO(content), allow_pickle=False)
                highest = pairs.max(initial=0)
                if pairs.dtype == np.int64 and pairs.ndim == 2 and highest < max(1, len(self.firsts)):
                    return pairs
        return None

    def keep(self, pairs: Ints) -> None:
        file = io.BytesIO()
        np.save(file, pairs, allow_pickle=False)
        remembered.write(self._path(), file.getvalue())

    def copies(self, pairs: Ints) -> Copies:
        """Return the sets of rows, from the pairs of different images that are near copies."""
        exact = [self._files(content) for content in np.flatnonzero(np.diff(self._bounds) > 1).tolist()]
        near = [np.sort(np.concatenate([self._files(self._of_image[i]) for i in one])) for one in joined(pairs)]
        return Copies(_by_first_row(exact), _by_first_row(near))


def joined(pairs: Ints) -> list[list[int]]:
    """Return the sets of two or more numbers that pairs link, directly or through others."""
    parent: dict[int, int] = {}

    def root(number: int) -> int:
        parent.setdefault(number, number)
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    for one, other in pairs.tolist():
        parent[root(other)] = root(one)
    sets: dict[int, list[int]] = {}
    for number in sorted(parent):
        sets.setdefault(root(number), []).append(number)
    return list(sets.values())


def _by_first_row(sets: Iterable[Ints]) -> list[Ints]:
    ordered: Sequence[Ints] = sorted(sets, key=lambda rows: int(rows[0]))
    return list(ordered)
