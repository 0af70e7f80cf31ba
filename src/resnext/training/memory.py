"""Freed memory stays with the process while it trains on a CPU, instead of going to the kernel and coming back.

Every step allocates its activations and frees them. glibc's malloc takes large blocks from the kernel one by one
(mmap), gives each back when it is freed, and gives the end of its heap back as well; what the kernel hands out next
it first fills with zeros, page by page, at every step anew. With no mmap and no trimming the blocks come out of one
heap, and from the second step on out of pages that are there already.

What it costs: until the run ends the process stays as large as its largest step made it, also during validation,
whose smaller blocks come out of the same heap. Gaps between blocks that live on are lost until their neighbours are
freed: a CIFAR ResNeXt-20 8x8d with batches of 128 in bf16 grew to 2.3 GB instead of 1.8, in its first four steps; equal
steps ask for equal blocks, and it grew no further. Nothing is padded in advance (M_TOP_PAD), as only the first steps
make the heap grow.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

# mallopt's numbers, from glibc's malloc.h.
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4

KEEP = {MMAP_MAX: 0, TRIM_THRESHOLD: -1}
"""No block of its own from the kernel, and no end of the heap back to it."""

AS_BEFORE = {MMAP_MAX: 65_536, MMAP_THRESHOLD: 32 * 2**20, TRIM_THRESHOLD: 64 * 2**20}
"""Where glibc's thresholds, which it adjusts until a program sets one, come to rest in a process with large blocks.

Its initial ones (128 KiB both) would now stay as they are, and make every later pass in this process slower than
one before the run."""

CHOSEN_BY_USER = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


@contextmanager
def kept(device: str) -> Iterator[None]:
    """Keep freed memory within this block where `device` is "cpu", and give it back at its end.

    Nothing happens on other devices, without glibc, and where the environment says how malloc is to work
    (`MALLOC_…_`, `GLIBC_TUNABLES`).
    """
    libc = _glibc() if device == "cpu" and not _chosen_by_user() else None
    if libc is None:
        yield
        return
    _set(libc, KEEP)
    try:
        yield
    finally:
        _set(libc, AS_BEFORE)
        libc.malloc_trim(0)


class _Heap(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    )


def free_in_heap() -> int:
    """Return the bytes that this process holds and nothing in it uses; 0 where that is not known."""
    libc = _glibc()
    if libc is None or not hasattr(libc, "mallinfo2"):
        return 0
    libc.mallinfo2.restype = _Heap
    return int(libc.mallinfo2().fordblks)


def _glibc() -> ctypes.CDLL | None:
    """Return the C library of this process if it is glibc."""
    if os.name != "posix":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None


def _chosen_by_user() -> bool:
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    return "glibc.malloc" in tunables or any(name in os.environ for name in CHOSEN_BY_USER)


def _set(libc: ctypes.CDLL, options: dict[int, int]) -> None:
    for option, value in options.items():
        libc.mallopt(option, value)
