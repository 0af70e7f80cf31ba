"""What the stopwatch chose on this machine, kept in the user's cache: the same network is not timed twice.

A choice holds for one kind of processor, the versions of the libraries, one network with its options, one image size
and one precision; the weights do not matter to it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from resnext import durable, machine
from resnext.bundle import Bundle
from resnext.inference.options import Option
from resnext.inference.tuning import SEARCH, Choice

PACKAGES = ("resnext", "torch", "openvino")


def place_of(bundle: Bundle, precision: str, engines: Sequence[str]) -> Path:
    """Return the file in the cache that a choice for this bundle, among engines so named, is kept in."""
    contents, versions = bundle.contents, machine.software()
    about = {
        "machine": machine.fingerprint(),
        "software": {name: versions.get(name) for name in PACKAGES},
        "network": [contents.network, contents.options, len(contents.classes)],
        "input": [contents.preprocessing.image_size, contents.preprocessing.channels],
        "precision": precision,
        "engines": list(engines),
        "search": SEARCH,
    }
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:24]
    return durable.cache_directory() / "tuning" / f"{key}.json"


def recall(place: Path) -> Choice | None:
    """Return the choice that is kept in a file; None where there is none, or it cannot be read."""
    try:
        told = json.loads(place.read_text(encoding="utf-8"))
        return replace(_choice(told), remembered=True)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def remember(place: Path, choice: Choice) -> None:
    """Keep a choice; where the cache cannot be written, the next time it is made again."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        durable.write_text(place, json.dumps(asdict(choice), indent=2) + "\n")
    except OSError:
        return


def _choice(told: dict[str, Any]) -> Choice:
    option = Option(**told["option"])
    if option.kind not in ("openvino", "torch") or not isinstance(option.settings, dict):
        raise TypeError("this is no choice")
    return Choice(option, float(told["rate"]), float(told["plain_rate"]), tuple(told["tried"]))
