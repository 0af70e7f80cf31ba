"""What a run's journal says: one JSON event a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Event = dict[str, Any]


def read(path: Path) -> Iterator[Event]:
    """Yield the events of a journal; a last line that a crash cut short is left out."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                event = json.loads(line)
            except (json.JSONDecodeError, RecursionError):
                continue
            if isinstance(event, dict) and "event" in event and type(event.get("step", 0)) is int:
                yield event
