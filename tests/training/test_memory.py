"""Freed memory is kept within the block and given back behind it: page faults and size of a process of its own."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

from resnext.training import memory

PROGRAM = """
import contextlib, resource, sys
import numpy as np
from resnext.training import memory

def size():
    with open("/proc/self/statm") as told:
        return int(told.read().split()[1]) * resource.getpagesize() >> 20

def step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [np.full(2**23, 1.0) for _ in range(3)]  # 64 MiB each
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

start = size()
with memory.kept(sys.argv[1]):
    first, later = step(), [step() for _ in range(3)]
    held = size() - start
print(first, max(later), held, size() - start)
"""

only_glibc = pytest.mark.skipif(memory._glibc() is None, reason="glibc's malloc alone has these settings")


def measured(device: str, **environment: str) -> tuple[int, int, int, int]:
    """Return page faults of the first step and of later ones, and MiB held within the block and behind it."""
    command = [sys.executable, "-c", PROGRAM, device]
    told = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **environment})
    first, later, held, left = map(int, told.stdout.split())
    return first, later, held, left


@only_glibc
def test_on_a_cpu_pages_are_taken_once_and_given_back_at_the_end() -> None:
    first, later, held, left = measured("cpu")
    assert first > 60  # 192 MiB in pages of 2 MiB at most
    assert later < 10
    assert held > 180
    assert left < 20


@only_glibc
@pytest.mark.parametrize(("device", "environment"), [("cuda", {}), ("cpu", {"MALLOC_TRIM_THRESHOLD_": "131072"})])
def test_elsewhere_and_where_the_user_decided_nothing_changes(device: str, environment: dict[str, str]) -> None:
    _, later, held, _ = measured(device, **environment)
    assert later > 60
    assert held < 20


def test_without_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    monkeypatch.setattr(memory, "_set", None)
    with memory.kept("cpu"):
        pass


def test_the_settings_are_put_back_when_the_run_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []

    class Library:
        def mallopt(self, option: int, value: int) -> int:
            told.append((option, value))
            return 1

        def malloc_trim(self, pad: int) -> int:
            told.append("trim")
            return 1

    monkeypatch.setattr(memory, "_glibc", Library)
    monkeypatch.setattr(memory, "_chosen_by_user", lambda: False)
    with pytest.raises(OSError, match="full"), memory.kept("cpu"):
        raise OSError("full")
    assert told == [(-4, 0), (-1, -1), (-4, 65_536), (-3, 32 * 2**20), (-1, 64 * 2**20), "trim"]


@only_glibc
def test_glibc_takes_the_numbers() -> None:
    """`mallopt` returns 1 for a setting that it knows."""
    program = (
        "import ctypes; from resnext.training import memory as m; libc = ctypes.CDLL(None);"
        "print([libc.mallopt(*each) for options in (m.KEEP, m.AS_BEFORE) for each in options.items()])"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[1, 1, 1, 1, 1]"
    assert ctypes.sizeof(ctypes.c_long) == 8
