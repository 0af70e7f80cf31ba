"""The process of one contender: takes requests as lines of JSON, answers with lines of JSON, and waits in between.

Run as `python -m resnext.benchmarking.worker`. It ends when its input does. Whatever libraries print goes to stderr.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from types import ModuleType
from typing import Any

import numpy as np

from resnext.benchmarking.contenders import Contender
from resnext.benchmarking.place import CHECK, Place
from resnext.benchmarking.runner import Runner, Settings
from resnext.errors import UserError

MODULES = {
    "ours": "ours",
    "eager": "torch_peers",
    "compile": "torch_peers",
    "onnxruntime": "onnxruntime_peer",
    "openvino": "openvino_peer",
}
WINDOWS = 2
"""How often each of several settings is timed; the best counts."""


class Worker:
    """What a contender's process can be asked to do; every method takes and gives what JSON holds."""

    def __init__(self) -> None:
        self.runner: Runner | None = None

    def subject(self, what: str, folder: str, **options: Any) -> dict[str, Any]:
        """Put the subject into a scratch folder, as `subject.prepare` does."""
        from resnext.benchmarking import subject

        return subject.prepare(what, Path(folder), **options)

    def prepare(self, contender: dict[str, str], place: dict[str, Any]) -> dict[str, Any]:
        """Do what has to be done once, and choose the contender's settings: `settings`, and all that were `tried`."""
        who, where = Contender(**contender), Place.from_dict(place)
        module = _module(who)
        candidates: list[Settings] = module.prepare(who, where)
        if len(candidates) == 1:
            return {"settings": candidates[0], "tried": []}
        tried = [{**settings, "rate": _quick(module.start(who, where, settings), where)} for settings in candidates]
        return {"settings": candidates[max(range(len(tried)), key=lambda row: tried[row]["rate"])], "tried": tried}

    def start(self, contender: dict[str, str], place: dict[str, Any], settings: Settings, logits: str) -> None:
        """Load the contender, write its logits of the images for the check to the file `logits`, and warm up."""
        who, where = Contender(**contender), Place.from_dict(place)
        self.runner = _module(who).start(who, where, settings)
        np.save(logits, self.runner.logits(where.pixels(CHECK)))
        self.runner.stream(0)

    def stream(self, seconds: float) -> float:
        """Run for so many seconds; return images a second."""
        assert self.runner is not None
        images, elapsed = self.runner.stream(seconds)
        return images / elapsed

    def single(self, seconds: float) -> list[float]:
        """Run single images for so many seconds after two to warm up; return the milliseconds of each."""
        assert self.runner is not None
        for _ in range(2):
            self.runner.one()
        times: list[float] = []
        ending = time.perf_counter() + seconds
        while not times or time.perf_counter() < ending:
            started = time.perf_counter()
            self.runner.one()
            times.append(1e3 * (time.perf_counter() - started))
        return times

    def memory(self) -> float:
        """Return the most memory that this process ever held, in MiB."""
        return peak_memory_mib()


def _module(contender: Contender) -> ModuleType:
    return import_module(f"resnext.benchmarking.{MODULES[contender.peer]}")


def _quick(runner: Runner, place: Place) -> float:
    runner.stream(0)
    return max(images / elapsed for images, elapsed in (runner.stream(place.seconds / 2) for _ in range(WINDOWS)))


def peak_memory_mib() -> float:
    """Return the most memory that this process ever held, in MiB; NaN where the kernel does not tell."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return float("nan")


def reason(error: Exception) -> str:
    """Return in one line why something did not work."""
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed"
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}"[:300]


def _keep_to(threads: int) -> None:
    """Keep this process on as many cores as it may have threads, whatever the libraries think of them."""
    if hasattr(os, "sched_setaffinity") and 0 < threads < len(cores := sorted(os.sched_getaffinity(0))):
        os.sched_setaffinity(0, cores[:threads])


def asked() -> Iterator[str]:
    """Yield the requests; end the process, whatever it is doing, where nobody is there any more to ask."""
    lines = SimpleQueue[str]()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        os._exit(0)

    Thread(target=read, daemon=True).start()
    while True:
        yield lines.get()


def main() -> None:
    """Answer requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    _keep_to(int(os.environ.get("OMP_NUM_THREADS", "0")))
    worker = Worker()
    for line in asked():
        request = json.loads(line)
        try:
            answer = {"result": getattr(worker, request["do"])(**request["with"])}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": reason(error), "user": isinstance(error, UserError)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
