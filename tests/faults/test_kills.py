"""A run that is killed at random moments, also inside saves, ends with the bits of one that was left alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from faults import runs
from faults.children import KILLED
from faults.entry import Faults
from faults.runs import Reference, Trial
from resnext.durable import CRASH_AT

KILLS = 4
"""Kills in each setup that must have found their process alive."""

SETUPS = ("plain", "everything", "warm-up", "merged")


@pytest.mark.parametrize("name", SETUPS)
def test_killed_at_random_moments(
    name: str, reference: Callable[[str], Reference], place: Path, generator: random.Random
) -> None:
    whole = reference(name)
    hits, trials = 0, 0
    while hits < KILLS:
        resume = "auto" if trials % 2 else "by hand"
        trial = runs.killed_until_done(whole, place / str(trials), generator, resume=resume, most=KILLS - hits)
        assert trial.finish(resume) == [], f"{trial.codes} in {trial.place}"
        hits, trials = hits + trial.hits, trials + 1
        assert trials < 20, "kills hardly ever find the process alive"


def test_what_is_trained_has_what_it_must_have(reference: Callable[[str], Reference]) -> None:
    """The setups are what they say: the proof is worth nothing for what is not on."""
    from resnext.training import checkpoint

    for name in SETUPS:
        loaded = checkpoint.load_newest(reference(name).place / "checkpoints")
        assert loaded is not None
        tensors, state, _ = loaded
        kinds = {key.partition("/")[0] for key in tensors}
        assert kinds == {"network", "average", "optimizer"}
        assert bool(state["forms"]["merged"]) == (name == "merged")
        steps = [event for event in runs.account(reference(name).place) if event["event"] == "step"]
        assert len(steps) > 30
        assert reference(name).points()["directory-settled"] > len(steps)  # each step is followed by a save


@pytest.mark.parametrize("name", ["everything", "merged"])
def test_killed_inside_a_save(
    name: str, reference: Callable[[str], Reference], place: Path, generator: random.Random
) -> None:
    whole = reference(name)
    trial = runs.killed_at_point(whole, place, generator.randint(1, len(whole.passed)))
    assert trial.codes == [137]
    assert trial.finish() == []


IN_THE_LAST_BUNDLE = ["directory-old-aside", "directory-in-place", "directory-settled"]


@pytest.mark.parametrize("point", ["bytes-written", "checkpoint-verified", "checkpoint-tensors", *IN_THE_LAST_BUNDLE])
def test_killed_at_a_point_for_the_first_or_last_time(
    point: str, reference: Callable[[str], Reference], place: Path
) -> None:
    """The first: when there is hardly a run; the last of the bundle's: when all is trained."""
    whole = reference("plain")
    trial = Trial(whole, place)
    number = whole.points()[point] if point in IN_THE_LAST_BUNDLE else 1
    child = trial.start(**{CRASH_AT: f"{point}:{number}"})
    trial.note(child, child.end())
    assert trial.codes == [137]
    assert trial.finish("by hand") == []


def test_without_power_what_was_synced_is_enough(
    reference: Callable[[str], Reference], place: Path, generator: random.Random
) -> None:
    whole = reference("plain")
    trial = cut_off(whole, place, generator.randint(len(whole.passed) // 4, len(whole.passed)), generator)
    assert trial.finish() == []


def cut_off(whole: Reference, place: Path, point: int, generator: random.Random) -> Trial:
    """Return a run whose machine lost its power at a crash point: with what of it is left on the disk."""
    trial = Trial(whole, place)
    (place.parent / f"{place.name}-disk").mkdir(parents=True)
    faults = Faults(
        str(place.parent / f"{place.name}-disk"), disk=str(trial.run), power=point, seed=generator.randrange(2**32)
    )
    child = trial.start(faults=faults)
    trial.note(child, child.end())
    assert trial.codes[0] in KILLED
    trial.run.rename(place / "as-it-was")
    (Path(faults.folder) / "cut").rename(trial.run)
    return trial
