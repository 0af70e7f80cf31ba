"""Compile a C++ file of this package for this machine at its first use, keep the library, and load it."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from resnext import durable, machine

COMPILERS = ("c++", "g++", "clang++")
SECONDS = 120
# Nothing here changes what an operation gives: NaN, Inf and the order of sums stay as the source has them.
FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-fopenmp-simd",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-fPIC",
    "-shared",
)


class BuildError(Exception):
    """Why there is no library, in words for the user."""


def load(source: Path) -> ctypes.CDLL:
    """Return the library that `source` compiles to; from the cache where it was compiled before.

    The cache is `kernels/` in the user's cache directory. A library's name ends in the hash of its content: one
    that is damaged is known before it is loaded, and built anew, and processes that build at once do not meet.
    Raises BuildError where there is no compiler, it fails, or the cache cannot be written.
    """
    compiler = find_compiler()
    flags = [*FLAGS, *(["-mprefer-vector-width=512"] if "avx512f" in machine.processor_flags() else [])]
    key = _key(source, compiler, flags)
    directory = durable.cache_directory() / "kernels"
    try:
        path = _stored(directory, key) or _build(source, [*compiler, *flags], directory, key)
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise BuildError(f"the compiled kernel cannot be kept in {directory} or loaded from it ({error})") from error


def find_compiler() -> list[str]:
    """Return the system's C++ compiler as a command: `$CXX`, or the first of c++, g++ and clang++.

    Raises BuildError where there is none.
    """
    if chosen := os.environ.get("CXX", "").split():
        return chosen
    found = next(filter(None, map(shutil.which, COMPILERS)), None)
    if found is None:
        raise BuildError(f"there is no C++ compiler: none of {', '.join(COMPILERS)}, and CXX names none")
    return [found]


def _key(source: Path, compiler: list[str], flags: list[str]) -> str:
    """Return a hash of all that the library depends on."""
    version = _run([*compiler, "--version"])
    about = (source.read_text(encoding="utf-8"), version, " ".join(sorted(machine.processor_flags())), " ".join(flags))
    return hashlib.sha256("\0".join(about).encode()).hexdigest()[:16]


def _stored(directory: Path, key: str) -> Path | None:
    """Return the stored library of this key; one whose content is not what its name says is removed."""
    for path in sorted(directory.glob(f"{key}-*.so")):
        if path.stem.split("-")[1] == durable.sha256(path):
            return path
        path.unlink(missing_ok=True)
    return None


def _build(source: Path, command: list[str], directory: Path, key: str) -> Path:
    """Compile beside, and rename: other processes see the whole library or none."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=directory) as scratch:
        library = Path(scratch) / "library.so"
        _run([*command, str(source), "-o", str(library)])
        if not library.is_file():
            raise BuildError(f"{command[0]} wrote no library")
        durable.sync_path(library)
        return library.replace(directory / f"{key}-{durable.sha256(library)}.so")


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"the compiler {command[0]} does not run ({error})") from error
    if done.returncode:
        lines = done.stderr.splitlines()
        said = next((line for line in lines if "error" in line), next(iter(lines), "it does not say why"))
        raise BuildError(f"the compiler {command[0]} fails: {said}")
    return done.stdout
