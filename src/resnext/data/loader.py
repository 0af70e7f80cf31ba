"""Batches of images, loaded and augmented in threads, in an order that is arithmetic."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from resnext.data import crops, order
from resnext.data.augmentation import Augmentation, augment
from resnext.data.images import read_image
from resnext.data.parallel import in_order
from resnext.data.preprocessing import Preprocessing
from resnext.errors import ImageError, UserError

if TYPE_CHECKING:
    from resnext.data.manifest import Split

PIECE = 8
"""How many images a thread reads as one piece of work, where they are read in the split's order."""

Pixels = crops.Pixels
"""Images as `Preprocessing.resized` makes them: uint8 N×H×W×C, or a list of H×W×C of several shapes."""


class Source(Protocol):
    """Where resized images come from; rows as in the split. Each source gives the same pixels."""

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return one image, uint8 H×W×C; raise `ImageError` where it cannot be read."""

    def read_many(self, indices: NDArray[np.int64]) -> tuple[Pixels, dict[int, str]]:
        """Return the readable ones of the images, in order, and why the others are not: {index: reason}."""


@dataclass(frozen=True)
class Files:
    """The source that decodes and resizes a file each time.

    With `scaled` large photos are decoded at a part of their size (`Preprocessing.enough`): faster, and pixels near
    the same. It is for engines that were proved with it.
    """

    split: Split
    preprocessing: Preprocessing
    scaled: bool = False

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return one image, uint8 H×W×C; raise `ImageError` where it cannot be read."""
        wanted = self.preprocessing
        enough = wanted.enough if self.scaled else None
        return wanted.resized(read_image(self.split.path(index), channels=wanted.channels, enough=enough))

    def read_many(self, indices: NDArray[np.int64]) -> tuple[Pixels, dict[int, str]]:
        """Return the readable ones of the images, in order, and why the others are not: {index: reason}."""
        pixels: list[NDArray[np.uint8]] = []
        failures: dict[int, str] = {}
        for index in indices.tolist():
            try:
                pixels.append(self.read(index))
            except ImageError as error:
                failures[index] = error.reason
        return pixels, failures


@dataclass(frozen=True)
class Batch:
    """One step's images: rows of the split int64 N, pixels of 0…255 N×S×S×C, classes int64 N; and its number.

    Pixels are uint8, but float32 where they were augmented with `lighting`. `part` is which part of the step's images
    these were to be, unreadable ones counted; None where they are the whole step.
    """

    indices: NDArray[np.int64]
    pixels: NDArray[np.uint8] | NDArray[np.float32]
    labels: NDArray[np.int64]
    step: int
    part: order.Part | None = None


