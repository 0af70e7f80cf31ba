"""Find near copies among millions of thumbnails: a hash proposes pairs, a closer look decides.

The hash of a thumbnail is the signs of its lowest DCT coefficients, as in pHash. Signs of small coefficients flip
easily, so a table is asked for the keys with these flipped, too (multi-probe hashing, Lv et al., VLDB 2007), and for
the keys of the picture cropped in a few ways. Whatever is found is compared by `thumbnails.difference`.

Coefficients are sums of whole numbers, exact in any order, so that every machine finds the same copies.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from resnext import machine
from resnext.data.parallel import in_order
from resnext.data.thumbnails import (
    COLOUR_DIFFERENCE,
    DIFFERENCE,
    FLAT,
    SIDE,
    colour_difference,
    contrast,
    difference,
    smoothed,
)

Ints = npt.NDArray[np.int64]

VERSION = 1
"""To be raised when other copies are found in the same thumbnails."""

_FREQUENCIES = sorted(
    ((u, v) for u in range(8) for v in range(8) if u or v), key=lambda place: (place[0] ** 2 + place[1] ** 2, place)
)
_TABLES = (np.arange(24), np.r_[0:16, 24:32], np.r_[0:8, 16:32])
"""The coefficients, the lowest first, whose signs are the keys of each table."""

_BITS = 24
_FLIPPED = 3  # of the signs nearest to flipping, all combinations are asked for
_CROP = 0.06  # of width and height that the cropped versions lack
_SIGNS = 14  # of 63 signs that may differ
_MOST = 16  # images that one key may yield: pictures that abound are found through each other
_TOGETHER = 1 << 14  # images, or pairs, worked on as one


def near(
    grey: npt.NDArray[np.uint8],
    colour: npt.NDArray[np.uint8],
    progress: Callable[[int, int], None] | None = None,
) -> Ints:
    """Return the pairs P×2 of near copies among thumbnails N×S×S and their colours N×C×C×2, first < second, sorted.

    Of many copies of one picture not all pairs are returned, but enough to link them. Flat pictures have none.
    """
    rows = np.flatnonzero(_contrasts(grey) >= FLAT)
    if len(rows) < 2:
        return np.zeros((0, 2), np.int64)
    if len(rows) < len(grey):
        grey, colour = grey[rows], colour[rows]
    found = []
    for done, pairs in _candidates(grey, lambda pairs: pairs[_are_copies(grey, colour, pairs)]):
        found.append(pairs)
        if progress is not None:
            progress(done, len(grey))
    pairs = np.unique(np.concatenate(found), axis=0)
    return rows[pairs]


def _contrasts(grey: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    parts = [contrast(grey[start : start + _TOGETHER]) for start in range(0, len(grey), _TOGETHER)]
    return np.concatenate([np.zeros(0), *parts])


def _are_copies(grey: npt.NDArray[np.uint8], colour: npt.NDArray[np.uint8], pairs: Ints) -> npt.NDArray[np.bool_]:
    """Say of each pair whether it is of near copies."""
    result = np.zeros(len(pairs), np.bool_)
    for start in range(0, len(pairs), _TOGETHER):
        one, other = pairs[start : start + _TOGETHER].T
        alike = np.flatnonzero(colour_difference(colour[one], colour[other]) <= COLOUR_DIFFERENCE)
        for a, b in ((one, other), (other, one)):
            left = alike[~result[start + alike]]
            result[start + left] = difference(grey[a[left]], grey[b[left]]) <= DIFFERENCE
    return result


def _candidates(grey: npt.NDArray[np.uint8], chosen: Callable[[Ints], Ints]) -> Iterator[tuple[int, Ints]]:
    """Yield how many images were asked about, and what is `chosen` of pairs that may be copies: first < second."""
    count = len(grey)
    starts = range(0, count, _TOGETHER)
    codes = np.concatenate([_signs(_coefficients(grey[start : start + _TOGETHER], _VIEWS[:1])[0]) for start in starts])
    tables = [_Table(_key_of_code(codes, bits), codes) for bits in _TABLES]

    def search(start: int) -> Ints:
        pairs = []
        for coefficients in _coefficients(grey[start : start + _TOGETHER], _VIEWS):
            asked = _signs(coefficients)
            for table, bits in zip(tables, _TABLES, strict=True):
                who, other = table.ask(_probes(coefficients[:, bits], bits))
                close = _differing(asked[who], codes[other]) <= _SIGNS
                pairs.append(np.stack([who[close] + start, other[close]], axis=1))
        every = np.sort(np.concatenate(pairs), axis=1)
        return chosen(np.unique(every[every[:, 0] != every[:, 1]], axis=0))

    yield 0, chosen(np.concatenate([table.neighbours() for table in tables]))
    cores = machine.cores()
    with contextlib.closing(in_order(search, starts, workers=cores, ahead=cores)) as searches:
        for start, pairs in zip(starts, searches, strict=True):
            yield min(start + _TOGETHER, count), pairs


def _views() -> npt.NDArray[np.float64]:
    """Return matrices from the pixels of a smoothed thumbnail ×16 to 63 coefficients, whole and cropped in six ways."""
    waves = np.cos(np.pi * np.arange(8)[:, None] * (2 * np.arange(SIDE) + 1) / (2 * SIDE))

    def line(before: float, after: float) -> npt.NDArray[np.float64]:
        """Waves over a line that lacks these shares of its length at its ends; linear between pixels."""
        places = before * SIDE - 0.5 + (1 - before - after) * (np.arange(SIDE) + 0.5)
        reading = np.maximum(0, 1 - np.abs(np.clip(places, 0, SIDE - 1)[:, None] - np.arange(SIDE)))
        return np.asarray(waves @ reading)

    ends = ((0.0, 0.0), (_CROP / 2, _CROP / 2), (_CROP, _CROP), (_CROP, 0.0), (0.0, _CROP))
    crops = [(0, 0), (1, 1), (2, 2), *((y, x) for y in (3, 4) for x in (3, 4))]
    views = []
    for y, x in crops:
        down, right = line(*ends[y]), line(*ends[x])
        views.append(np.stack([np.rint(1024 * np.outer(down[u], right[v])).ravel() for u, v in _FREQUENCIES], axis=1))
    return np.stack(views)


_VIEWS = _views()
_REACH = np.hypot(*np.array(_FREQUENCIES, np.float64).T)
"""Pictures' coefficients fall with the frequency; times this, they are alike."""


