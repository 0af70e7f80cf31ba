"""What do checkpoints cost a run, and how soon is a resumed one at its first step?

    python benchmarks/checkpoints.py [--network resnext50_32x4d] [--image-size 224] [--batch-size 16] [--rounds 5]
        [--ema]

Two lanes in turn, in one process: as many steps as a checkpoint takes to be written beside them, and as many without.
A checkpoint is what `resnext train` makes: weights, optimiser's state and, with `--ema`, the moving average, copied,
then hashed, written, synced, read back and rotated beside the training. The cost is what the steps with a
checkpoint take longer, copy included; at one a minute it is that share of a minute.

Then a run with the same network is stopped, and `resnext train --resume` started as a process of its own: seconds from
the end of its imports, and from its start, to the end of its first step.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from itertools import count
from pathlib import Path
from typing import Any

import torch
from environment import print_environment

import training
from resnext.training.background import Background
from resnext.training.plan import Wish, plan
from resnext.training.run import train
from resnext.training.session import Session
from resnext.training.stopping import Interrupted

PHOTOS = 256
MINUTE = 60.0

RESUME = """
import json, sys, time
started = time.time()
import resnext.training.session
from resnext.training.run import train
imported = time.perf_counter()

def watch(event):
    if event["event"] == "step":
        print(json.dumps([time.perf_counter() - imported, time.time() - float(sys.argv[3]), event["compute_seconds"]]))
        sys.stdout.flush()
        import os
        os._exit(0)

train(sys.argv[1], out=sys.argv[2], resume=True, observer=watch)
"""


def fields_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the recipe's fields for both measurements."""
    return {
        "network": options.network,
        "image_size": options.image_size,
        "resize": options.image_size * 256 // 224,
        "batch_size": options.batch_size,
        "epochs": 50,
        **({"ema_decay": 0.999} if options.ema else {}),
    }


def measure_saving(photos: Path, scratch: Path, options: argparse.Namespace) -> None:
    """Time steps with and without a checkpoint that is written beside them."""
    with Background() as background:
        planned = plan(photos, wish=Wish(scratch / "saving"), recipe=None, fields=fields_of(options))
        session = Session(planned, lambda event: None, background=background)
        session.step.network.train()
        feed, numbers = training.endless(session.train_loader.epoch), count()

        def step() -> float:
            started = time.perf_counter()
            session.step(next(feed), 0, next(numbers), 0.01)
            return time.perf_counter() - started

        for _ in range(3):
            step()
        session.checkpoints.save(1, session.position)
        background.wait()
        alone = statistics.median(step() for _ in range(3))
        rounds, steps = [], 0
        for number in range(options.rounds):
            waited = session.checkpoints.save(2 + number, session.position)
            done, seconds = threading.Event(), [step()]
            background.submit(done.set)
            while not done.is_set():
                seconds.append(step())
            without = sum(step() for _ in seconds)
            rounds.append((waited + sum(seconds) - without, waited))
            steps = max(steps, len(seconds))
    size = sum(file.stat().st_size for file in (planned.checkpoints / f"step-{1 + options.rounds}").iterdir())
    costs, waits = zip(*rounds, strict=True)
    cost = statistics.median(costs)
    print(f"\n{options.network}, {options.image_size} px, batches of {options.batch_size}: {alone:.3f} s a step")
    print(f"a checkpoint has {size / 1e6:.0f} MB and is on the disk after {session.checkpoints.seconds:.2f} s")
    print(f"training waits for its copy {statistics.median(waits):.3f} s ({min(waits):.3f} to {max(waits):.3f})")
    print(
        f"in all it costs {cost:.3f} s ({min(costs):.3f} to {max(costs):.3f}; {len(costs)} times, up to {steps} steps)"
    )
    print(f"at one a minute: {cost / MINUTE:.2%} (wanted 2 %)")


def measure_resuming(photos: Path, scratch: Path, options: argparse.Namespace) -> None:
    """Time how soon a resumed run is through its first step."""
    place = scratch / "resuming"

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 3:
            raise KeyboardInterrupt

    with contextlib.suppress(Interrupted):
        train(photos, out=place, observer=stop, checkpoint_every=1e-6, **fields_of(options))
    rows = []
    for _ in range(options.rounds):
        line = [sys.executable, "-c", RESUME, str(photos), str(place), str(time.time())]
        done = subprocess.run(line, capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout))
    after, whole, compute = (statistics.median(column) for column in zip(*rows, strict=True))
    print(f"\nresumed: first step done {after:.2f} s after imports (wanted 5), {whole:.2f} s after the process's start")
    print(f"of that the step itself, the first one in its process: {compute:.2f} s")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--network", default="resnext50_32x4d")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ema", action="store_true")
    options = parser.parse_args()
    print_environment()
    print(f"{torch.get_num_threads()} threads of torch")
    with tempfile.TemporaryDirectory() as folder:
        photos = training.write_photos(Path(folder) / "photos", PHOTOS)
        measure_saving(photos, Path(folder), options)
        measure_resuming(photos, Path(folder), options)


if __name__ == "__main__":
    main()
