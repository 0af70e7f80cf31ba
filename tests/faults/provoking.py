"""For each planted bug the trial that must notice it: the same trials that a right program survives."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from faults import plants, runs
from faults.runs import Reference, Trial
from resnext.errors import UserError
from resnext.training import checkpoint

LYING = 14
"""The checkpoint from which on a lying disk forgets: in the second epoch."""


def in_an_epoch(reference: Reference) -> int:
    """Return the number of a crash point within a save in the middle of the second epoch."""
    saves = reference.saves()
    an_epoch = saves[-1] // int(reference.setup.raw["epochs"])
    return _nth(reference, "checkpoint-state", saves.index(an_epoch + an_epoch // 2) + 1)


def _nth(reference: Reference, name: str, number: int) -> int:
    """Return which of all crash points the `number`-th of this name is."""
    found = [at for at, passed in enumerate(reference.passed, 1) if passed == name]
    return found[number - 1]


def killed(reference: Reference, place: Path, plant: str) -> Trial:
    """Kill a run within a save, in the middle of an epoch."""
    return runs.killed_at_point(reference, place, in_an_epoch(reference), plant=plant)


def on_a_lying_disk(reference: Reference, place: Path, plant: str) -> Trial:
    """Kill a run whose disk has forgotten what it was given since some checkpoints."""
    point = _nth(reference, "checkpoint-state", LYING + 4)
    return runs.killed_at_point(reference, place, point, plant=plant, lying=LYING)


def without_power(reference: Reference, place: Path, plant: str) -> Trial:
    """Cut a run off, such that nothing is left but what was synced."""
    seed = next(seed for seed in range(100) if random.Random(seed).random() < 1 / 4)
    return runs.cut_off(reference, place, in_an_epoch(reference), seed, plant=plant)


def with_a_damaged_checkpoint(reference: Reference, place: Path, plant: str) -> Trial:
    """Kill a run and flip a bit of its newest checkpoint: in a weight, as it comes."""
    trial = runs.killed_at_point(reference, place, in_an_epoch(reference), plant=plant)
    file = checkpoint.listed(trial.run / "checkpoints")[-1] / checkpoint.TENSORS
    data = bytearray(file.read_bytes())
    data[len(data) // 2 + 3] ^= 0x20
    file.write_bytes(data)
    return trial


TRIALS: dict[str, Callable[[Reference, Path, str], Trial]] = {
    "skip fsync": without_power,
    "rotate before verifying": on_a_lying_disk,
    "hash not checked": with_a_damaged_checkpoint,
    **dict.fromkeys(
        (
            "journal not truncated at resume",
            "EMA not restored",
            "momentum not restored",
            "history not restored",
            "step not restored",
            "order reseeded",
        ),
        killed,
    ),
}


def provoke(name: str, reference: Reference, place: Path, *, planted: bool = True) -> list[str]:
    """Return what the trial for a bug notices: with it, or without it, when it must notice nothing."""
    assert plants.PLANTED.keys() == TRIALS.keys()
    return noticed(lambda: TRIALS[name](reference, place, name if planted else ""))


def noticed(trial: Callable[[], Trial], resume: str = "auto") -> list[str]:
    """Return what is not as it must be after a trial; that it does not come to its end is that, too."""
    try:
        tried = trial()
    except AssertionError as error:
        return [f"did not survive: {error}"]
    try:
        return tried.finish(resume)
    except (AssertionError, UserError) as error:
        return [*tried.lost, f"did not survive: {error}"]