def _coefficients(grey: npt.NDArray[np.uint8], views: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the coefficients of each thumbnail in each view, V×N×63: whole numbers."""
    result: npt.NDArray[np.float64] = (16 * smoothed(grey)).reshape(-1, SIDE * SIDE) @ views
    return result


def _signs(coefficients: npt.NDArray[np.float64]) -> npt.NDArray[np.uint64]:
    """Return the signs of 63 coefficients as the bits of a number."""
    powers = np.left_shift(np.uint64(1), np.arange(len(_FREQUENCIES), dtype=np.uint64))
    result: npt.NDArray[np.uint64] = (coefficients > 0).astype(np.uint64) @ powers
    return result


def _key_of_code(codes: npt.NDArray[np.uint64], bits: Ints) -> Ints:
    keys = np.zeros(len(codes), np.int64)
    for place, bit in enumerate(bits.tolist()):
        keys |= ((codes >> np.uint64(bit)) & np.uint64(1)).astype(np.int64) << place
    return keys


def _probes(coefficients: npt.NDArray[np.float64], bits: Ints) -> Ints:
    """Return the keys N×2^flipped to ask for: the picture's own, and those with its least sure signs flipped."""
    keys = (coefficients > 0).astype(np.int64) @ (1 << np.arange(_BITS))
    unsure = np.argpartition(np.abs(coefficients) * _REACH[bits], _FLIPPED, axis=1)[:, :_FLIPPED]
    chosen = (np.arange(1 << _FLIPPED)[:, None] >> np.arange(_FLIPPED)) & 1
    return np.asarray(keys[:, None] ^ ((np.int64(1) << unsure.astype(np.int64)) @ chosen.T))


_ONES = np.unpackbits(np.arange(1 << 16, dtype=np.uint16).view(np.uint8)).reshape(-1, 16).sum(axis=1, dtype=np.uint8)


def _differing(one: npt.NDArray[np.uint64], other: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Return in how many bits two numbers differ."""
    result: Ints = _ONES[(one ^ other)[:, None].view(np.uint16)].sum(axis=1, dtype=np.int64)
    return result


class _Table:
    """Images by their keys: sorted, with an index over the keys' upper bits."""

    def __init__(self, keys: Ints, codes: npt.NDArray[np.uint64]) -> None:
        self.order = np.lexsort((codes, keys))
        self.keys = keys[self.order]
        self.shift = max(0, _BITS - max(1, (4 * len(keys)).bit_length()))
        sizes = np.bincount(self.keys >> self.shift, minlength=1 << (_BITS - self.shift))
        self.starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)

    def neighbours(self) -> Ints:
        """Return pairs of images of one key that follow each other."""
        same = np.flatnonzero(self.keys[1:] == self.keys[:-1])
        return np.sort(np.stack([self.order[same], self.order[same + 1]], axis=1), axis=1)

    def ask(self, keys: Ints) -> tuple[Ints, Ints]:
        """Return who (a row of `keys` N×K) finds which image under one of its keys, at most `_MOST` for each."""
        asked = keys.ravel()
        starts, ends = self.starts[asked >> self.shift], self.starts[(asked >> self.shift) + 1]
        there = np.flatnonzero(ends > starts)
        sizes = np.minimum(ends[there] - starts[there], _MOST).astype(np.int64)
        which = np.repeat(there, sizes)
        steps = np.arange(len(which)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        places = starts[which] + steps
        same = self.keys[places] == asked[which]
        return which[same] // keys.shape[1], self.order[places[same]]
