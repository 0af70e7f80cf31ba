"""Processes that train: started as users do, or forked from one that has imported torch and done nothing else.

A start takes seconds of imports; a fork takes none. What is forked runs the same command line. The process that forks
has imported and computed nothing (its one other thread is jemalloc's, in pyarrow), so that no thread of torch's is lost
in the fork.
"""

from __future__ import annotations

import contextlib
import functools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

from faults import entry
from faults.entry import FAULTS, Faults

ENOUGH = 240.0
"""Seconds after which a process that takes a few hangs. Nothing else is concluded from it."""

KILLED = (-signal.SIGKILL, 137)
"""Exit codes of a process that was killed, and of one that ended itself at a crash point."""

PRELOADED = [
    "pytest",  # whose __main__ a forked process would import
    "torch",
    "torchvision.transforms.v2",
    "safetensors.torch",
    "pyarrow.parquet",
    "sklearn.model_selection",
    "scipy.stats",
    "faults.entry",
    "resnext.cli.train",
    "resnext.cli.app",
    "resnext.training.run",
    "resnext.training.session",
]


class Child:
    """A process that was started, and the file with what it says."""

    def __init__(self, process: subprocess.Popen[bytes] | BaseProcess, output: Path) -> None:
        self.process = process
        self.output = output
        assert process.pid is not None
        self.pid: int = process.pid

    def send(self, number: int) -> None:
        """Send a signal; to a process that has just ended, none."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self, seconds: float = ENOUGH) -> int | None:
        """Return the exit code, negative for a signal; None where the process still runs after so many seconds."""
        if isinstance(self.process, subprocess.Popen):
            try:
                return self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                return None
        self.process.join(seconds)
        return self.process.exitcode

    def end(self) -> int:
        """Return the exit code; a process that does not end is killed, and that is an error."""
        if (code := self.wait()) is None:
            self.process.kill()
            self.wait()
            raise AssertionError(f"process {self.pid} did not end; it said:\n{self.said()}")
        return code

    def said(self) -> str:
        """Return what it wrote to stdout and stderr."""
        return self.output.read_text(errors="replace")


def start(
    arguments: list[str],
    environment: Mapping[str, str],
    output: Path,
    *,
    faults: Faults | None = None,
    forked: bool = True,
    processes: int = 1,
) -> Child:
    """Start `resnext ARGUMENTS`; `faults` are done to it, and torchrun starts several `processes`."""
    output.parent.mkdir(parents=True, exist_ok=True)
    told = {**environment, **({FAULTS: json.dumps(faults.to_dict())} if faults is not None else {})}
    if forked and processes == 1:
        process = _forking().Process(target=_enter, args=(arguments, told, str(output)), daemon=True)
        process.start()
        return Child(process, output)
    module = "resnext" if faults is None else "faults.entry"
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(torchrun if processes > 1 else []), "-m", module, *arguments]
    nothing = subprocess.DEVNULL
    with output.open("wb") as file:
        process = subprocess.Popen(command, env=told, cwd=output.parent, stdin=nothing, stdout=file, stderr=file)
    return Child(process, output)


@functools.cache
def _forking() -> ForkServerContext:
    """Return the context whose processes are forked, after starting the one that they are forked from."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # torch reads it once, when it is imported
    try:
        from multiprocessing import forkserver

        forkserver.ensure_running()
    finally:
        del os.environ["OMP_NUM_THREADS"]
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before
    return context


def _enter(arguments: list[str], environment: dict[str, str], output: str) -> None:
    """Become the process that the command line would have been."""
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, nothing), (1, file), (2, file)):
        os.dup2(source, target)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    entry.main(arguments)
