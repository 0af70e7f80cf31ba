"""Vectors that a frozen body makes of images, computed once: an epoch of the classifier alone then reads no image.

Each image's centre crop is passed through the body as validation has it, and its mirror image too where the recipe
mirrors. Other augmentation would need the body again and is left out. The vectors are kept in the user's cache under a
hash of all that decides them, so that a run that goes on, or another one with the same body, finds them.
"""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from torch import nn

from resnext import durable
from resnext.body import Body
from resnext.data import order
from resnext.data.loader import Batch, Loader
from resnext.engine import TorchEngine
from resnext.layers import Network
from resnext.training.journal import Observer

STREAM_OF_MIRRORS = 110  # apart from those of augmentation and torch
BATCH = 32
VERSION = 1


@dataclass(frozen=True)
class Vectors:
    """Vectors float32 N×V×F: of each image of a split as it is, and with V = 2 mirrored; `unreadable` by row."""

    values: NDArray[np.float32]
    unreadable: dict[int, str]


class Precomputed(Loader):
    """Batches of vectors instead of pixels, N×F, in the same order as the loader that it was made from."""

    vectors: Vectors
    flip: float

    @classmethod
    def of(cls, loader: Loader, vectors: Vectors, flip: float) -> Precomputed:
        """Return the loader with vectors in place of images; `flip` is the probability of the mirrored one."""
        made = cls.__new__(cls)
        made.__dict__.update(copy.copy(loader).__dict__)
        made.vectors, made.flip, made.unreadable, made.workers = vectors, flip, {}, 0
        return made

    def _load(self, step: int, draws: NDArray[np.int64], epoch: int | None) -> tuple[Batch, dict[int, str]]:
        indices = draws % len(self.labels)
        failures = {int(index): reason for index in indices if (reason := self.vectors.unreadable.get(int(index)))}
        if failures:
            readable = ~np.isin(indices, list(failures))
            draws, indices = draws[readable], indices[readable]
        view = np.zeros(len(draws), np.int64)
        if epoch is not None and self.vectors.values.shape[1] > 1:
            view = (order.uniforms(self.seed, epoch, draws, 1, stream=STREAM_OF_MIRRORS)[:, 0] < self.flip).astype(int)
        return Batch(indices, self.vectors.values[indices, view], self.labels[indices], step), failures


class EndingEngine:
    """A classifier alone, as an engine from vectors to logits."""

    batch_size = 1024

    def __init__(self, ending: nn.Module, device: torch.device) -> None:
        self.ending, self.device = ending, device

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Map vectors float32 N×F to float32 logits N×K."""
        with torch.inference_mode():
            logits: torch.Tensor = self.ending.eval()(torch.from_numpy(pixels).to(self.device))
        result: np.ndarray = logits.float().cpu().numpy()
        return result


def compute(
    loader: Loader, network: Network, *, mirrored: bool, device: str, precision: str, observer: Observer
) -> Vectors:
    """Return the vectors of a loader's images, from the cache where they are there."""
    file = durable.cache_directory() / "features" / f"{_key(loader, network, mirrored, precision)}.safetensors"
    if (found := _cached(file, len(loader.split))) is not None:
        return found
    engine = TorchEngine(Body(network), loader.preprocessing, device=device, precision=precision, batch_shapes=(BATCH,))
    rows: NDArray[np.float32] | None = None
    for batch in loader.sequential():
        views = [batch.pixels, batch.pixels[:, :, ::-1]] if mirrored else [batch.pixels]
        made = np.stack([engine(np.ascontiguousarray(view)) for view in views], axis=1)
        if rows is None:
            rows = np.zeros((len(loader.split), *made.shape[1:]), np.float32)
        rows[batch.indices] = made
        done = int(batch.indices[-1]) + 1
        observer({"event": "progress", "of": "features", "done": done, "total": len(loader.split)})
    assert rows is not None, "the images were tried before"
    vectors = Vectors(rows, dict(loader.unreadable))
    _keep(file, vectors)
    return vectors


def _key(loader: Loader, network: Network, mirrored: bool, precision: str) -> str:
    """Return a hash of what decides the vectors: the body's weights, what is done to images, and the files."""
    digest = hashlib.sha256()
    facts = [VERSION, mirrored, precision, type(network).__name__, loader.preprocessing.to_dict()]
    digest.update(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in network.state_dict().items():
        digest.update(name.encode() + b"\0" + tensor.detach().cpu().contiguous().numpy().tobytes())
    for index in range(len(loader.split)):
        path = loader.split.path(index)
        try:
            state = path.stat()
        except OSError:
            digest.update(f"{path}\0missing\0".encode())
        else:
            digest.update(f"{path}\0{state.st_size}\0{state.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:32]


def _cached(file: Path, count: int) -> Vectors | None:
    try:
        arrays = load_file(file)
        values, told = arrays["values"], json.loads(arrays["unreadable"].tobytes())
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
    return Vectors(values, {int(index): why for index, why in told.items()}) if len(values) == count else None


def _keep(file: Path, vectors: Vectors) -> None:
    """Put vectors in the cache; where there is no room they are computed again another time."""
    told = np.frombuffer(json.dumps(vectors.unreadable).encode(), np.uint8)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        durable.write_bytes(file, save({"values": vectors.values, "unreadable": told}))
    except OSError:
        return
