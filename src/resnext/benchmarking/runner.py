"""A contender that is loaded and ready: what its process does when it is told to."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

from resnext.data.preprocessing import Preprocessing

Settings = dict[str, Any]


class Runner(ABC):
    """Runs a network in batches of `batch`, and single images."""

    batch: int

    @abstractmethod
    def stream(self, seconds: float) -> tuple[int, float]:
        """Run batches for at least so many seconds; return how many images that were, and the seconds it took."""

    @abstractmethod
    def one(self) -> None:
        """Run a single image and wait for its logits."""

    @abstractmethod
    def logits(self, pixels: np.ndarray) -> np.ndarray:
        """Map uint8 pixels N×S×S×C to logits N×K."""


def repeat(step: Callable[[], object], images: int, seconds: float) -> tuple[int, float]:
    """Call `step`, which runs so many images, for at least so many seconds; return all images and the seconds."""
    count, started = 0, time.perf_counter()
    while True:
        step()
        count += images
        elapsed = time.perf_counter() - started
        if elapsed >= seconds:
            return count, elapsed


def in_batches(
    run: Callable[[np.ndarray], np.ndarray], pixels: np.ndarray, batch: int, preprocessing: Preprocessing
) -> np.ndarray:
    """Return the logits of a function that takes normalised batches of just one size; the last is padded."""
    pieces = []
    for start in range(0, len(pixels), batch):
        piece = pixels[start : start + batch]
        padding = np.zeros((batch - len(piece), *piece.shape[1:]), np.uint8)
        pieces.append(run(preprocessing.normalise(np.concatenate([piece, padding])))[: len(piece)])
    return np.concatenate(pieces)
