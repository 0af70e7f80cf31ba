"""A benchmark from beginning to end: everybody prepares alone, then all take turns, round after round.

Each contender runs in a process of its own, because thread pools, allocators and peaks of memory belong to a whole
process. One runs at a time; the others wait for a line of input, which takes no processor time.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from resnext import machine
from resnext.benchmarking.children import Child, Failed
from resnext.benchmarking.contenders import AGAINST, PRECISIONS, check, lineup
from resnext.benchmarking.figures import Figures, agreement, likeness
from resnext.benchmarking.place import REFERENCE, Place
from resnext.errors import UserError
from resnext.inference.engines import stored

PAUSE = 0.05
"""Seconds between turns, in which the threads of the one before fall asleep."""

TURNS = "taking turns"
"""What `progress` is told while contenders are timed; before, it is what is prepared."""

LEAST_CALIBRATION = 8
WITHOUT_BFLOAT16 = "bf16 is left out, as this processor does not multiply it; --precision bf16 shows who emulates it."
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Plan:
    """What to benchmark and how; impossible values raise UserError.

    `what` is a bundle, a run, or the name of a network. `against` names peers, and `precisions` None means that of
    the bundle's engine, or all that the processor has. Every contender runs at the best of `batches`. A turn lasts
    `seconds`, `rounds` of them; ours may tune for `minutes` a precision where there is no engine. `calibration` names
    images, of which `images` are used. `threads` None means one a core.
    """

    what: str
    against: tuple[str, ...] = AGAINST
    precisions: tuple[str, ...] | None = None
    batches: tuple[int, ...] = (1, 4, 16)
    image_size: int | None = None
    calibration: str | None = None
    rounds: int = 7
    seconds: float = 1.0
    minutes: float = 1.0
    images: int = 300
    seed: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        check("--against", self.against, AGAINST)
        check("--precision", PRECISIONS if self.precisions is None else self.precisions, PRECISIONS)
        if not self.batches or any(not 1 <= batch <= 1024 for batch in self.batches):
            raise UserError("--batch takes one or more numbers from 1 to 1024, such as 1,16.")
        if not 1 <= self.rounds <= 1000:
            raise UserError(f"--rounds {self.rounds} cannot be. Give a number from 1 to 1000.")
        if not 0 < self.seconds <= 600 or not 0 < self.minutes <= 600:
            raise UserError("Seconds and minutes must be above 0, and 600 at most.")
        if self.threads is not None and not 1 <= self.threads <= machine.cores():
            raise UserError(f"--threads {self.threads} cannot be: this machine has {machine.cores()} cores for us.")
        assert self.images >= LEAST_CALIBRATION


@dataclass(frozen=True)
class Race:
    """What came of a plan: the figures of every contender, ours first, and what was benchmarked."""

    plan: Plan
    network: str
    image_size: int
    notes: tuple[str, ...]
    figures: tuple[Figures, ...]


@dataclass
class Lane:
    """A contender on its way: its process, once it runs, and its figures so far."""

    figures: Figures
    child: Child | None = None

    def ask(self, do: str, **arguments: Any) -> Any:
        """Ask its process; where that fails the contender is out, with the reason, and the answer is None."""
        if self.child is None:
            return None
        try:
            return self.child.ask(do, **arguments)
        except Failed as why:
            self.fail(str(why))
            return None

    def fail(self, why: str) -> None:
        """Take the contender out."""
        self.figures = Figures(self.figures.contender, failure=why)
        if self.child is not None:
            self.child.end()
            self.child = None


def run(
    plan: Plan, progress: Progress = lambda what, done, total: None, *, keep: Callable[[Place], None] | None = None
) -> Race:
    """Run a benchmark; raises UserError for a subject or images that cannot serve.

    `progress` is told what is done, how much of it, and of how much. `keep` is called before the scratch folder, with
    what the contenders prepared, goes away.
    """
    with tempfile.TemporaryDirectory(prefix="resnext-benchmark-", ignore_cleanup_errors=True) as scratch:
        subject = _subject(plan, Path(scratch), progress)
        threads = plan.threads or machine.cores()
        place = Place(scratch, subject["bundle"], plan.batches, threads, plan.seconds, plan.minutes)
        precisions, notes = (plan.precisions, []) if plan.precisions else _precisions(place)
        lanes = [Lane(Figures(one)) for one in lineup(plan.against, precisions)]
        for number, lane in enumerate(lanes):
            progress(f"preparing {lane.figures.contender.name}", number, len(lanes))
            _prepare(lane, place)
        with ExitStack() as processes:
            for number, lane in enumerate(lanes):
                progress(f"starting {lane.figures.contender.name}", number, len(lanes))
                _start(lane, place, processes)
            _take_turns(lanes, plan, progress)
        if keep is not None:
            keep(place)
    figures = tuple(lane.figures for lane in lanes)
    return Race(plan, subject["network"], subject["image_size"], (*subject["notes"], *notes), figures)


def _subject(plan: Plan, scratch: Path, progress: Progress) -> dict[str, Any]:
    """Have the subject put into the scratch folder, by a process of its own: no torch is loaded here."""
    progress("preparing images and reference", 0, 1)
    what = str(Path(plan.what).resolve()) if Path(plan.what).is_dir() else plan.what
    options = {"image_size": plan.image_size, "calibration": plan.calibration, "images": plan.images, "seed": plan.seed}
    with Child(scratch / "subject.log", machine.cores()) as child:
        try:
            told: dict[str, Any] = child.ask("subject", what=what, folder=str(scratch), **options)
        except Failed as why:
            raise UserError(str(why)) from why
    return told


def _precisions(place: Place) -> tuple[tuple[str, ...], list[str]]:
    """Return the precision of the bundle's engine; where it has none, all that this machine has, and notes."""
    with contextlib.suppress(stored.Unusable):
        if (record := stored.read(place.open())) is not None:
            return (record.precision,), []
    if machine.has_fast_bfloat16():
        return PRECISIONS, []
    return tuple(one for one in PRECISIONS if one != "bf16"), [WITHOUT_BFLOAT16]


