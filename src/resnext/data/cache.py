"""Decoded, resized images kept in one flat file, so that each is decoded once and not once an epoch.

A cache belongs to all images of the given splits in the order of their paths, whichever split they are in, so
that other seeds and folds of the same images share it. Making a cache, going on after an interruption and
re-reading changed files are one thing: read what the index does not have.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from resnext import durable
from resnext.data.cache_folder import CacheFolder, lengths
from resnext.data.images import DECODER_VERSION
from resnext.data.loader import Files, Pixels
from resnext.data.parallel import in_order
from resnext.data.preprocessing import Preprocessing
from resnext.errors import ImageError

if TYPE_CHECKING:
    import pyarrow as pa

    from resnext.data.manifest import Split

LAYOUT = 1
"""Part of the key: raise it when the files of a cache change their meaning."""

SAMPLE = 64
"""How many images are decoded to estimate the size of a cache."""

_TOGETHER = 32  # images that a thread reads as one piece of work
_SAVE_EVERY = 1 << 30  # bytes of pixels between two saved indices


class PixelCache:
    """The source (`loader.Source`) of one split's images from a memory map; rows as in the split.

    `failures` says why images could not be read when the cache was opened (row: reason).
    """

    def __init__(self, files: Files, data: NDArray[np.uint8], rows: NDArray[np.void], failures: dict[int, str]) -> None:
        self.failures = failures
        self._files = files
        self._data = data
        self._offsets = np.ascontiguousarray(rows["offset"])
        self._shapes = np.stack([rows["height"], rows["width"]], axis=1)
        self._alike: tuple[NDArray[np.uint8], tuple[int, ...]] | None = None
        shapes = np.unique(self._shapes[self._offsets >= 0], axis=0)
        if len(shapes) == 1:
            shape = (*shapes[0].tolist(), files.preprocessing.channels)
            # Row i is the image that starts at byte i: a gather of rows is a batch.
            self._alike = sliding_window_view(data, int(np.prod(shape))), shape

    def __len__(self) -> int:
        return len(self._offsets)

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return one image, a read-only view uint8 H×W×C; raise `ImageError` where it could not be read."""
        if index in self.failures:
            raise ImageError(self._files.split.path(index), self.failures[index])
        offset, (height, width) = int(self._offsets[index]), self._shapes[index].tolist()
        channels = self._files.preprocessing.channels
        return self._data[offset : offset + height * width * channels].reshape(height, width, channels)

    def read_many(self, indices: NDArray[np.int64]) -> tuple[Pixels, dict[int, str]]:
        """Return the readable ones of the images, in order, and why the others are not: {index: reason}."""
        there = self._offsets[indices] >= 0
        failures = {index: self.failures[index] for index in indices[~there].tolist()}
        if self._alike is None:
            return [self.read(index) for index in indices[there].tolist()], failures
        images, shape = self._alike
        return images[self._offsets[indices[there]]].reshape(-1, *shape), failures


