"""How many images are computed at once, where memory does not hold a whole batch: half of them, and half again.

The gradients of the parts are summed before the one update, so a step learns from the same images with the same
weights. Only batch norm notices: it sees the images of one part at a time.

On a CPU the kernel ends a process that takes too much without an exception. So what two images take is measured before
the first step (VmHWM, the kernel's own account of the peak), and four, eight and so on as long as less than that leaves
the whole batch in doubt; the parts are then such that the whole process stays below a share of the memory there is.
What does not grow with the images, such as gradients, is taken for something that does, so that errs on the safe side.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from resnext import machine
from resnext.errors import UserError
from resnext.training import memory

if TYPE_CHECKING:
    from resnext.training.distributed import Group
    from resnext.training.step import TrainingStep

SHARE = 0.8
"""Of the machine's memory, or its control group's: what all processes of a run on it may take together."""

FEW = 2
"""Images that are measured first, and the fewest that are computed at once: batch norm cannot train on one."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is how torch tells that memory is exhausted: on a GPU a class of its own, on a CPU only words."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def parts(count: int, most: int | None) -> Iterator[slice]:
    """Yield the rows of a batch in parts of `most` images or one fewer, none of a single image (None: all at once)."""
    pieces = 1 if most is None else max(1, min(-(-count // most), count // 2))
    size, more = divmod(count, pieces)
    start = 0
    for piece in range(pieces):
        stop = start + size + (piece < more)
        yield slice(start, stop)
        start = stop


def said(most: int, count: int) -> str:
    """Say what it means that a batch of `count` images is computed in parts of `most`."""
    return (
        f"Batches of {count} images are computed in parts of {most} for want of memory; their gradients are summed, so "
        f"the update is that of the whole batch. Batch norm sees {most} images at a time."
    )


def halved(count: int, most: int | None) -> int:
    """Return half the images that were computed at once; raises UserError where that leaves a single one."""
    now = min(count, most or count)
    if now // 2 < FEW:
        raise UserError(
            f"Memory is exhausted by a part of {now} images. Take a smaller --image-size or another --network, or end "
            "other programs."
        )
    return now // 2


def settle(step: TrainingStep, count: int, group: Group, *, measured: bool = False) -> str | None:
    """Measure what images take on a CPU, and make the step compute fewer than `count` at once where it has to.

    Returns what to tell the user; None where the whole batch fits, and where nothing can be measured (another device
    or system, a compiled network). A number that the recipe or the checkpoint gives is kept, and with `measured` so is
    that there is none. All processes of `group` take the least that one of them needs.
    """
    settled = measured or step.micro_batch is not None or step.recipe.machine.compile == "on"
    if settled or step.device.type != "cpu":
        return None if step.micro_batch is None or step.micro_batch >= count else said(step.micro_batch, count)
    most = _that_fit(step, count, SHARE * machine.memory_bytes() / group.local_size)
    most = min(int(each) for each in group.gather(str(most).encode()))
    if most == count:
        return None
    step.micro_batch = most
    return said(most, count)


def _that_fit(step: TrainingStep, count: int, limit: float) -> int:
    """Return how many of `count` images can be computed at once with the whole process below `limit` bytes."""
    resident = _status("VmRSS")
    if resident is None or not _forget_peak():
        return count
    standing = resident - memory.free_in_heap()
    measured = min(FEW, count)
    while (peak := _peak(step, measured)) is not None:
        taken = peak - standing
        if measured >= count or standing + taken * count / measured <= limit:
            return count
        if peak + taken > limit:  # twice as many images take at most as much again
            break
        measured = min(2 * measured, count)
    else:
        return count
    most = count
    while most > FEW and standing + taken * most / measured > limit:
        most = -(-most // 2)
    return most


def _peak(step: TrainingStep, images: int) -> int | None:
    """Return this process's most memory in bytes during a pass over so many images; None where nobody tells."""
    if not _forget_peak():
        return None
    step.rehearse(images)
    return _status("VmHWM")


def _forget_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status(name: str) -> int | None:
    """Return one of the kernel's figures of this process's memory, in bytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None
