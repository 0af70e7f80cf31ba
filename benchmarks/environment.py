"""Where benchmarks run, and the data they run on."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from resnext import machine


def cifar10_place(scratch: Path) -> Path:
    """Return CIFAR-10 as image folders: RESNEXT_CIFAR10, unpacked below `scratch` where it is a zip."""
    place = os.environ.get("RESNEXT_CIFAR10")
    if not place or not Path(place).exists():
        sys.exit("Set RESNEXT_CIFAR10 to CIFAR-10 as image folders (train/CLASS/*.jpg), or to a zip of them.")
    if Path(place).is_dir():
        return Path(place)
    with zipfile.ZipFile(place) as archive:
        archive.extractall(scratch)
    return next(path.parent for path in scratch.rglob("train") if path.is_dir())


def print_environment() -> None:
    """Print machine, versions and commit, which every published figure names."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    about = machine.description()
    versions = machine.software()
    print(
        f"{about['processor']}, {about['cores']} cores, {about['memory_gib']} GiB; Python {versions['python']}, "
        f"torch {versions['torch']}, torchvision {versions['torchvision']}; "
        f"commit {commit.stdout.strip() or 'unknown'}"
    )
