"""Where a run's pixels come from: the cache of decoded images where it fits, else the files; and their mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from resnext import durable
from resnext.data import statistics
from resnext.data.cache import open_cache
from resnext.data.loader import Files, Loader, Source
from resnext.data.manifest import Split
from resnext.data.preprocessing import Preprocessing
from resnext.errors import UserError
from resnext.training.distributed import ALONE, Group
from resnext.training.journal import Observer

NAME = "mean_image"  # of the tensor in the file
BATCH = 128


def open_sources(
    splits: Sequence[Split],
    preprocessings: Sequence[Preprocessing],
    *,
    cache_gib: float,
    workers: int,
    observer: Observer,
) -> tuple[list[Source], list[str]]:
    """Return a source for each split, resized by its preprocessing, and what to tell the user about it.

    Splits that are resized alike share a cache, and are read from files together where it does not fit.
    `cache_gib` is the most that all cached pixels may take on the disk, in GiB; 0 reads the files.
    """
    notes: list[str] = []  # said at once, as some explain a wait, and returned for the journal

    def progress(done: int, total: int) -> None:
        observer({"event": "progress", "of": "decoding", "done": done, "total": total})

    def note(text: str) -> None:
        notes.append(text)
        observer({"event": "note", "text": text})

    alike = all(each == preprocessings[0] for each in preprocessings)
    groups = [(splits, preprocessings[0])] if alike else [([s], p) for s, p in zip(splits, preprocessings, strict=True)]
    pixels = [sum(map(len, group)) * preprocessing.resize**2 for group, preprocessing in groups]
    sources: list[Source] = []
    for number, (group, preprocessing) in enumerate(groups):
        # Each leaves room for those that follow, as a cache makes room for itself by clearing others.
        share = pixels[number] / max(1, sum(pixels[number:]))
        caches = cache_gib > 0 and open_cache(
            group,
            preprocessing,
            budget_bytes=int(share * cache_gib * 2**30),
            workers=workers,
            progress=progress,
            note=note,
        )
        sources += caches or [Files(split, preprocessing) for split in group]
    return sources, notes


def with_mean_image(
    preprocessing: Preprocessing,
    source: Source,
    split: Split,
    file: Path,
    *,
    workers: int,
    observer: Observer,
    group: Group = ALONE,
) -> Preprocessing:
    """Return the preprocessing with the mean image of a source: of the centre crops of all that can be read.

    The first process of `group` measures it once and keeps it in `file`. Raises UserError where that is damaged or no
    image can be read.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load, save

    def measured() -> bytes:
        if not file.is_file():
            loader = Loader(source, split, preprocessing, batch_size=BATCH, workers=workers)
            image = statistics.mean_image(_pixels(loader, observer))
            durable.write_bytes(file, save({NAME: image}))
        return file.read_bytes()

    try:
        return preprocessing.with_mean_image(load(group.agree(measured))[NAME])
    except (SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{file} is damaged. Remove it, and it is measured again.") from error


def _pixels(loader: Loader, observer: Observer) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield the pixels N×S×S×C of a loader's batches and tell how many images are done."""
    total = len(loader.split)
    for batch in loader.sequential():
        yield batch.pixels.astype(np.uint8, copy=False)  # which they are, not augmented
        done = min(total, (batch.step + 1) * loader.batch_size)
        observer({"event": "progress", "of": "measuring the mean image", "done": done, "total": total})
