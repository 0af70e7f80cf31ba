"""What is known of each image file without opening it again: a digest, size, kind, and a thumbnail, kept on the disk.

One file in the user's cache belongs to each root folder. A fingerprint counts as long as its file has the size and
the modification time that it was read with; files that changed or are new are read, the others are not.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from resnext import durable, machine
from resnext.data.images import DECODER_VERSION, contents
from resnext.data.inspection import inspect
from resnext.data.parallel import in_order
from resnext.data.thumbnails import COLOUR_SIDE, ENOUGH, SIDE, thumbnail
from resnext.errors import ImageError

if TYPE_CHECKING:
    import pyarrow as pa

LAYOUT = f"1, thumbnails of {SIDE}, {DECODER_VERSION}"
"""What a fingerprint depends on besides its file; where this differs, files are read anew."""

ROW = np.dtype(
    [
        ("size", "<i8"),
        ("mtime_ns", "<i8"),
        ("digest", "<u8", 2),  # BLAKE2b of all bytes, 16 bytes of it
        ("width", "<i4"),  # of the upright picture; 0 where there is none
        ("height", "<i4"),
        ("words", "<i4"),  # an index into `Fingerprints.words`
        ("state", "u1"),
        ("grey", "u1", (SIDE, SIDE)),  # see `thumbnails.thumbnail`
        ("colour", "u1", (COLOUR_SIDE, COLOUR_SIDE, 2)),
    ]
)

UNREAD, READABLE, DAMAGED, UNOPENED = range(4)
"""A file's `state`: not looked at, an image, bytes that are no image, nothing because it could not be opened."""

SAVE_EVERY = 120.0
"""Seconds between two saves while files are being read."""

_TOGETHER = 32  # files that a thread reads as one piece of work

Progress = Callable[[int, int], None]
_Seen = tuple[int, bytes, int, int, str, tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]] | None]


@dataclass(frozen=True)
class Fingerprints:
    """Fingerprints of files as columns (`ROW`), in the order in which the files were given.

    `words` says of a readable file "FORMAT kind" (see `inspection.Facts`), of another why it cannot be read.
    """

    rows: npt.NDArray[np.void]
    words: list[str]

    @property
    def readable(self) -> npt.NDArray[np.bool_]:
        """Whether each file is an image that can be read."""
        return np.asarray(self.rows["state"] == READABLE)

    def said(self, row: int) -> str:
        """Return what is said of the file of a row."""
        return self.words[int(self.rows["words"][row])]


def fingerprints(
    root: Path,
    paths: pa.Array,
    sizes: npt.NDArray[np.int64],
    mtimes_ns: npt.NDArray[np.int64],
    *,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
) -> Fingerprints:
    """Return the fingerprints of files, reading those that are not known or have changed.

    `paths` (strings, relative to `root` or absolute), `sizes` and `mtimes_ns` are the columns of a manifest.
    `progress` is called with the files read and to read. What was read is kept however this ends; where the disk is
    full or the cache cannot be written, `note` is told, and that is all.
    """
    store = _Store.load(root)
    found = store.lookup(paths, sizes, mtimes_ns)
    missing = np.flatnonzero(found.rows["state"] == UNREAD)
    if not len(missing):
        return found
    try:
        _read(store, found, paths, missing, progress or (lambda done, total: None))
    finally:
        try:
            store.save(paths, found)
        except OSError as error:
            if note is not None:
                reason = (error.strerror or str(error)).rstrip(".")
                note(f"What was read of the images is not kept: {error.filename or store.path}: {reason}.")
    return found


def known(
    root: Path, paths: pa.Array, sizes: npt.NDArray[np.int64], mtimes_ns: npt.NDArray[np.int64]
) -> Fingerprints | None:
    """Return the fingerprints of files if all are known already, reading none; else None."""
    found = _Store.load(root).lookup(paths, sizes, mtimes_ns)
    return None if (found.rows["state"] == UNREAD).any() else found


def _read(
    store: _Store, found: Fingerprints, paths: pa.Array, missing: npt.NDArray[np.int64], progress: Progress
) -> None:
    """Fill in the missing rows, saving now and then."""
    numbers = {word: number for number, word in enumerate(found.words)}
    pieces = [missing[start : start + _TOGETHER] for start in range(0, len(missing), _TOGETHER)]
    cores, done, saved = machine.cores(), 0, time.monotonic()

    def look(piece: npt.NDArray[np.int64]) -> list[_Seen]:
        return [_look(os.path.join(store.root, path)) for path in paths.take(piece).to_pylist()]  # noqa: PTH118

    reading = in_order(look, pieces, workers=cores, ahead=4 * cores)
    with contextlib.closing(reading):
        for piece, looks in zip(pieces, reading, strict=True):
            for row, (state, digest, width, height, words, small) in zip(piece.tolist(), looks, strict=True):
                number = numbers.setdefault(words, len(numbers))
                if number == len(found.words):
                    found.words.append(words)
                target = found.rows[row : row + 1]
                target["digest"] = np.frombuffer(digest, "<u8")
                target["width"], target["height"], target["words"] = width, height, number
                if small is not None:
                    target["grey"], target["colour"] = small
                target["state"] = state  # last, so that an interrupted row stays unread
            done += len(piece)
            progress(done, len(missing))
            if time.monotonic() - saved > SAVE_EVERY:
                with contextlib.suppress(OSError):  # the last save tells
                    store.save(paths, found)
                saved = time.monotonic()


