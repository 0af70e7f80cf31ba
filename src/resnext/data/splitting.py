"""Cut a validation split, or K folds, out of labelled images: stratified, repeatable, copies kept together.

Images that must lie on one side form a *unit*: exact and near copies, and images of one group. Units go in
the order of a hash of (seed, group or path), so adding an image leaves the order of the others as it was.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

HEAD = 4096
"""Bytes of a file that are compared first; files that differ nearly always differ here."""

READERS = 16
"""Threads that read files: on a slow disk the waiting overlaps, on a fast one they cost nothing."""


@dataclass(frozen=True, slots=True)
class Unit:
    """Rows that stay on one side, and how many of them are of each class."""

    rows: tuple[int, ...]
    classes: Mapping[int, int]


def units(
    labels: npt.NDArray[np.int32],
    paths: Sequence[str],
    groups: Sequence[str | None],
    copies: Iterable[Sequence[int]],
    seed: int,
) -> list[Unit]:
    """Return the units of all rows in the order drawn by `seed`; `copies` are sets of rows of copies."""
    groups_rows: dict[str, list[int]] = defaultdict(list)
    for row, group in enumerate(groups):
        if group is not None:
            groups_rows[group].append(row)
    unit_of = _joined(len(paths), [*copies, *groups_rows.values()])
    draws = np.fromiter(map(partial(_draw, seed), paths, groups), np.uint64, len(paths))
    smallest = draws.copy()  # of each unit, at the row that stands for it
    np.minimum.at(smallest, unit_of, draws)
    order = np.lexsort((unit_of, smallest[unit_of]))
    starts = np.flatnonzero(np.diff(unit_of[order], prepend=-1)).tolist()
    rows, names = order.tolist(), labels[order].tolist()
    alone = {name: {name: 1} for name in set(names)}  # one dict a class, not one an image
    return [
        Unit(tuple(rows[a:b]), alone[names[a]] if b == a + 1 else Counter(names[a:b]))
        for a, b in pairwise([*starts, len(rows)])
    ]


def _draw(seed: int, path: str, group: str | None) -> int:
    """Return 64 bits that look random and depend on nothing but the arguments."""
    name = f"{seed}\0path\0{path}" if group is None else f"{seed}\0group\0{group}"
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def _joined(count: int, sets: Iterable[Sequence[int]]) -> npt.NDArray[np.int64]:
    """Return for each row the one that stands for all that are linked to it, directly or through others."""
    parent = list(range(count))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]  # so that chains stay short
            row = parent[row]
        return row

    for rows in sets:
        for row in rows[1:]:
            parent[root(row)] = root(rows[0])
    return np.fromiter(map(root, range(count)), np.int64, count)


def cut(units: Sequence[Unit], validation: float) -> npt.NDArray[np.bool_]:
    """Return for each row whether it is for validation.

    Each class gives the share `validation` of its images, as nearly as whole units allow, and at least one
    unit; but never its last one, so a class of a single unit is not validated.
    """
    images, left = _totals(units)
    wanted = {c: max(1, round(validation * images[c])) if left[c] > 1 else 0 for c in images}
    given: Counter[int] = Counter()
    chosen, rest = [], []

    def take(unit: Unit) -> None:
        chosen.append(unit)
        given.update(unit.classes)
        left.subtract(unit.classes.keys())

    for unit in units:
        error_after = sum(abs(given[c] + n - wanted[c]) for c, n in unit.classes.items())
        error_before = sum(abs(given[c] - wanted[c]) for c in unit.classes)
        if error_after <= error_before and _is_spared(unit, left):
            take(unit)
        else:
            rest.append(unit)
    for unit in sorted(rest, key=lambda unit: len(unit.rows)):  # for classes whose units were all too large
        if any(wanted[c] and not given[c] for c in unit.classes) and _is_spared(unit, left):
            take(unit)
    return _mask(chosen, sum(images.values()))


def folds(units: Sequence[Unit], k: int) -> list[npt.NDArray[np.bool_]]:
    """Return for each of `k` folds which rows are for validation; a row is so at most once.

    Units go, the largest first, to the fold that has least of their classes, and the units of one class not
    all to the same fold where that can be helped. A class of a single unit is never validated.
    """
    images, left = _totals(units)
    single = {c for c in left if left[c] == 1}
    given: list[Counter[int]] = [Counter() for _ in range(k)]
    places: dict[int, set[int]] = defaultdict(set)
    chosen: list[list[Unit]] = [[] for _ in range(k)]
    for unit in sorted(units, key=lambda unit: -len(unit.rows)):
        if single & unit.classes.keys():
            continue

        def cost(fold: int, unit: Unit = unit) -> tuple[int, float, int]:
            emptied = sum(left[c] == 1 and places[c] <= {fold} for c in unit.classes)
            crowd = sum(n * given[fold][c] / images[c] for c, n in unit.classes.items())
            return emptied, crowd, given[fold].total()

        fold = min(range(k), key=cost)
        chosen[fold].append(unit)
        given[fold].update(unit.classes)
        left.subtract(unit.classes.keys())
        for c in unit.classes:
            places[c].add(fold)
    return [_mask(fold_units, sum(images.values())) for fold_units in chosen]


def _totals(units: Sequence[Unit]) -> tuple[Counter[int], Counter[int]]:
    """Return how many images and how many units each class has."""
    images: Counter[int] = Counter()
    counts: Counter[int] = Counter()
    for unit in units:
        for c, n in unit.classes.items():
            images[c] += n
            counts[c] += 1
    return images, counts


def _is_spared(unit: Unit, left: Counter[int]) -> bool:
    """Say whether every class of a unit keeps another one in training."""
    return all(left[c] > 1 for c in unit.classes)


def _mask(units: Sequence[Unit], count: int) -> npt.NDArray[np.bool_]:
    mask = np.zeros(count, np.bool_)
    mask[[row for unit in units for row in unit.rows]] = True
    return mask


def copies(root: Path, paths: Sequence[str], sizes: npt.NDArray[np.int64]) -> list[list[int]]:
    """Return the sets of rows whose files hold the same bytes.

    Only files that share their size are read, and of these the first `HEAD` bytes; the whole where those
    agree. Empty files and those that cannot be read are nobody's copies.
    """
    _, inverse, counts = np.unique(sizes, return_inverse=True, return_counts=True)
    candidates = np.flatnonzero((counts[inverse] > 1) & (sizes > 0)).tolist()
    alike = _alike(root, paths, {row: int(sizes[row]) for row in candidates}, HEAD)
    short = [rows for rows in alike if sizes[rows[0]] <= HEAD]
    long = {row: set_number for set_number, rows in enumerate(alike) if sizes[rows[0]] > HEAD for row in rows}
    return short + _alike(root, paths, long, None)


def _alike(root: Path, paths: Sequence[str], kinds: dict[int, int], length: int | None) -> list[list[int]]:
    """Return the sets of two or more rows, of one kind, whose files begin with the same `length` bytes."""
    rows = list(kinds)
    pieces = [rows[start : start + 64] for start in range(0, len(rows), 64)]

    def digests(piece: list[int]) -> list[bytes | None]:
        return [_digest(os.path.join(root, paths[row]), length) for row in piece]  # noqa: PTH118

    same: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    with ThreadPoolExecutor(READERS) as pool:
        for piece, found in zip(pieces, pool.map(digests, pieces), strict=True):
            for row, digest in zip(piece, found, strict=True):
                if digest is not None:
                    same[kinds[row], digest].append(row)
    return [rows for rows in same.values() if len(rows) > 1]


def _digest(path: str, length: int | None) -> bytes | None:
    """Return a digest of the first `length` bytes of a file (None: of all); None where it cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123  (a Path costs more than the reading)
            if length is None:
                return hashlib.file_digest(file, hashlib.blake2b).digest()
            return hashlib.blake2b(file.read(length), digest_size=16).digest()
    except OSError:
        return None
