"""How long does a run take to know its images? The first scan of a million files, and the second.

    python benchmarks/manifest.py [--files 1000000] [--classes 1000] [--folder DIR]

Tiny PNG files, each of other bytes, in a folder a class; they are generated where DIR does not hold them yet, and stay
there. Without DIR they lie in a temporary folder. The first scan lists the files, reads all of them, looks for copies,
exact and near, and cuts a validation split; the second lists them again, size and modification time of every file, and
finds nothing changed; the third finds one file replaced, and reads it. Each is a process of its own; their cache is
removed at the end. Goal: the second in 15 s or less on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
from environment import print_environment

SIDE = 8

SCAN = """
import json, resource, sys, time
import pyarrow
from resnext.data.manifest import scan
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
started, worked = time.perf_counter(), time.process_time()
manifest = scan(sys.argv[1])
seconds, worked = time.perf_counter() - started, time.process_time() - worked
rows = len(manifest.table)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"seconds": seconds, "worked": worked, "images": rows, "kept": manifest.table.nbytes / rows,
                  "peak": (peak - before) * 1024 / rows, "hash": manifest.content_hash(), "notes": manifest.notes}))
"""


def png(pixels: bytes) -> bytes:
    """Return a PNG file of 8×8 grey pixels, without compression."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    lines = b"".join(b"\0" + pixels[start : start + SIDE] for start in range(0, SIDE * SIDE, SIDE))
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines, 0)) + chunk(b"IEND", b"")


def generate(folder: Path, files: int, classes: int) -> None:
    """Write the files, each drawn by its number; a folder that is complete is left as it is."""
    done = folder / f".complete-{files}-{classes}"
    if done.exists():
        return
    started = time.perf_counter()
    for number in range(classes):
        place = folder / f"class {number}"
        place.mkdir(parents=True, exist_ok=True)
        count = files // classes + (number < files % classes)
        drawn = np.random.default_rng(number).integers(0, 256, (count, SIDE * SIDE), dtype=np.uint8)
        for file, pixels in enumerate(drawn):
            (place / f"{file}.png").write_bytes(png(pixels.tobytes()))
    done.touch()
    print(f"{files:,} files were written in {time.perf_counter() - started:.0f} s.")


def scanned(folder: Path, cache: Path) -> dict[str, object]:
    """Scan in a process of its own."""
    environment = {**os.environ, "RESNEXT_CACHE": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", SCAN, str(folder)], capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode:
        sys.exit(done.stderr)
    told: dict[str, object] = json.loads(done.stdout)
    return told


def main() -> None:
    """Generate, scan three times, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    print_environment()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch) / "files"
        generate(folder, options.files, options.classes)
        print("scan                 seconds   processor seconds   kept bytes/image   peak bytes/image")
        told = []
        for name in ("first", "second", "one file replaced"):
            if name == "one file replaced":
                changed = folder / "class 0" / "0.png"
                kept = changed.read_bytes()
                changed.write_bytes(png(bytes(range(SIDE * SIDE))))
            told.append(scanned(folder, Path(scratch) / "cache"))
            row = told[-1]
            print(
                f"{name:20s} {row['seconds']:7.1f}   {row['worked']:17.1f}   {row['kept']:16.0f}   {row['peak']:16.0f}"
            )
        changed.write_bytes(kept)
        if told[0]["hash"] != told[1]["hash"]:
            sys.exit("The second scan's manifest is not the first one's.")
        print("; ".join(map(str, told[1]["notes"])))


if __name__ == "__main__":
    main()
