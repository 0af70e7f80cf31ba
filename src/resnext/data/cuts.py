"""Validation cuts that were drawn before: of the same files, sizes, times, labels and groups, with the same seed.

A cut is a function of the images' contents, so as long as no file changed it need not be drawn again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from resnext import durable
from resnext.data import duplicates, fingerprints

VERSION = 1
"""To be raised when other cuts are drawn from the same images."""

KEPT = 64
"""How many cuts are remembered."""

_LENGTH = 32  # bytes of the hash that a file begins with


class Cuts:
    """The remembered cuts of one listing: `columns` are all of it that a cut depends on, as bytes."""

    def __init__(self, count: int, columns: list[bytes], options: dict[str, object]) -> None:
        self._count = count
        versions = [VERSION, duplicates.VERSION, fingerprints.LAYOUT]
        digest = hashlib.sha256(json.dumps([versions, options], sort_keys=True).encode())
        for column in columns:
            digest.update(len(column).to_bytes(8, "little"))
            digest.update(column)
        self.path: Path = durable.cache_directory() / "cuts" / f"{digest.hexdigest()[:32]}.bin"

    def read(self) -> tuple[npt.NDArray[np.bool_], list[str]] | None:
        """Return which rows are for validation, and what was noted; None where it is not known or is damaged."""
        with contextlib.suppress(OSError, ValueError):
            content = self.path.read_bytes()
            head, rest = content[:_LENGTH], content[_LENGTH:]
            packed = (self._count + 7) // 8
            if hashlib.sha256(rest).digest() == head:
                bits = np.unpackbits(np.frombuffer(rest[:packed], np.uint8), count=self._count)
                return bits.astype(np.bool_), json.loads(rest[packed:])
        return None

    def write(self, mask: npt.NDArray[np.bool_], notes: list[str]) -> None:
        """Remember a cut; where that is impossible, it is drawn again the next time."""
        rest = np.packbits(mask).tobytes() + json.dumps(notes).encode()
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            durable.write_bytes(self.path, hashlib.sha256(rest).digest() + rest)
            others = sorted(self.path.parent.glob("*.bin"), key=lambda other: other.stat().st_mtime_ns, reverse=True)
            for other in others[KEPT:]:
                other.unlink(missing_ok=True)