def _prepare(lane: Lane, place: Place) -> None:
    """Have a contender convert, tune and choose its settings, in a process that ends afterwards with all it held."""
    who = lane.figures.contender
    with Child(place.file(f"{who.key}-preparing.log"), place.threads) as lane.child:
        lane.child.patience += 60 * place.minutes + 20 * len(place.batches) * place.seconds
        told = lane.ask("prepare", contender=who.to_dict(), place=place.to_dict())
    lane.child = None
    if told is not None:
        lane.figures = replace(lane.figures, settings=told["settings"], tried=tuple(told["tried"]))


def _start(lane: Lane, place: Place, processes: ExitStack) -> None:
    """Start the process that is timed, and compare its logits with the reference."""
    if lane.figures.failure:
        return
    who, file = lane.figures.contender, place.file(f"{lane.figures.contender.key}.npy")
    lane.child = processes.enter_context(Child(place.file(f"{who.key}.log"), place.threads))
    request = {"contender": who.to_dict(), "place": place.to_dict(), "settings": lane.figures.settings}
    lane.ask("start", **request, logits=str(file))
    if lane.child is not None:
        logits, reference = np.load(file), np.load(place.file(REFERENCE))
        same = agreement(reference, logits)
        lane.figures = replace(lane.figures, agreement=same, likeness=likeness(reference, logits))


def _take_turns(lanes: list[Lane], plan: Plan, progress: Progress) -> None:
    """Time batches in rounds, then single images; in every other round the order is turned round."""
    steps = 2 * plan.rounds
    for number in range(steps):
        progress(TURNS, number, steps)
        for lane in lanes[:: -1 if number % 2 else 1]:
            if number < plan.rounds:
                rate = lane.ask("stream", seconds=plan.seconds)
                if rate is not None:
                    lane.figures = replace(lane.figures, rates=(*lane.figures.rates, rate))
            else:
                times = lane.ask("single", seconds=plan.seconds / 2)
                lane.figures = replace(lane.figures, latencies=(*lane.figures.latencies, *(times or ())))
            time.sleep(PAUSE)
        if number == plan.rounds - 1:
            for lane in lanes:
                peak = lane.ask("memory")  # first: where it fails, the figures are others
                lane.figures = replace(lane.figures, memory_mib=peak or 0.0)
    progress(TURNS, steps, steps)
