"""Asked to stop, at any moment, a run leaves with the code that says so, and goes on to the same end."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from faults import runs
from faults.runs import Reference, Trial

TERM, INT, USR1 = signal.SIGTERM, signal.SIGINT, signal.SIGUSR1
CODES = {TERM: 143, INT: 130, USR1: 143}
TIMES = 10

STARTED = "resnext.training.session:Session.__init__"
FIRST_STEP = "resnext.training.step:TrainingStep.__call__"
VALIDATION = "resnext.training.validation:evaluate"
LAST_BUNDLE = "resnext.training.validation:Validation._golden"
IN_A_SAVE = "crash:checkpoint-tensors"


@pytest.mark.parametrize("number", range(TIMES))
def test_sigterm_at_a_random_moment(
    number: int, reference: Callable[[str], Reference], place: Path, generator: random.Random
) -> None:
    whole = reference(["plain", "everything"][number % 2])
    trial = Trial(whole, place)
    child = trial.start()
    code = child.wait(generator.uniform(0.05, 1) * whole.seconds)
    if code is None:
        child.send(TERM)
        code = child.end()
        # A process that has just done all its work, or not yet heard of signals, is neither early nor late.
        assert code == 143 or (code == 0 and trial.is_finished()) or not trial.run.exists(), child.said()
    trial.codes.append(code)
    assert trial.finish("by hand" if number % 4 > 1 else "auto") == []


WHERE = {"start": STARTED, "first step": FIRST_STEP, "validation": VALIDATION, "save": IN_A_SAVE, "end": LAST_BUNDLE}


AT_A_PLACE = [*((where, TERM) for where in WHERE), ("start", USR1), ("end", INT)]


@pytest.mark.parametrize(("where", "number"), AT_A_PLACE)
def test_a_signal_at_a_place(
    where: str, number: signal.Signals, reference: Callable[[str], Reference], place: Path
) -> None:
    trial = Trial(reference("plain"), place)
    faults = trial.faults(WHERE[where], at=3 if where == "save" else 1)
    child = trial.start(faults=faults)
    runs.wait_until_held(child, faults)
    child.send(number)
    runs.let_go(faults)
    assert child.end() == CODES[number], child.said()
    assert f"Stopped by {number.name}." in child.said()
    assert "--resume" in child.said()
    assert "Traceback" not in child.said()
    assert trial.finish("by hand") == []


TWICE = [("save", TERM, TERM), ("save", INT, INT), ("validation", TERM, TERM), ("validation", USR1, TERM)]


@pytest.mark.parametrize(("where", "first", "second"), TWICE)
def test_a_second_signal_leaves_at_once(
    where: str, first: signal.Signals, second: signal.Signals, reference: Callable[[str], Reference], place: Path
) -> None:
    """What holds the process is never let go: it must not wait for a validation or a save to be done."""
    trial = Trial(reference("plain"), place)
    faults = trial.faults(WHERE[where], at=3 if where == "save" else 1)
    child = trial.start(faults=faults)
    runs.wait_until_held(child, faults)
    child.send(first)
    assert child.wait(0.5) is None, "the first signal lets the work be finished"
    child.send(second)
    assert child.end() == CODES[second], child.said()
    assert trial.finish("by hand") == []


# torchrun: SIGTERM to the launcher, ten times, belongs here; `benchmarks/faults.py` has the same mark.
