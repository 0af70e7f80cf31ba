"""A disk that loses its power: what was not synced is lost, or is not, as it happens to be.

What POSIX promises is little: a file's contents are on the disk once the file was synced, and its name once the
directory was in which it stands. All else may or may not be there, in any combination: names without contents, removals
without the renames before them. So every directory and every file is taken as it was when it was last synced or as it
is now, each by itself. That is harsher than most file systems are.
"""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

Inode = tuple[int, int]
Names = dict[str, tuple[Inode, bool]]
"""What a directory holds: the file or directory of each name, and whether it is a directory."""


class Disk:
    """The disk below `root`, of which everything that is there now is taken to be synced."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._files: dict[Inode, bytes] = {}
        self._folders: dict[Inode, Names] = {}
        self._kept: dict[Inode, int] = {}
        self._sync = os.fsync
        for place in (root, *root.rglob("*")):
            self._note(place)

    def _note(self, place: Path) -> None:
        descriptor = os.open(place, os.O_RDONLY)
        self._synced(descriptor)
        os.close(descriptor)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Notice every fsync within this block."""
        self.watch()
        try:
            yield
        finally:
            os.fsync = self._sync

    def watch(self) -> None:
        """Notice every fsync from now on."""

        def sync(descriptor: int) -> None:
            self._sync(descriptor)
            self._synced(descriptor)

        os.fsync = sync

    def _synced(self, descriptor: int) -> None:
        about = os.fstat(descriptor)
        inode = about.st_dev, about.st_ino
        if inode not in self._kept:  # held open, so that no later file gets its number
            self._kept[inode] = os.dup(descriptor)
        if stat.S_ISDIR(about.st_mode):
            self._folders[inode] = _names(descriptor)
        else:
            self._files[inode] = Path(f"/proc/self/fd/{descriptor}").read_bytes()

    def close(self) -> None:
        """Let go of the files that were synced."""
        while self._kept:
            os.close(self._kept.popitem()[1])

    def after_power_loss(self, target: Path, generator: random.Random) -> None:
        """Write to `target` what may be left below the root if the power is cut now.

        One time in four that is nothing but what was synced, and one in four all names that there are now, but no
        contents that were not synced.
        """
        now = {_inode(place): place for place in (self.root, *self.root.rglob("*"))}
        lot = generator.random()
        chance_of_names = 0.0 if lot < 1 / 4 else 1.0 if lot < 1 / 2 else 0.5
        chance_of_contents = 0.0 if lot < 1 / 2 else 0.5
        self._write_folder(_inode(self.root), target, now, (chance_of_names, chance_of_contents, generator))

    def _write_folder(
        self, inode: Inode, target: Path, now: dict[Inode, Path], chances: tuple[float, float, random.Random]
    ) -> None:
        target.mkdir()
        current: Names = {}
        if inode in now:
            descriptor = os.open(now[inode], os.O_RDONLY)
            current = _names(descriptor)
            os.close(descriptor)
        is_current = chances[2].random() < chances[0]
        for name, (child, is_folder) in sorted((current if is_current else self._folders.get(inode, {})).items()):
            if is_folder:
                self._write_folder(child, target / name, now, chances)
            else:
                (target / name).write_bytes(self._contents(child, now, chances))

    def _contents(self, inode: Inode, now: dict[Inode, Path], chances: tuple[float, float, random.Random]) -> bytes:
        synced = self._files.get(inode, b"")
        if inode not in now or (current := now[inode].read_bytes()) == synced:
            return synced
        if chances[2].random() >= chances[1]:
            return synced
        # What was appended may be there, in part, or as zeros; what was synced before it stays.
        kept = len(synced) if current.startswith(synced) else 0
        tail = current[kept:]
        return current[:kept] + chances[2].choice([tail, tail[: len(tail) // 2], bytes(len(tail))])


def _inode(place: Path) -> Inode:
    about = place.stat()
    return about.st_dev, about.st_ino


def _names(descriptor: int) -> Names:
    found: Names = {}
    for name in os.listdir(descriptor):
        about = os.stat(name, dir_fd=descriptor)
        found[name] = (about.st_dev, about.st_ino), stat.S_ISDIR(about.st_mode)
    return found
