"""The files of one pixel cache: a lock, pixels that only grow, and an index that says where images lie.

`pixels.bin` is appended to and never changed; `index.npy` is replaced as a whole once the pixels it names are
on the disk. So whatever instant a process is killed at, the index tells the truth, and who has the pixels
mapped into memory is never disturbed.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from resnext import durable

ROW = np.dtype([("offset", "<i8"), ("height", "<i4"), ("width", "<i4"), ("size", "<i8"), ("mtime_ns", "<i8")])
"""What the index says of an image: where its pixels start (−1: nowhere), their shape, its file as decoded."""


def lengths(rows: NDArray[np.void], channels: int) -> NDArray[np.int64]:
    """Return how many bytes of pixels each row names; 0 for an image that is not there."""
    return np.where(rows["offset"] < 0, 0, rows["height"].astype(np.int64) * rows["width"] * channels)


@dataclass(frozen=True)
class CacheFolder:
    """One cache on the disk; everything but `locked` is for who holds the lock."""

    path: Path

    @contextlib.contextmanager
    def locked(self, waiting: Callable[[], None] | None) -> Iterator[None]:
        """Hold the cache for this process alone; a killed process lets go of it.

        Where another process holds it, call `waiting` and wait, or raise BlockingIOError if that is None.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if waiting is None:
                    raise
                waiting()
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def index(self, count: int, channels: int) -> NDArray[np.void]:
        """Return the saved index of `count` rows; all images missing where it cannot be trusted."""
        for left in self.path.glob(".index.npy.*"):  # by a process killed while it wrote
            left.unlink()
        with contextlib.suppress(OSError, ValueError, EOFError):
            rows: NDArray[np.void] = np.load(self.path / "index.npy", allow_pickle=False)
            if rows.dtype == ROW and rows.shape == (count,):
                ends = rows["offset"] + lengths(rows, channels)
                if ends.max(initial=0) <= self.length():
                    return rows
        return self.clear(count)

    def clear(self, count: int = 0) -> NDArray[np.void]:
        """Forget all pixels and return an index of `count` missing images.

        The pixels lose their name only: who has them mapped keeps them.
        """
        for name in ("index.npy", "pixels.bin"):
            (self.path / name).unlink(missing_ok=True)
        rows = np.zeros(count, ROW)
        rows["offset"] = -1
        return rows

    def open(self) -> BinaryIO:
        """Open the pixels for appending."""
        return (self.path / "pixels.bin").open("ab")

    def save(self, rows: NDArray[np.void], pixels: BinaryIO) -> None:
        """Bring the appended pixels to the disk, then the index that names them."""
        pixels.flush()
        os.fsync(pixels.fileno())
        buffer = io.BytesIO()
        np.save(buffer, rows, allow_pickle=False)
        durable.write_bytes(self.path / "index.npy", buffer.getvalue())

    def length(self) -> int:
        """Return the bytes of pixels on the disk."""
        try:
            return (self.path / "pixels.bin").stat().st_size
        except FileNotFoundError:
            return 0

    def pixels(self) -> NDArray[np.uint8]:
        """Map the pixels into memory, read-only: uint8, flat."""
        if not self.length():
            return np.empty(0, np.uint8)
        return np.asarray(np.memmap(self.path / "pixels.bin", np.uint8, "r"))

    def touch(self) -> None:
        """Note that the cache is in use now."""
        now = time.time_ns()  # finer than what the kernel would fill in
        os.utime(self.path / "lock", ns=(now, now))

    def make_room(self, limit: int) -> None:
        """Clear the other caches, those unused for longest first, until they hold at most `limit` bytes."""
        others = {CacheFolder(lock.parent): lock.stat().st_mtime_ns for lock in self.path.parent.glob("*/lock")}
        others.pop(self, None)
        held = 0
        for other in sorted(others, key=others.__getitem__, reverse=True):
            held += other.length()
            if held > limit:
                with contextlib.suppress(BlockingIOError), other.locked(None):
                    other.clear()
