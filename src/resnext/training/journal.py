"""The journal of a run: one JSON event a line, appended as it happens."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from resnext import durable
from resnext.journals import Event, read

__all__ = ["Event", "Journal", "Observer", "ignore", "is_finished", "progress", "read"]

Observer = Callable[[Event], None]
FLUSH_SECONDS = 1.0


def ignore(event: Event) -> None:
    """Observe nothing."""


def progress(observer: Observer) -> Callable[[str, int, int], None]:
    """Return a function that tells an observer what is being done, how much is done and of how much."""
    return lambda name, done, total: observer({"event": "progress", "of": name, "done": done, "total": total})


class Journal:
    """Append events to `journal.jsonl`; step events are flushed every second, the others at once.

    Opened again at `step`, it first drops what an interrupted run wrote from that step on, so that a resumed run
    leaves one gapless account.
    """

    def __init__(self, path: Path, *, step: int | None = None) -> None:
        self.path = path
        self._writing = threading.Lock()
        if step is not None and path.exists():
            self._drop_from(step)
        self._file = path.open("a", encoding="utf-8")
        durable.sync_path(path.parent)  # else a file just made may be gone after a power cut, whatever was synced in it
        self._flushed = time.monotonic()

    def _drop_from(self, step: int) -> None:
        kept = [event for event in read(self.path) if event.get("step", -1) < step or event["event"] == "resume"]
        durable.write_text(self.path, "".join(_line(event) for event in kept))

    def sync(self) -> None:
        """Return when everything told until now is on the disk; safe to call from another thread."""
        with self._writing:
            if not self._file.closed:
                self._file.flush()
                os.fsync(self._file.fileno())

    def __call__(self, event: Event) -> None:
        """Append one event; `time` (seconds since 1970) is added where it is missing.

        A "return" to an earlier step takes back what was told from that step on.
        """
        with self._writing:
            if event["event"] == "return":
                self._file.close()
                self._drop_from(event["to_step"])
                self._file = self.path.open("a", encoding="utf-8")
            self._append(event)

    def _append(self, event: Event) -> None:
        self._file.write(_line({**event, "time": event.get("time", round(time.time(), 3))}))
        if event["event"] != "step" or time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._file.flush()
            self._flushed = time.monotonic()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sync()
        self._file.close()


def is_finished(path: Path) -> bool:
    """Whether the journal's run came to its end, and nothing was resumed after it."""
    finished = False
    if path.exists():
        for event in read(path):
            if event["event"] in ("end", "resume"):
                finished = event["event"] == "end"
    return finished


def _line(event: Event) -> str:
    plain = {key: _plain(value) for key, value in event.items()}
    return json.dumps(plain, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """Give a float that JSON cannot hold as text."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
