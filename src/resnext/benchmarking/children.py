"""The contenders' processes, seen from the one that leads: started, asked, and ended whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

PATIENCE = 900.0
"""Seconds after which a process that has not answered counts as stuck."""

ENDING = 5.0
"""Seconds that an ended process may take to be gone."""


class Failed(Exception):
    """Why a process could not do what it was asked to, in one line; `by_user`: the user can mend it."""

    def __init__(self, reason: str, *, by_user: bool = False) -> None:
        super().__init__(reason)
        self.by_user = by_user


class Child:
    """A process that runs one contender; a context that ends it, and whatever it started."""

    def __init__(self, log: Path, threads: int) -> None:
        # OpenMP's threads are as many as anybody else's; how they wait within a batch is left as it is by default.
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "KMP_BLOCKTIME": "0"}
        self.log, self.patience = log, PATIENCE
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "resnext.benchmarking.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches us alone, and we end them all
            )

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def ask(self, do: str, **arguments: Any) -> Any:
        """Have the process do something and return its answer; raises Failed where it cannot, or ends."""
        process = self.process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps({"do": do, "with": arguments}).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            raise Failed(self._last_words()) from None
        if not select.select([process.stdout], [], [], self.patience)[0]:
            raise Failed(f"no answer within {self.patience / 60:.0f} minutes")
        line = process.stdout.readline()
        if not line:
            raise Failed(self._last_words())
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"], by_user=answer["user"])
        return answer["result"]

    def _last_words(self) -> str:
        """Say how the process ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(ENDING)
        code = self.process.returncode
        if code is not None and code < 0:
            why = " (out of memory?)" if -code == signal.SIGKILL else ""
            return f"its process was ended by {signal.Signals(-code).name}{why}"
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return f"its process ended with {code}" + (f": {lines[-1].strip()}" if lines else "")

    def end(self) -> None:
        """End the process and its own children, now; twice is no mistake."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def cpu_seconds(process: int) -> float:
    """Return the processor time that a process has used so far, all its threads together (Linux)."""
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
