"""Tensors from a file that someone else wrote. The only place where a pickle is read, and not in this process.

`torch.load(weights_only=True)` builds tensors and plain containers and nothing else; since it has had holes, it runs in
a child process that has limits on memory and time, and of what it found only tensors come back, as safetensors in a
file without a name.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any

from torch import Tensor

from resnext.errors import UserError

SECONDS = 300.0
"""How long a child may take."""

PICKLES = (".pth", ".pt", ".bin", ".tar")
SAFE = ".safetensors"


def read(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by their names; raises UserError where it holds none, or something else."""
    if not path.is_file():
        raise UserError(f"There is no file {path}. Give a .safetensors or a .pth file.")
    if path.suffix == SAFE:
        return _safe(path)
    if path.suffix in PICKLES:
        return _pickled(path)
    raise UserError(f"{path} is neither a {SAFE} nor a .pth file, and nothing else is read.")


def _safe(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged, or no safetensors file ({error}). Fetch it anew.") from error
    return tensors


def _pickled(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    with path.open("rb") as file, _nameless() as result:
        line = [sys.executable, "-I", str(Path(__file__).with_name("child.py")), str(result.fileno())]
        options: dict[str, Any] = {"pass_fds": (result.fileno(),), "timeout": SECONDS}
        try:
            told = subprocess.run(line, stdin=file, capture_output=True, text=True, check=False, **options)
        except subprocess.TimeoutExpired as error:
            raise UserError(f"{path} is not read: that took more than {SECONDS:.0f} s.") from error
        if told.returncode:
            raise UserError(f"{path} is not read: {_reason(told)}.\nTake the weights as a {SAFE} file.")
        # The file has no name, but each process that has it open has one for it.
        tensors: dict[str, Tensor] = load_file(f"/dev/fd/{result.fileno()}")
        return tensors


def _nameless() -> IO[bytes]:
    """Return a new file without a name: in memory where the system has such files, which is faster than a disk."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("tensors"), "w+b")
    return tempfile.TemporaryFile()


def _reason(told: subprocess.CompletedProcess[str]) -> str:
    """Return what a child said, or how it ended."""
    last = told.stderr.strip().splitlines()[-1:] or [f"the process that read it ended with {told.returncode}"]
    return last[0].rstrip(".")
