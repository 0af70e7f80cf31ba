"""What the contenders share: a scratch folder with the bundle's place, the images, and what each prepared."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from resnext.bundle import Bundle

CALIBRATION, CHECK, REFERENCE = "calibration.npy", "check.npy", "reference.npy"


@dataclass(frozen=True)
class Place:
    """Where a benchmark works, and under which limits; told to every process as JSON.

    `folder` is the scratch folder, `bundle` the bundle that is run, `batches` the batch sizes that may be tried,
    `threads` how many threads a contender may use, `seconds` how long a turn lasts, and `minutes` how long ours may
    tune for one precision.
    """

    folder: str
    bundle: str
    batches: tuple[int, ...]
    threads: int
    seconds: float
    minutes: float

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON holds; `from_dict` is the way back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, told: dict[str, Any]) -> Place:
        """Build from what `to_dict` gave."""
        return cls(**(told | {"batches": tuple(told["batches"])}))

    def open(self) -> Bundle:
        """Open the bundle."""
        return Bundle.open(self.bundle)

    def batches_and_streams(self) -> list[dict[str, Any]]:
        """Return the settings that contenders with streams try: every batch size in one stream, and in one a thread."""
        return [{"batch": batch, "streams": count} for batch in self.batches for count in sorted({1, self.threads})]

    def file(self, name: str) -> Path:
        """Return where a file of the scratch folder is."""
        return Path(self.folder) / name

    def pixels(self, name: str, count: int | None = None) -> np.ndarray:
        """Return uint8 pixels N×S×S×C of a file, repeated or cut to `count` images where that is given."""
        stored: np.ndarray = np.load(self.file(name), mmap_mode="r")
        return np.array(stored if count is None else stored[np.arange(count) % len(stored)])

    def inputs(self, count: int) -> np.ndarray:
        """Return `count` images as peers take them: normalised float32 N×C×S×S."""
        return self.open().contents.preprocessing.normalise(self.pixels(CHECK, count))
