"""Writing that survives a crash: write beside, sync, rename; and where the user's caches lie."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

CRASH_AT = "RESNEXT_CRASH_AT"
_passed: Counter[str] = Counter()


def crash_point(name: str) -> None:
    """End this process at once, with code 137 as `kill -9` does, where a test asks for it; otherwise do nothing.

    Such points stand between every two steps that touch the disk. The environment variable RESNEXT_CRASH_AT names one
    and says at which passing, as in `directory-synced:3`; `*:7` is the seventh passing of any.
    """
    if wanted := os.environ.get(CRASH_AT):
        _passed.update((name, "*"))
        if wanted in (f"{name}:{_passed[name]}", f"*:{_passed['*']}"):
            os._exit(137)


def sync_path(path: Path) -> None:
    """Flush a file or a directory entry to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a crash leaves the old file or the new one, never a mixture."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            crash_point("bytes-written")
            os.fsync(file.fileno())
        crash_point("bytes-synced")
        beside.replace(path)
        crash_point("bytes-in-place")
        sync_path(path.parent)
        crash_point("bytes-settled")
    finally:
        beside.unlink(missing_ok=True)


def write_table(path: Path, table: pa.Table) -> None:
    """Write a table to `path` as Parquet, as `write_bytes` does."""
    import pyarrow.parquet as pq

    content = io.BytesIO()
    pq.write_table(table, content)
    write_bytes(path, content.getvalue())


def is_beside(name: str) -> bool:
    """Whether a file of this name is what `write_bytes` was writing when its process was killed."""
    return name.startswith(".") and name.endswith(".new")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text as `write_bytes` does."""
    write_bytes(path, text.encode())


def make_directory(path: Path) -> None:
    """Make a directory and those above it, where they are not there, so that a crash does not lose them again."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for each in reversed(missing):
        sync_path(each.parent)


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yield an empty directory beside `path` that takes its place, synced, when the block succeeds.

    A directory that stood at `path` is moved to `path.old` for the instant between the two renames, so a
    reader that finds no `path` looks there. When the block fails the new directory is removed and `path`
    is as it was.
    """
    beside, old = path.with_name(path.name + ".new"), path.with_name(path.name + ".old")
    if old.exists() and not path.exists():
        old.rename(path)
        crash_point("directory-old-back")
    for left in (beside, old):
        shutil.rmtree(left, ignore_errors=True)
    crash_point("directory-cleared")
    make_directory(path.parent)
    beside.mkdir()
    crash_point("directory-made")
    try:
        yield beside
        crash_point("directory-filled")
        for file in sorted(beside.rglob("*")):
            sync_path(file)
            crash_point("directory-file-synced")
        sync_path(beside)
        crash_point("directory-synced")
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    if path.exists():
        path.rename(old)
        crash_point("directory-old-aside")
    beside.rename(path)
    crash_point("directory-in-place")
    sync_path(path.parent)
    crash_point("directory-settled")
    shutil.rmtree(old, ignore_errors=True)
    crash_point("directory-old-gone")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def cache_directory() -> Path:
    """Return the user's cache directory for this package (`RESNEXT_CACHE` overrides it); not created."""
    if chosen := os.environ.get("RESNEXT_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "resnext"
