"""Results that can be had again, kept in the user's cache: a file each, behind the hash of its content."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from resnext import durable

KEPT = 64
"""How many results of a kind, files in one folder, are remembered; those written longest ago make room."""

_LENGTH = 32  # bytes of the hash that a file begins with


def read(path: Path) -> bytes | None:
    """Return what `write` was given; None where there is nothing, or something damaged."""
    with contextlib.suppress(OSError):
        content = path.read_bytes()
        if hashlib.sha256(content[_LENGTH:]).digest() == content[:_LENGTH]:
            return content[_LENGTH:]
    return None


def write(path: Path, content: bytes) -> None:
    """Remember a result; where that is impossible, it is worked out again the next time."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        durable.write_bytes(path, hashlib.sha256(content).digest() + content)
        others = sorted(path.parent.glob(f"*{path.suffix}"), key=lambda other: other.stat().st_mtime_ns, reverse=True)
        for other in others[KEPT:]:
            other.unlink(missing_ok=True)
