"""Checkpoints: `checkpoints/step-N/` with tensors, state and, written last, a manifest of hashes. No pickle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from resnext import durable
from resnext.errors import UserError

TENSORS = "state.safetensors"
STATE = "state.json"
MANIFEST = "manifest.json"
KEEP = 2


def save(folder: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> Path:
    """Write one checkpoint below `folder`, read it back, and where its hashes hold remove all but the newest two.

    A crash at any moment leaves the checkpoints that were there, and this one either whole or not at all. One that
    does not read back as it was written takes no other's place.
    """
    from safetensors.torch import save as serialise

    place = folder / f"step-{step}"
    for left in (*folder.glob("step-*.new"), *folder.glob("step-*.old")):  # of a process that was killed here
        shutil.rmtree(left, ignore_errors=True)
    with durable.new_directory(place) as beside:
        # Written by us: safetensors' own writer tells a full disk by an error that is no OSError.
        plain = {name: value.detach().contiguous().cpu() for name, value in tensors.items()}
        (beside / TENSORS).write_bytes(serialise(plain))
        (beside / STATE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
        hashes = {name: durable.sha256(beside / name) for name in (TENSORS, STATE)}
        (beside / MANIFEST).write_text(json.dumps(hashes, indent=2) + "\n", encoding="utf-8")
    if _problem(place) is None:
        for old in listed(folder)[:-KEEP]:
            shutil.rmtree(old)
    return place


def listed(folder: Path) -> list[Path]:
    """Return the checkpoints below `folder`, oldest step first."""
    found = [place for place in folder.glob("step-*") if place.name.removeprefix("step-").isdigit()]
    return sorted(found, key=lambda place: int(place.name.removeprefix("step-")))


def load_newest(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any], list[str]] | None:
    """Load the newest checkpoint whose hashes hold; None where none was written yet.

    Returns its tensors, its state, and one line for each newer checkpoint that was passed over, with the reason.
    Raises UserError where there are checkpoints and every one is damaged.
    """
    from safetensors.torch import load_file

    skipped: list[str] = []
    for place in reversed(listed(folder)):
        if problem := _problem(place):
            skipped.append(f"{place} was passed over: {problem}")
            continue
        state = json.loads((place / STATE).read_text(encoding="utf-8"))
        return load_file(place / TENSORS), state, skipped
    if skipped:
        raise UserError("\n".join([*skipped[:2], "No checkpoint is whole. Start a new run with another --out."]))
    return None


def _problem(place: Path) -> str | None:
    try:
        hashes = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
        for name in (TENSORS, STATE):
            if durable.sha256(place / name) != hashes[name]:
                return f"{name} does not match its hash"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"incomplete ({type(error).__name__})"
    return None