def _look(path: str) -> _Seen:
    """Read one file: its state, digest, width, height, words and thumbnail."""
    try:
        data = contents(path)
    except ImageError as error:
        return UNOPENED, bytes(16), 0, 0, error.reason, None
    digest = hashlib.blake2b(data, digest_size=16).digest()
    try:
        picture, facts = inspect(data, enough=ENOUGH)
        small = thumbnail(picture)
    except ImageError as error:
        # Not its file's fault, so not to be remembered.
        state = UNOPENED if isinstance(error.__cause__, MemoryError) else DAMAGED
        return state, digest, 0, 0, error.reason, None
    return READABLE, digest, facts.width, facts.height, f"{facts.format} {facts.kind}", small


@dataclass
class _Store:
    """The fingerprints of one root on the disk: paths, rows, words."""

    root: Path
    path: Path
    paths: pa.Array
    rows: npt.NDArray[np.void]
    words: list[str]

    @classmethod
    def load(cls, root: Path) -> _Store:
        """Read what is kept for a root; what is damaged or of another version counts as nothing."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        key = hashlib.sha256(os.fsencode(root)).hexdigest()[:24]
        path = durable.cache_directory() / "fingerprints" / f"{key}.parquet"
        try:
            table = pq.read_table(path, page_checksum_verification=True)
            about = json.loads(table.schema.metadata[b"resnext"])
            column = table["row"].combine_chunks()
            fitting = column.type == pa.binary(ROW.itemsize)
            if fitting and about["layout"] == LAYOUT and about["root"] == str(root):
                kept = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
                rows = np.frombuffer(kept.buffers()[1], ROW, len(kept), kept.offset * ROW.itemsize)
                return cls(root, path, table["path"].combine_chunks(), rows, list(about["words"]))
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
            pass
        return cls(root, path, pa.array([], pa.string()), np.zeros(0, ROW), [])

    def lookup(self, paths: pa.Array, sizes: npt.NDArray[np.int64], mtimes_ns: npt.NDArray[np.int64]) -> Fingerprints:
        """Return what is kept of these files; the state of one that is not known is `UNREAD`."""
        if self.paths.equals(paths):
            rows = self.rows.copy()
        else:
            places = self._places(paths)
            rows = np.zeros(len(paths), ROW)
            rows[places >= 0] = self.rows[places[places >= 0]]
        rows[(rows["size"] != sizes) | (rows["mtime_ns"] != mtimes_ns)] = np.zeros((), ROW)
        rows["size"], rows["mtime_ns"] = sizes, mtimes_ns
        return Fingerprints(rows, list(self.words))

    def _places(self, paths: pa.Array) -> npt.NDArray[np.int64]:
        """Return the row of each path, -1 where there is none."""
        import pyarrow.compute as pc

        places = pc.index_in(paths, value_set=self.paths)
        found: npt.NDArray[np.int64] = places.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        return found

    def save(self, paths: pa.Array, found: Fingerprints) -> None:
        """Keep these fingerprints and those of other files of this root that still exist."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        kept_paths, kept_rows = paths, found.rows
        worth = (kept_rows["state"] == READABLE) | (kept_rows["state"] == DAMAGED)
        if not worth.all():
            kept_paths, kept_rows = paths.filter(pa.array(worth)), kept_rows[worth]
        if others := list(self._others(paths)):
            kept_paths = pa.concat_arrays([kept_paths, self.paths.take(others)])
            kept_rows = np.concatenate([kept_rows, self.rows[others]])
        about = {"layout": LAYOUT, "root": str(self.root), "words": found.words}
        buffer = pa.py_buffer(kept_rows)
        column = pa.Array.from_buffers(pa.binary(ROW.itemsize), len(kept_rows), [None, buffer])
        table = pa.table({"path": kept_paths, "row": column})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_name(f".{self.path.name}.{os.getpid()}.new")
        try:
            pq.write_table(
                table.replace_schema_metadata({"resnext": json.dumps(about)}),
                beside,
                compression={"path": "zstd", "row": "none"},
                use_dictionary=False,
                write_page_checksum=True,
            )
            durable.sync_path(beside)
            beside.replace(self.path)
            durable.sync_path(self.path.parent)
        finally:
            beside.unlink(missing_ok=True)

    def _others(self, paths: pa.Array) -> Iterator[int]:
        """Yield the kept rows of files that are not among `paths` but exist: of another split or CSV file."""
        import pyarrow.compute as pc

        if not len(self.paths) or self.paths.equals(paths):
            return
        absent = pc.invert(pc.is_in(self.paths, value_set=paths)).to_numpy(zero_copy_only=False)
        rows: Sequence[int] = np.flatnonzero(absent).tolist()
        for row in rows:
            if os.path.exists(os.path.join(self.root, self.paths[row].as_py())):  # noqa: PTH110, PTH118
                yield row
