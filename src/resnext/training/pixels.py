"""Where a run's pixels come from: the cache of decoded images where it fits, else the files."""

from __future__ import annotations

from collections.abc import Sequence

from resnext.data.cache import open_cache
from resnext.data.loader import Files, Source
from resnext.data.manifest import Split
from resnext.data.preprocessing import Preprocessing
from resnext.training.journal import Observer


def open_sources(
    splits: Sequence[Split], preprocessing: Preprocessing, *, cache_gib: float, workers: int, observer: Observer
) -> tuple[list[Source], list[str]]:
    """Return a source for each split, all of the same kind, and what to tell the user about it.

    `cache_gib` is the most that all cached pixels may take on the disk, in GiB; 0 reads the files.
    """
    notes: list[str] = []  # said at once, as some explain a wait, and returned for the journal
    if cache_gib > 0:

        def progress(done: int, total: int) -> None:
            observer({"event": "progress", "of": "decoding", "done": done, "total": total})

        def note(text: str) -> None:
            notes.append(text)
            observer({"event": "note", "text": text})

        caches = open_cache(
            splits,
            preprocessing,
            budget_bytes=int(cache_gib * 2**30),
            workers=workers,
            progress=progress,
            note=note,
        )
        if caches is not None:
            return list(caches), notes
    return [Files(split, preprocessing) for split in splits], notes
