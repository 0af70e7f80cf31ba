"""What the bits of a run depend on besides its recipe and its data: the place where it is computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from resnext import machine

NAMES = {
    "processor": "processor",
    "flags_sha256": "processor's features",
    "device": "device",
    "torch": "torch build",
    "instructions": "instructions that torch uses",
    "threads": "number of torch's threads",
    "processes": "number of processes",
}
"""What is compared, and what it is called. The number of cores is not: torch's threads stand for it."""


def describe(device: torch.device, processes: int) -> dict[str, Any]:
    """Return what a step's bits depend on here, as it stands in every checkpoint."""
    place = machine.fingerprint()
    return {
        "processor": place["processor"],
        "flags_sha256": place["flags_sha256"],
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "torch": f"{torch.__version__} ({(torch.version.git_version or '')[:12]})",
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "processes": processes,
    }


def differences(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> str | None:
    """Say in one note what differs from where a checkpoint was written, and what that means; None where nothing does.

    Checkpoints of versions that recorded nothing (None) say nothing.
    """
    changed = [
        NAMES[key] + (f" {before[key]} there, {now[key]} here" if key != "flags_sha256" else "")
        for key in NAMES
        if before is not None and key in before and before[key] != now[key]
    ]
    if not changed:
        return None
    more = " Batch norm now sees other parts of each batch." if before and _regrouped(before, now) else ""
    return (
        f"The checkpoint was written elsewhere ({'; '.join(changed)}): the run goes on from the same weights with the "
        f"same images at every step, but rounds otherwise, so it is not bit for bit what it would have been.{more}"
    )


def _regrouped(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    return bool(before.get("processes", now["processes"]) != now["processes"])
