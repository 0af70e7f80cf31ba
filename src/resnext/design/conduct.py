"""Carry a study out on this machine: one trial after another, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from resnext import journals
from resnext.design.study import TRIALS, Study, Trial
from resnext.errors import UserError
from resnext.training import owner, stopping
from resnext.training.stopping import Interrupted

POLL = 0.2
Tell = Callable[[dict[str, Any]], None]


def conduct(study: Study, tell: Tell) -> None:
    """Train what is due until nothing is; `tell` is told of each trial's start, epochs and end.

    Raises UserError where a trial fails, and Interrupted where the user asked to stop, after the trial saved its state.
    """
    with owner.owned(study.place), stopping.requests() as asked:
        while due := study.due():
            every = [trial for stage in study.stages() for trial in stage]
            done = sum(study.outcome(trial) is not None for trial in every)
            tell({"event": "trial", "trial": due[0].name, "number": done + 1, "of": len(every)})
            train(study, due[0], asked, tell)


def train(study: Study, trial: Trial, asked: list[int], tell: Tell) -> None:
    """Train one trial in a process of its own, which goes on from what is there.

    `asked` fills when the user asks to stop.
    """
    place = study.place_of(trial)
    place.mkdir(parents=True, exist_ok=True)
    follower = Follower(place / "journal.jsonl")
    with started(study.place, trial.name) as process:
        while process.poll() is None and not asked:
            time.sleep(POLL)
            for event in follower.new():
                tell({**event, "trial": trial.name})
        if asked and process.poll() is None:
            process.terminate()
    for event in follower.new():
        tell({**event, "trial": trial.name})
    if asked:
        raise stopped(study, asked[0])
    if process.returncode:
        raise failure(study, trial, process.returncode)
    assert study.outcome(trial) is not None, trial


@contextmanager
def started(place: Path, name: str, environment: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Run a trial of a study in a process of its own, which is asked to stop when this block or process ends.

    What it says is written to its log, beside its run.
    """
    with log_of(place, name).open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "resnext.design.trial", str(place), name],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=file,
            env={**os.environ, **(environment or {})},
            start_new_session=True,  # Ctrl-C is for us alone, who pass it on once
        )
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


def log_of(place: Path, name: str) -> Path:
    """Return the file with what a trial's processes said."""
    return place / TRIALS / f"{name}.log"


def stopped(study: Study, number: int) -> Interrupted:
    """Return what a study ends with that was asked to stop by a signal."""
    return Interrupted(number, f"Stopped. What was saved is in {study.place}; go on with --resume.")


def failure(study: Study, trial: Trial, code: int) -> UserError:
    """Return what a user is told of a trial that ended with an exit code."""
    log = log_of(study.place, trial.name)
    said = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    if code == 2:
        return UserError(f"{trial.name}: " + "\n".join(said[-2:]))
    last = said[-1][:200] if said else "it said nothing"
    return UserError(
        f"{trial.name} ended with {code}: {last}\nAll that it said is in {log}. Mend that, and go on with --resume."
    )


class Follower:
    """Read what is appended to a journal, which may be written anew, as a run does that goes on."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.offset = file.stat().st_size if file.exists() else 0

    def new(self) -> Iterator[dict[str, Any]]:
        """Yield the epochs that were told since the last call."""
        try:
            size = self.file.stat().st_size
        except OSError:
            return
        if size < self.offset:
            self.offset = size
            return
        with self.file.open("rb") as file:
            file.seek(self.offset)
            content = file.read()
        whole = content.rfind(b"\n") + 1
        self.offset += whole
        lines = content[:whole].decode("utf-8", errors="replace").splitlines()
        yield from (event for event in journals.events(lines) if event["event"] == "epoch")