class Loader:
    """Batches of one split. What a batch holds is a function of (seed, epoch, step), not of the workers.

    `workers` threads keep at most `prefetch` batches ready; 0 workers load in the caller's thread. Images
    that cannot be read are left out of their batches, never replaced, and stand in `unreadable` (row:
    reason) once their batch has been handed over.
    """

    def __init__(
        self,
        source: Source,
        split: Split,
        preprocessing: Preprocessing,
        *,
        augmentation: Augmentation | None = None,
        batch_size: int,
        workers: int = 0,
        seed: int = 0,
        prefetch: int = 4,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"The batch size is {batch_size}, and must be at least 1.")
        if workers < 0:
            raise UserError(f"The number of workers is {workers}, and must be at least 0.")
        self.source = source
        self.split = split
        self.preprocessing = preprocessing
        self.augmentation = augmentation
        self.batch_size = batch_size
        self.workers = workers
        self.seed = seed
        self.prefetch = prefetch
        self.labels = split.labels.astype(np.int64)
        self.unreadable: dict[int, str] = {}
        self.process, self.processes = 0, 1
        self.sampling: Literal["shuffled", "balanced"] = "shuffled"

    def sampled(self, sampling: Literal["shuffled", "balanced"]) -> Loader:
        """Return a loader whose epochs hold each image once ("shuffled") or each class equally often ("balanced")."""
        part = copy.copy(self)
        part.sampling, part.unreadable = sampling, {}
        return part

    def for_process(self, process: int, processes: int) -> Loader:
        """Return a loader of the same images that yields one process's part of them, of so many processes."""
        part = copy.copy(self)
        part.process, part.processes, part.unreadable = process, processes, {}
        return part

    @property
    def steps(self) -> int:
        """The number of batches in an epoch."""
        return order.steps(len(self.labels), self.batch_size)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yield an epoch's batches from `start_step` on, in training order and augmented.

        Starting late costs nothing for the batches left out. A batch of which unreadable files leave fewer
        than two images is skipped, as batch norm cannot train on one; `Batch.step` counts on. One of several
        processes yields every batch, and leaves it to the step to agree with the others.
        """
        draws = self._draws(epoch)
        plan = ((step, order.batch(draws, step, self.batch_size)) for step in range(start_step, self.steps))
        loads = in_order(
            lambda planned: self._load_part(*planned, epoch), plan, workers=self.workers, ahead=self.prefetch
        )
        with closing(loads):
            for batch, failures in loads:
                self._note(failures)
                if not failures or len(batch.indices) > 1 or self.processes > 1:
                    yield batch

    def sequential(self) -> Iterator[Batch]:
        """Yield every image once, in the split's order, the centre crop; no batch exceeds `batch_size`.

        The threads share the work on each batch, so that the first one comes soon and the last one, too.
        """
        mine, size = order.part(len(self.labels), self.process, self.processes), self.batch_size
        images = np.arange(mine.start, mine.stop)
        batches = [images[start : start + size] for start in range(0, len(images), size)]
        plan = ((s, rows[at : at + PIECE]) for s, rows in enumerate(batches) for at in range(0, len(rows), PIECE))
        ahead = self.prefetch * _pieces(size)
        loads = in_order(lambda piece: self._load(*piece, None), plan, workers=self.workers, ahead=ahead)
        with closing(loads):
            for rows in batches:
                parts, failures = zip(*islice(loads, _pieces(len(rows))), strict=True)
                for failed in failures:
                    self._note(failed)
                batch = _joined(parts)
                if len(batch.indices):
                    yield batch

    def _draws(self, epoch: int) -> NDArray[np.int64]:
        """Return an epoch's draws in order; a draw d is image d % len(labels), as `order.balanced` says."""
        if self.sampling == "balanced":
            return order.balanced(self.seed, epoch, self.labels)
        return order.permutation(self.seed, epoch, len(self.labels))

    def _note(self, failures: dict[int, str]) -> None:
        for index, reason in failures.items():
            self.unreadable.setdefault(index, reason)

    def _load_part(self, step: int, draws: NDArray[np.int64], epoch: int) -> tuple[Batch, dict[int, str]]:
        """Make this process's part of one batch, and say which of its images cannot be read."""
        if self.processes == 1:
            return self._load(step, draws, epoch)
        mine = order.part(len(draws), self.process, self.processes)
        batch, failures = self._load(step, draws[mine.start : mine.stop], epoch)
        return replace(batch, part=mine), failures

    def _load(self, step: int, draws: NDArray[np.int64], epoch: int | None) -> tuple[Batch, dict[int, str]]:
        """Make one batch, augmented unless `epoch` is None, and say which of its images cannot be read."""
        indices = draws % len(self.labels)
        pixels, failures = self.source.read_many(indices)
        if failures:
            readable = ~np.isin(indices, list(failures))
            draws, indices = draws[readable], indices[readable]
        return Batch(indices, self._crops(pixels, draws, epoch), self.labels[indices], step), failures

    def _crops(
        self, pixels: Pixels, draws: NDArray[np.int64], epoch: int | None
    ) -> NDArray[np.uint8] | NDArray[np.float32]:
        """Cut images to the network's size: N×S×S×C."""
        side = self.preprocessing.image_size
        if not len(draws):
            return np.empty((0, side, side, self.preprocessing.channels), np.uint8)
        if epoch is None or self.augmentation is None:
            if isinstance(pixels, list):
                return np.stack([self.preprocessing.crop(one) for one in pixels])
            return np.ascontiguousarray(self.preprocessing.crop(pixels))
        return augment(
            pixels,
            draws,
            augmentation=self.augmentation,
            image_size=side,
            mean=self.preprocessing.mean,
            seed=self.seed,
            epoch=epoch,
        )


def _pieces(images: int) -> int:
    """Return how many pieces of work so many images are."""
    return -(-images // PIECE)


def _joined(parts: tuple[Batch, ...]) -> Batch:
    """Return the one batch of which these are parts."""
    if len(parts) == 1:
        return parts[0]
    return Batch(
        np.concatenate([part.indices for part in parts]),
        np.concatenate([part.pixels for part in parts]),
        np.concatenate([part.labels for part in parts]),
        parts[0].step,
    )
