"""What do translating and loading weights cost, beyond reading their file?

    python benchmarks/weights_loading.py [--network resnext101_64x4d] [--rounds 5]

Torchvision's network is built with random weights and saved in its own file format, and as safetensors. By turns, in
one process: the file is read (`torch.load(weights_only=True)`, `safetensors.torch.load_file`), and
`resnext.create(NETWORK, weights=FILE)` builds ours from it, from reading to the last tensor, a .pth in a process of its
own. Prints medians, and the difference.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from environment import print_environment
from safetensors.torch import load_file, save_file

import resnext


def seconds(work: Callable[[], object]) -> float:
    """Return how long something takes; its result is dropped after the clock is read."""
    gc.collect()
    began = time.perf_counter()
    kept = work()
    taken = time.perf_counter() - began
    del kept
    return taken


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnext101_64x4d")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print_environment()
    with tempfile.TemporaryDirectory() as folder:
        pickled, safe = Path(folder) / "weights.pth", Path(folder) / "weights.safetensors"
        state = getattr(torchvision.models, options.network)(weights=None).state_dict()
        torch.save(state, pickled)
        save_file(state, safe)
        size = pickled.stat().st_size / 1e6
        readers: dict[Path, Callable[[], object]] = {
            pickled: lambda: torch.load(pickled, weights_only=True),
            safe: lambda: load_file(safe),
        }
        print(f"\n{options.network}, {size:.0f} MB\n")
        print("| file | reading, s | ours, s | beyond reading, s |\n|---|---|---|---|")
        for file, reader in readers.items():
            reading, whole = [], []
            for _ in range(options.rounds + 1):
                reading.append(seconds(reader))
                whole.append(seconds(lambda file=file: resnext.create(options.network, weights=str(file))))  # type: ignore[misc]
            # The first round also imports and fills the page cache.
            ours, theirs = statistics.median(whole[1:]), statistics.median(reading[1:])
            print(f"| {file.suffix} | {theirs:.2f} | {ours:.2f} | {ours - theirs:.2f} |", flush=True)


if __name__ == "__main__":
    main()
