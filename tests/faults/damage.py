"""What happens to files: bits flip, ends are lost, pages come back as zeros, files go or take each other's place."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

PAGE = 4096

GARBAGE = [b"", b"{}", b"[]", b"null", b"\xff\xfe\x00", b"[" * 200_000, b'{"state.json": 1, "state.safetensors": []}']
"""What may stand where a manifest should: nothing, other JSON, no text, JSON too deep to be read."""


def flip(file: Path, generator: random.Random) -> str:
    """Flip one bit."""
    data = bytearray(file.read_bytes())
    bit = generator.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)
    return f"bit {bit} of {file.name} flipped"


def truncate(file: Path, generator: random.Random) -> str:
    """Lose the end."""
    data = file.read_bytes()
    length = generator.randrange(len(data))
    file.write_bytes(data[:length])
    return f"{file.name} cut to {length} of {len(data)} bytes"


def zero(file: Path, generator: random.Random) -> str:
    """Set a page, or what there is of it, to zeros; one that held something else."""
    data = bytearray(file.read_bytes())
    pages = [at for at in range(0, len(data), PAGE) if any(data[at : at + PAGE])]
    at = generator.choice(pages)
    data[at : at + PAGE] = bytes(len(data[at : at + PAGE]))
    file.write_bytes(data)
    return f"the page of {file.name} at byte {at} zeroed"


def lengthen(file: Path, generator: random.Random) -> str:
    """Add to the end what was never written."""
    with file.open("ab") as opened:
        opened.write(generator.randbytes(generator.randint(1, PAGE)))
    return f"{file.name} lengthened"


def remove(file: Path, generator: random.Random) -> str:
    """Remove it."""
    file.unlink()
    return f"{file.name} removed"


Damage = Callable[[Path, random.Random], str]
TO_A_FILE: tuple[Damage, ...] = (flip, truncate, zero, lengthen, remove)


def swap(first: Path, second: Path) -> str:
    """Let two files take each other's place."""
    between = first.with_name(first.name + ".between")
    shutil.move(first, between)
    shutil.move(second, first)
    shutil.move(between, second)
    return f"{first.parent.name}/{first.name} and {second.parent.name}/{second.name} swapped"


def garbage(file: Path, generator: random.Random) -> str:
    """Replace a text by what is none of it."""
    number = generator.randrange(len(GARBAGE))
    file.write_bytes(GARBAGE[number])
    return f"{file.name} replaced by {GARBAGE[number][:20]!r}"
