"""What a run's journal says: one JSON event a line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Event = dict[str, Any]


def read(path: Path) -> Iterator[Event]:
    """Yield the events of a journal; a last line that a crash cut short is left out."""
    with path.open(encoding="utf-8", errors="replace") as file:
        yield from events(file)


def events(lines: Iterable[str]) -> Iterator[Event]:
    """Yield the events that lines hold; a line that is none, as a crash leaves one, is left out."""
    for line in lines:
        try:
            event = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            continue
        if isinstance(event, dict) and "event" in event and type(event.get("step", 0)) is int:
            yield event


def epochs(told: Iterable[Event]) -> list[Event]:
    """Return what events say of each epoch, in order, the last word where one is told twice."""
    last = {event["epoch"]: event for event in told if event["event"] == "epoch"}
    return [last[number] for number in sorted(last)]
