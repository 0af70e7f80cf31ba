"""Of two that start on one directory at the same time exactly one gets it; the other leaves and names it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from faults import runs
from faults.children import Child
from faults.entry import Faults
from faults.runs import Reference, Trial

FIRST_STEP = "resnext.training.step:TrainingStep.__call__"
TIMES = 5


@pytest.mark.parametrize("number", range(TIMES))
def test_one_owner(number: int, reference: Callable[[str], Reference], place: Path) -> None:
    assert two_starts(reference("plain"), place, resume=["", "auto"][number % 2]) == []


def two_starts(whole: Reference, place: Path, *, resume: str = "") -> list[str]:
    """Start a run twice at once and return what is wrong with what comes of it.

    Who gets the directory is held still until the other has ended.
    """
    trial = Trial(whole, place)
    faults: list[Faults] = []
    both: list[Child] = []
    for _ in range(2):
        faults.append(trial.faults(FIRST_STEP))
        both.append(trial.start(faults=faults[-1], resume=resume))
    codes = [None, None]
    while codes.count(None) == 2:
        codes = [child.wait(0.05) for child in both]
    if codes.count(None) != 1:
        return [f"exit codes {codes}: {both[0].said()} {both[1].said()}"]
    loser = codes.index(next(code for code in codes if code is not None))
    winner, said = both[1 - loser], both[loser].said()
    runs.let_go(faults[1 - loser])
    found = [] if winner.end() == 0 else [f"the owner failed: {winner.said()}"]
    if codes[loser] != 2:
        found.append(f"the other left with {codes[loser]}: {said}")
    if f"{trial.run} is in use by process {winner.pid} on " not in said:
        found.append(f"the other does not name process {winner.pid}: {said}")
    return found + runs.differences(whole.place, trial.run)
