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
from resnext.data import duplicates, fingerprints, remembered

VERSION = 1
"""To be raised when other cuts are drawn from the same images."""


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
        content, packed = remembered.read(self.path), (self._count + 7) // 8
        with contextlib.suppress(ValueError):
            if content is not None:
                bits = np.unpackbits(np.frombuffer(content[:packed], np.uint8), count=self._count)
                return bits.astype(np.bool_), json.loads(content[packed:])
        return None

    def write(self, mask: npt.NDArray[np.bool_], notes: list[str]) -> None:
        """Remember a cut; where that is impossible, it is drawn again the next time."""
        remembered.write(self.path, np.packbits(mask).tobytes() + json.dumps(notes).encode())