def open_cache(
    splits: Sequence[Split],
    preprocessing: Preprocessing,
    *,
    budget_bytes: int,
    workers: int,
    progress: Callable[[int, int], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> list[PixelCache] | None:
    """Return a source for each of the splits of one manifest, after decoding what is not cached yet.

    Return None where the pixels do not fit `budget_bytes` or the disk; `note` is told why, and whatever else
    a user should know. `progress` is called with the images done and to do, of those that must be decoded.
    All caches together stay within the budget: those unused for longest make room. A second process waits
    for the first one. Interrupted anywhere, what was saved counts and the rest is decoded the next time.
    """
    images = _Images([Files(split, preprocessing) for split in splits])
    folder = CacheFolder(durable.cache_directory() / "pixels" / images.key())
    note = note or (lambda text: None)
    waiting = "Another process is decoding these images into the cache; waiting for it."
    try:
        with folder.locked(lambda: note(waiting)):
            folder.touch()
            filling = _Filling(folder, images, budget_bytes, workers, progress or (lambda done, total: None))
            filling.run()
            data = folder.pixels()
    except _TooLarge as error:
        note(f"Images are decoded anew each time, not cached: {error}.")
        return None
    except OSError as error:
        note(f"Images are decoded anew each time, not cached: {folder.path}: {error.strerror or error}.")
        return None
    caches = []
    for files, ranks in zip(images.sources, images.ranks(), strict=True):
        failed = np.flatnonzero(filling.rows["offset"][ranks] < 0).tolist()
        failures = {index: filling.failures[int(ranks[index])] for index in failed}
        caches.append(PixelCache(files, data, filling.rows[ranks], failures))
    return caches


class _TooLarge(Exception):
    """Why the pixels are not cached, in words for the user."""


class _Images:
    """The images of several splits as one list in the order of their paths."""

    def __init__(self, sources: list[Files]) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        assert len({source.split.root for source in sources}) == 1, "the splits of one manifest"
        self.sources = sources
        self.channels = sources[0].preprocessing.channels
        self._starts = np.cumsum([0, *(len(source.split) for source in sources)])
        chunks: list[pa.Array] = []
        for source in sources:
            paths = source.split.paths
            chunks += paths.chunks if isinstance(paths, pa.ChunkedArray) else [paths]
        self._paths = pa.chunked_array(chunks, pa.string())
        self._order = pc.sort_indices(self._paths).to_numpy().astype(np.int64)

    def __len__(self) -> int:
        return len(self._order)

    def ranks(self) -> Iterator[NDArray[np.int64]]:
        """Yield, for each split, the places of its rows in this list."""
        ranks = np.empty_like(self._order)
        ranks[self._order] = np.arange(len(ranks))
        for first, end in zip(self._starts[:-1], self._starts[1:], strict=True):
            yield ranks[first:end]

    def read(self, ranks: NDArray[np.int64]) -> list[NDArray[np.uint8] | str]:
        """Decode and resize some images; a reason stands for one that cannot be read."""
        results: list[NDArray[np.uint8] | str] = []
        for position in self._order[ranks]:
            source = int(np.searchsorted(self._starts, position, side="right")) - 1
            try:
                results.append(self.sources[source].read(int(position - self._starts[source])))
            except ImageError as error:
                results.append(error.reason)
        return results

    def key(self) -> str:
        """Return a hash of all that decides the pixels, but for what the files hold."""
        preprocessing = self.sources[0].preprocessing
        facts = {
            "layout": LAYOUT,
            "root": str(self.sources[0].split.root.resolve()),
            "resize": preprocessing.resize,
            "interpolation": preprocessing.interpolation,
            "channels": self.channels,
            "decoder": DECODER_VERSION,
        }
        if preprocessing.rounding != "nearest":  # caches are older than the field
            facts["rounding"] = preprocessing.rounding
        digest = hashlib.sha256(json.dumps(facts).encode())
        for path in self._sorted_paths():
            digest.update(b"\0" + path.encode())
        return digest.hexdigest()[:32]

    def states(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the size and the modification time of each file now; −1 where there is none."""
        states = np.full((2, len(self)), -1, np.int64)
        root = os.open(self.sources[0].split.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for rank, path in enumerate(self._sorted_paths()):
                with contextlib.suppress(OSError, ValueError):
                    state = os.stat(path, dir_fd=root)
                    states[:, rank] = state.st_size, state.st_mtime_ns
        finally:
            os.close(root)
        return states[0], states[1]

    def _sorted_paths(self) -> Iterator[str]:
        for first in range(0, len(self), 65_536):  # so that few are Python strings at a time
            yield from self._paths.take(self._order[first : first + 65_536]).to_pylist()


@dataclass
class _Filling:
    """Bringing one cache up to date; afterwards `rows` is its index and `failures` what could not be read."""

    folder: CacheFolder
    images: _Images
    budget: int
    workers: int
    progress: Callable[[int, int], None]

    def run(self) -> None:
        """Decode the images that the index does not have as their files are now.

        Raises `_TooLarge` before anything is written, and OSError where writing fails (EFBIG: it outgrew the
        budget); the cache is empty then.
        """
        self.failures: dict[int, str] = {}
        self.rows = self.folder.index(len(self.images), self.images.channels)
        sizes, mtimes = self.images.states()
        self.rows["offset"][(self.rows["size"] != sizes) | (self.rows["mtime_ns"] != mtimes)] = -1
        missing = np.flatnonzero(self.rows["offset"] < 0)
        kept, needed = int(lengths(self.rows, self.images.channels).sum()), self._estimate(missing)
        self._make_room(kept, needed)
        if self.folder.length() > 2 * (kept + needed):  # mostly pixels of files that have changed since
            self.rows = self.folder.clear(len(self.images))
            kept, missing = 0, np.arange(len(self.images))
        self.rows["size"], self.rows["mtime_ns"] = sizes, mtimes
        try:
            if len(missing):
                self._append(missing, self.budget - kept)
        except OSError:
            self.folder.clear()  # a disk that we filled would fail the checkpoints next
            raise

    def _estimate(self, missing: NDArray[np.int64]) -> int:
        """Return about how many bytes of pixels the missing images have, from a sample of them."""
        if not len(missing):
            return 0
        sample = missing[np.linspace(0, len(missing), min(len(missing), SAMPLE), endpoint=False, dtype=int)]
        with closing(self._read(np.array_split(sample, SAMPLE))) as pieces:
            found = [one.nbytes for piece in pieces for one in piece if not isinstance(one, str)]
        return len(missing) * sum(found) // len(sample)

    def _make_room(self, kept: int, needed: int) -> None:
        """Clear old caches; raise `_TooLarge` where the pixels exceed the budget or the disk all the same."""
        takes = f"the pixels take about {_size(kept + needed)}"
        if kept + needed > self.budget:
            raise _TooLarge(f"{takes}, and the budget is {_size(self.budget)}")
        self.folder.make_room(self.budget - kept - needed)
        free = shutil.disk_usage(self.folder.path).free
        if needed > 0.9 * free:  # a run has more to write than this
            raise _TooLarge(f"{takes}, and {self.folder.path} has {_size(free)} left on its disk")

    def _append(self, missing: NDArray[np.int64], budget: int) -> None:
        """Decode the missing images and append them to the pixels, saving the index from time to time."""
        pieces = [missing[first : first + _TOGETHER] for first in range(0, len(missing), _TOGETHER)]
        with self.folder.open() as file, closing(self._read(pieces)) as results:
            saved = begin = file.tell()
            try:
                for piece, images, done in zip(pieces, results, count(_TOGETHER, _TOGETHER)):
                    for rank, pixels in zip(piece.tolist(), images, strict=True):
                        self._take(rank, pixels, file)
                    if file.tell() - begin > budget:
                        raise OSError(errno.EFBIG, f"they outgrow the budget of {_size(self.budget)}")
                    if file.tell() - saved > _SAVE_EVERY:
                        self.folder.save(self.rows, file)
                        saved = file.tell()
                    self.progress(min(done, len(missing)), len(missing))
            finally:
                self.folder.save(self.rows, file)

    def _take(self, rank: int, pixels: NDArray[np.uint8] | str, file: BinaryIO) -> None:
        """Append one image, or note why there is none."""
        if isinstance(pixels, str):
            self.failures[rank] = pixels
            return
        offset = file.tell()
        file.write(np.ascontiguousarray(pixels).data)
        self.rows[["offset", "height", "width"]][rank] = offset, *pixels.shape[:2]

    def _read(self, pieces: list[NDArray[np.int64]]) -> Generator[list[NDArray[np.uint8] | str], None, None]:
        return in_order(self.images.read, pieces, workers=self.workers, ahead=2 * self.workers)


def _size(length: int) -> str:
    """Write a number of bytes for people."""
    for power, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if length >= power:
            return f"{length / power:.1f} {unit}"
    return f"{length} bytes"
