"""What this machine is and has, told without importing torch."""

from __future__ import annotations

import hashlib
import os
import platform
from functools import lru_cache
from pathlib import Path

RECORDED_PACKAGES = ("resnext", "torch", "torchvision", "numpy", "pillow", "openvino")


def cores() -> int:
    """Return how many processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int:
    """Return the memory this process may use: the machine's, or its control group's where that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        return min(total, int(text))
    return total


@lru_cache(maxsize=1)
def processor_flags() -> frozenset[str]:
    """Return the processor's feature flags as the kernel names them; empty where it does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(
        next((line.split(":", 1)[1].split() for line in lines if line.startswith(("flags", "Features"))), ())
    )


def processor() -> str:
    """Return the processor's model name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def has_fast_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 in hardware, so that bf16 is faster than fp32."""
    return bool({"amx_bf16", "avx512_bf16", "bf16"} & processor_flags())


def fingerprint() -> dict[str, object]:
    """Return what timings are true for: processor, cores, and a hash of the processor's flags (or of its name)."""
    flags = sorted(processor_flags()) or [platform.machine(), processor()]
    digest = hashlib.sha256(" ".join(flags).encode()).hexdigest()
    return {"processor": processor(), "cores": cores(), "flags_sha256": digest}


def description() -> dict[str, object]:
    """Return the machine as it is recorded beside results: processor, cores, memory in GiB, system."""
    return {
        "processor": processor(),
        "cores": cores(),
        "memory_gib": round(memory_bytes() / 2**30, 1),
        "system": platform.platform(terse=True),
    }


def software() -> dict[str, str]:
    """Return the versions that results depend on: Python and the packages that are installed."""
    from importlib import metadata  # here, as it takes longer to import than the rest of the module does to run

    versions = {"python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
