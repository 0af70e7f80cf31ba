"""Checkpoints: `checkpoints/step-N/` with tensors, state and, written last, a manifest of hashes. No pickle."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resnext import durable
from resnext.errors import UserError

TENSORS = "state.safetensors"
STATE = "state.json"
MANIFEST = "manifest.json"
KEEP = 2


@torch.no_grad()
def snapshot(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of these tensors in plain memory, which training cannot change any more: all that it waits for."""
    return {name: torch.empty(value.shape, dtype=value.dtype).copy_(value) for name, value in tensors.items()}


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], state: dict[str, Any]) -> Path:
    """Write one checkpoint below `folder`, read it back, and where its hashes hold remove all but the newest two.

    A crash at any moment leaves the checkpoints that were there, and this one either whole or not at all. One that
    does not read back as it was written takes no other's place.
    """
    from safetensors.torch import save as serialise

    place = folder / f"step-{step}"
    _tidy(folder)
    with durable.new_directory(place) as beside:
        # Written by us: safetensors' own writer tells a full disk by an error that is no OSError.
        plain = {name: value.detach().contiguous().cpu() for name, value in tensors.items()}
        (beside / TENSORS).write_bytes(serialise(plain))
        durable.crash_point("checkpoint-tensors")
        (beside / STATE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
        durable.crash_point("checkpoint-state")
        told = {"step": step, **{name: durable.sha256(beside / name) for name in (TENSORS, STATE)}}
        (beside / MANIFEST).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        durable.crash_point("checkpoint-manifest")
    if _is_whole(place):
        for old in listed(folder)[:-KEEP]:
            durable.crash_point("checkpoint-verified")
            shutil.rmtree(old)
            durable.crash_point("checkpoint-rotated")
    return place


def _tidy(folder: Path) -> None:
    """Put right what a process left that was killed while it wrote: the last whole one counts, the rest goes."""
    for old in folder.glob("step-*.old"):
        if not (place := old.with_suffix("")).exists():
            old.rename(place)
    for left in (*folder.glob("step-*.new"), *folder.glob("step-*.old")):
        shutil.rmtree(left, ignore_errors=True)


def listed(folder: Path) -> list[Path]:
    """Return the checkpoints below `folder`, oldest step first."""
    found = [place for place in folder.glob("step-*") if place.name.removeprefix("step-").isdigit()]
    return sorted(found, key=_number)


def load_newest(
    folder: Path, accepts: Callable[[dict[str, Any]], bool] = lambda state: True
) -> tuple[dict[str, Tensor], dict[str, Any], list[str]] | None:
    """Load the newest checkpoint whose hashes hold and whose state is accepted; None where none was written yet.

    Returns its tensors, its state, and one line for each newer checkpoint that was passed over, with the reason.
    Raises UserError where there are checkpoints and every one is damaged. What is loaded is what was hashed: files are
    read once.
    """
    from safetensors.torch import load

    skipped: list[str] = []
    _tidy(folder)
    for place in reversed(listed(folder)):
        try:
            tensors, state = _read(place)
        except _Damaged as problem:
            skipped.append(f"{place} was passed over: {problem}")
            continue
        told = json.loads(state)
        if accepts(told):
            return load(tensors), told, skipped
    if skipped:
        raise UserError("\n".join([*skipped[:2], "No checkpoint is whole. Start a new run with another --out."]))
    return None


class _Damaged(Exception):
    """What is wrong with a checkpoint, in a few words."""


def _read(place: Path) -> list[bytes]:
    """Return what TENSORS and STATE hold, once that agrees with the manifest; raises _Damaged where it does not."""
    try:
        hashes = _manifest(place)
        contents = [(place / name).read_bytes() for name in (TENSORS, STATE)]
        for name, data in zip((TENSORS, STATE), contents, strict=True):
            if hashlib.sha256(data).hexdigest() != hashes[name]:
                raise _Damaged(f"{name} does not match its hash")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _Damaged(f"incomplete ({type(error).__name__})") from error
    return contents


def _manifest(place: Path) -> dict[str, str]:
    """Return the hashes of a checkpoint's files; raises ValueError for the manifest of another step."""
    told: dict[str, str] = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
    if told.get("step", _number(place)) != _number(place):
        raise ValueError("the manifest of another step")
    return told


def _number(place: Path) -> int:
    return int(place.name.removeprefix("step-"))


def _is_whole(place: Path) -> bool:
    """Whether a checkpoint reads back as it was written, told without holding it in memory."""
    try:
        hashes = _manifest(place)
        return all(durable.sha256(place / name) == hashes[name] for name in (TENSORS, STATE))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False
