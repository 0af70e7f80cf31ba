"""Order as arithmetic: which images a step takes, and the random numbers of each image.

Nothing here has a state. The order of an epoch is a function of (seed, epoch), where it is balanced also of the
images' classes, and the numbers that augment an image are a function of (seed, epoch, image, stream), so a
run can be stopped anywhere, go on exactly, and be split over any number of workers. Both are built from
integers alone (Philox's raw output, which NumPy promises never to change, and a hash of our own), so they
are the same on every machine and with every version of NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_WORD = 1 << 64
_GAMMA = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: odd, so that counting by it visits every word


def permutation(seed: int, epoch: int, count: int, stream: int = 0) -> NDArray[np.int64]:
    """Return the order of `count` images in this epoch: int64, every index once.

    Each image draws a 64-bit number from Philox keyed by (seed, epoch), whose counter begins at `stream` · 2^192; the
    order sorts these numbers. Distinct streams are independent of each other.
    """
    key = np.array([seed % _WORD, epoch % _WORD], dtype=np.uint64)
    counter = np.array([0, 0, 0, stream], dtype=np.uint64)
    numbers = np.random.Philox(key=key, counter=counter).random_raw(count)
    return np.argsort(numbers, kind="stable").astype(np.int64, copy=False)


def balanced(seed: int, epoch: int, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return as many draws as there are images, in order, such that each class comes equally often: int64.

    A draw d means image d % len(labels), which comes for the (d // len(labels) + 1)-th time in this epoch. So where
    the draw stands for the image in `uniforms`, an image has its own numbers the first time, and others each time
    that it comes again.

    Within an epoch, classes that have images differ by at most one draw, and images of a class by at most one, too:
    what a class of few images draws is all of them, again and again, and of the last time a part. A class of many
    images cuts a permutation into epochs that have none in common, and takes another when it does not suffice for one
    more. Which classes draw one more goes round.
    """
    counts = np.bincount(labels)
    classes, by_class = np.flatnonzero(counts), np.split(np.argsort(labels, kind="stable"), np.cumsum(counts))
    each, rest = divmod(len(labels), max(1, len(classes)))
    draws = [np.empty(0, np.int64)]
    for place, label in enumerate(classes.tolist()):
        images, most = by_class[label], each + (rest > 0)
        taken = each + ((place - epoch * rest) % len(classes) < rest)
        cycle, turn = divmod(epoch, max(1, len(images) // most))
        times, places = np.divmod(turn * most + np.arange(taken), len(images))
        draws.append(images[permutation(seed, cycle, len(images), stream=1 + label)[places]] + len(labels) * times)
    return np.concatenate(draws)[permutation(seed, epoch, len(labels))]


def uniforms(seed: int, epoch: int, images: NDArray[np.int64], draws: int, stream: int = 0) -> NDArray[np.float64]:
    """Return numbers uniform in [0, 1) for each image: float64, len(images) × draws.

    Row i depends on (seed, epoch, images[i], stream) only, never on the other rows, and its first numbers
    do not depend on `draws`. Distinct streams are independent of each other, so that a new augmentation
    does not move the numbers of an old one.
    """
    key = np.zeros(1, dtype=np.uint64)
    for part in (seed, epoch, stream):
        key = _scramble(key ^ np.uint64(part % _WORD))
    rows = _scramble(key ^ images.astype(np.uint64))
    counters = np.arange(1, draws + 1, dtype=np.uint64) * np.uint64(_GAMMA)
    return (_scramble(rows[:, None] + counters) >> np.uint64(11)) * np.float64(2.0**-53)


def steps(count: int, batch_size: int) -> int:
    """Return the number of batches in an epoch of `count` images.

    The last batch holds the remainder. A remainder of one image joins the batch before it, which then has
    `batch_size` + 1 images: batch norm cannot train on one image with a 1×1 map, and every image must come
    exactly once.
    """
    full, rest = divmod(count, batch_size)
    return full + (rest > 1 or (rest == 1 and full == 0))


def batch(order: NDArray[np.int64], step: int, batch_size: int) -> NDArray[np.int64]:
    """Return the images of one step: the slice of an epoch's order that belongs to it, as `steps` counts."""
    last = step == steps(len(order), batch_size) - 1
    return order[step * batch_size : None if last else (step + 1) * batch_size]


@dataclass(frozen=True)
class Part:
    """What one of several processes takes of a step: images `start` … `stop` of `whole`, which `copies` take alike."""

    start: int
    stop: int
    whole: int
    copies: int = 1


def part(count: int, process: int, processes: int) -> Part:
    """Return the part of a step of `count` images that is for one process, by its number from 0 on.

    The parts follow each other, differ by at most one image and are the whole together. A step with fewer than two
    images for each is computed whole by every one of them, as batch norm cannot train on one image: averaged over the
    processes, each image counts once all the same.
    """
    if count < 2 * processes:
        return Part(0, count, count, processes)
    size, more = divmod(count, processes)
    start = process * size + min(process, more)
    return Part(start, start + size + (process < more), count)


def _scramble(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Map 64-bit words one to one so that a change of any bit changes each bit half of the time.

    SplitMix64's step (Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014, with
    the constants of Stafford's variant 13).
    """
    words = words + np.uint64(_GAMMA)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
