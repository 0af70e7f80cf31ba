"""A run that is killed at random moments, also inside saves, ends with the bits of one that was left alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from faults import runs
from faults.runs import Reference, Trial
from resnext.durable import CRASH_AT
from resnext.training import checkpoint, journal

KILLS = 3
"""Kills in each setup that must have found their process alive."""

CUTS = 2

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
    for name in SETUPS:
        loaded = checkpoint.load_newest(reference(name).place / "checkpoints")
        assert loaded is not None
        tensors, state, _ = loaded
        kinds = {key.partition("/")[0] for key in tensors}
        assert kinds == {"network", "average", "optimizer"}
        assert bool(state["forms"]["merged"]) == (name == "merged")
        steps = [event for event in runs.account(reference(name).place) if event["event"] == "step"]
        assert len(steps) > 25
        assert len(reference(name).saves()) > (len(steps) if reference(name).saves_each_step else 2)


@pytest.mark.parametrize("name", ["everything", "merged"])
def test_killed_inside_a_save(
    name: str, reference: Callable[[str], Reference], place: Path, generator: random.Random
) -> None:
    whole = reference(name)
    # The merged run saves by the clock, and so not equally often each time.
    trial = runs.killed_at_point(whole, place, generator.randint(1, len(whole.passed) // 2))
    assert trial.codes == [137]
    assert trial.finish() == []


IN_THE_LAST_BUNDLE = ["directory-old-aside", "directory-in-place", "directory-settled"]


@pytest.mark.parametrize("point", ["bytes-written", "checkpoint-verified", "checkpoint-tensors", *IN_THE_LAST_BUNDLE])
def test_killed_at_a_point_for_the_first_or_last_time(
    point: str, reference: Callable[[str], Reference], place: Path
) -> None:
    """The first: when there is hardly a run; the last of the bundle's: when all is trained."""
    whole = reference("plain")
    number = whole.points()[point] if point in IN_THE_LAST_BUNDLE else 1
    assert killed_at(whole, place, f"{point}:{number}").finish("by hand") == []


def test_killed_between_an_epoch_s_account_and_its_checkpoint(
    reference: Callable[[str], Reference], place: Path
) -> None:
    """The epoch is told already, and taken up from before its end: it is told once all the same."""
    whole = reference("plain")
    events = list(journal.read(whole.place / "journal.jsonl"))
    ends = [event["step"] + 1 for event in events if event["event"] == "epoch"]
    saves = [event["at_step"] for event in events if event["event"] == "checkpoint"]
    last = len(saves) - saves[::-1].index(ends[1])  # counted from 1
    assert killed_at(whole, place, f"checkpoint-tensors:{last}").finish() == []


def killed_at(whole: Reference, place: Path, point: str) -> Trial:
    """Return a run that was killed at a crash point, `name:number`."""
    trial = Trial(whole, place)
    child = trial.start(**{CRASH_AT: point})
    trial.note(child, child.end())
    assert trial.codes == [137]
    return trial


def test_without_power_what_was_synced_is_enough(
    reference: Callable[[str], Reference], place: Path, generator: random.Random
) -> None:
    whole = reference("plain")
    for number in range(CUTS):
        point = generator.randint(1, len(whole.passed))
        trial = runs.cut_off(whole, place / str(number), point, generator.randrange(2**32))
        assert trial.finish() == [], f"cut off at point {point}"
