"""Does a training run survive anything?

    python benchmarks/faults.py [--kills 100] [--seed 0] [--only KIND …] [--record FILE] [--forked]

Tiny runs that save after every step are killed, cut off from power, lied to by their disk, signalled and started twice,
and then brought to their end as a user or a supervisor would, by the same command with --resume or --auto-resume. Each
is compared with a run of the same recipe that was left alone: bundle, golden images and results, weights, moving
average and optimiser of the last checkpoint, best epoch, schedule's history, and the journal's steps and epochs, bit
for bit.
What is done is what `tests/faults` does, more often, and each process is started as a user starts it (`--forked` forks
it from one that has imported torch: as much work in a fraction of the time). One thread a process.

Then bugs are planted in the program, one at a time, and the trial that is meant to notice each must do so. The exit
code is 1 if anything did not survive, ended with other bits, or if a planted bug went unnoticed. With `--record`, what
was done stands in a file, one trial a line, and is not done again when the same command is given anew.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from environment import print_environment

from faults import (
    plants,
    provoking,
    runs,
    setups,
    test_damage,
    test_disk_full,
    test_poison,
    test_signals,
    test_two_starts,
)
from faults.runs import Reference, Trial
from resnext.training import checkpoint

SETUPS = ("plain", "everything", "warm-up", "merged", "bfloat16")
STARTS, SIGTERMS, LIES, POISONED, THROUGH_TORCHRUN = 50, 10, 5, 3, 10
UNEQUAL = ("differs", "journal:")
"""Words of what is found where a run came to its end, but not to the same bits."""


@dataclass
class Bench:
    """What all trials share: options, the runs that were left alone, and a folder."""

    folder: Path
    seed: int
    kills: int
    forked: bool
    made: dict[str, Reference] = field(default_factory=dict)

    def reference(self, name: str) -> Reference:
        """Return a run by its setup's name, left alone."""
        if name not in self.made:
            setup, place = setups.make(name, self.folder), self.folder / f"{name}-whole"
            if setup.raw["machine"]["form"] == "auto":
                begun = runs.early(setup, self.folder / f"{name}-early", forked=self.forked)
                setup = setups.with_merging(setup, begun)
            processes = 2 if name == "several" else 1
            self.made[name] = runs.uninterrupted(setup, place, forked=self.forked, processes=processes)
        return self.made[name]


@dataclass(frozen=True)
class Kind:
    """A kind of trial. `trial` is given the bench, the trial's number, random numbers and a place.

    It returns what is wrong and how many faults were tried, or raises AssertionError. `count` trials are made, or
    with `faults` as many as have tried so many.
    """

    name: str
    trial: Callable[[Bench, int, random.Random, Path], tuple[list[str], int]]
    count: Callable[[Bench], int]
    faults: bool = False


def killed(bench: Bench, number: int, generator: random.Random, place: Path) -> tuple[list[str], int]:
    """Kill a run at random moments until it is done."""
    whole = bench.reference(SETUPS[number % len(SETUPS)])
    resume = ("auto", "by hand")[number // len(SETUPS) % 2]
    trial = runs.killed_until_done(whole, place, generator, resume=resume)
    return trial.finish(resume), trial.hits


def killed_in_a_save(bench: Bench, number: int, generator: random.Random, place: Path) -> tuple[list[str], int]:
    """Kill a run at a random crash point."""
    whole = bench.reference(SETUPS[number % len(SETUPS)])
    trial = runs.killed_at_point(whole, place, generator.randint(1, len(whole.passed)))
    return trial.finish(), trial.hits


def points(bench: Bench) -> list[int]:
    """Return the first and the last passing of each crash point that a run passes, as numbers among all."""
    passed = bench.reference("plain").passed
    first = {name: passed.index(name) + 1 for name in passed}
    last = {name: len(passed) - passed[::-1].index(name) for name in passed}
    return sorted({*first.values(), *last.values()})


def killed_at_a_point(bench: Bench, number: int, generator: random.Random, place: Path) -> tuple[list[str], int]:
    """Kill a run at the first or last passing of one of the crash points."""
    trial = runs.killed_at_point(bench.reference("plain"), place, points(bench)[number])
    return trial.finish("by hand"), trial.hits


def cut_off(bench: Bench, number: int, generator: random.Random, place: Path) -> tuple[list[str], int]:
    """Cut the power at a random crash point: what was not synced may be lost."""
    whole = bench.reference(SETUPS[number % 3])
    trial = runs.cut_off(whole, place, generator.randint(1, len(whole.passed)), generator.randrange(2**32))
    return trial.finish(), trial.hits


def lied_to(bench: Bench, number: int, generator: random.Random, place: Path) -> tuple[list[str], int]:
    """Kill a run whose disk forgot its last checkpoints."""
    trial = provoking.on_a_lying_disk(bench.reference(SETUPS[number % 3]), place, "")
    return trial.finish(), trial.hits


def damaged_checkpoints(bench: Bench, number: int, generator: random.Random, place: Path) -> tuple[list[str], int]:
    """Damage checkpoints and load them."""
    for step in (test_damage.OLDER, test_damage.NEWER):
        checkpoint.save(place / "whole", step, *test_damage.state(step))
    test_damage.test_every_corruption_of_a_checkpoint_is_noticed(place / "whole", place, generator)
    return [], test_damage.CORRUPTIONS


def damaged_bundles(bench: Bench, number: int, generator: random.Random, place: Path) -> tuple[list[str], int]:
    """Damage bundles, verify and load them."""
    test_damage.test_every_corruption_of_a_bundle_is_noticed(bench.reference, place / "files", generator)
    test_damage.test_every_corruption_of_a_description_is_noticed(bench.reference, place / "descriptions", generator)
    return [], test_damage.CORRUPTIONS


def damaged_run(bench: Bench, number: int, generator: random.Random, place: Path) -> tuple[list[str], int]:
    """Kill a run, damage a file of its newest checkpoint, and go on."""
    whole = bench.reference("plain")
    trial = runs.killed_at_point(whole, place, 3 * len(whole.passed) // 4)
    file = test_damage.FILES[number % len(test_damage.FILES)]
    test_damage.test_a_run_with_a_damaged_checkpoint_names_it_and_comes_to_the_same_end(file, trial, generator)
    return [], 1


def terminated(bench: Bench, number: int, generator: random.Random, place: Path) -> tuple[list[str], int]:
    """Send SIGTERM at a random moment."""
    test_signals.test_sigterm_at_a_random_moment(number, bench.reference, place, generator)
    return [], 1


AT_A_PLACE = [(where, number) for where in test_signals.WHERE for number in test_signals.CODES]


def signalled(bench: Bench, number: int, generator: random.Random, place: Path) -> tuple[list[str], int]:
    """Send each signal at each place."""
    test_signals.test_a_signal_at_a_place(*AT_A_PLACE[number], bench.reference, place)
    return [], 1


def signalled_twice(bench: Bench, number: int, generator: random.Random, place: Path) -> tuple[list[str], int]:
    """Send a second signal while the first is obeyed."""
    test_signals.test_a_second_signal_leaves_at_once(*test_signals.TWICE[number], bench.reference, place)
    return [], 1


def through_torchrun(bench: Bench, number: int, generator: random.Random, place: Path) -> tuple[list[str], int]:
    """Send SIGTERM at a random moment to torchrun, which trains with two processes, and start it again."""
    whole = bench.reference("several")
    trial = Trial(whole, place)
    child = trial.start()
    code = child.wait(generator.uniform(0.1, 1) * whole.seconds)
    if code is None:
        child.send(signal.SIGTERM)
        child.end()  # torchrun's own code, which says that it was signalled
    return trial.finish(), int(code is None)


def disk_filled(bench: Bench, number: int, generator: random.Random, place: Path) -> tuple[list[str], int]:
    """Fill the disk while something is written."""
    test_disk_full.test_a_full_disk(*test_disk_full.CASES[number], bench.reference, place)
    return [], 1


def started_twice(bench: Bench, number: int, generator: random.Random, place: Path) -> tuple[list[str], int]:
    """Start two processes on one directory."""
    return test_two_starts.two_starts(bench.reference("plain"), place, resume=("", "auto")[number % 2]), 1


def poisoned(bench: Bench, number: int, generator: random.Random, place: Path) -> tuple[list[str], int]:
    """Train on images of which one percent cannot be read, and kill that."""
    test_poison.test_one_percent_of_unreadable_files(place, generator)
    return [], 1


KINDS = (
    Kind("kill -9 at a random moment", killed, lambda bench: bench.kills, faults=True),
    Kind("kill -9 at a random point within saves", killed_in_a_save, lambda bench: bench.kills // 4, faults=True),
    Kind("kill -9 at each crash point", killed_at_a_point, lambda bench: len(points(bench))),
    Kind("power cut within saves", cut_off, lambda bench: bench.kills // 4, faults=True),
    Kind("disk that forgets checkpoints", lied_to, lambda bench: LIES),
    Kind("damaged checkpoints", damaged_checkpoints, lambda bench: 1),
    Kind("damaged bundles", damaged_bundles, lambda bench: 1),
    Kind("runs with a damaged checkpoint", damaged_run, lambda bench: 2 * len(test_damage.FILES)),
    Kind("SIGTERM at a random moment", terminated, lambda bench: SIGTERMS),
    Kind("each signal at each place", signalled, lambda bench: len(AT_A_PLACE)),
    Kind("a second signal", signalled_twice, lambda bench: len(test_signals.TWICE)),
    Kind("SIGTERM through torchrun", through_torchrun, lambda bench: THROUGH_TORCHRUN),
    Kind("full disk", disk_filled, lambda bench: len(test_disk_full.CASES)),
    Kind("two starts at once", started_twice, lambda bench: STARTS),
    Kind("1 % unreadable files", poisoned, lambda bench: POISONED),
)
PLANTED = "planted bugs"


def tried(kind: Kind, bench: Bench, number: int, place: Path) -> dict[str, Any]:
    """Make one trial and return a line of the record; what it left is removed where nothing is wrong."""
    generator = random.Random(f"{bench.seed} {kind.name} {number}")
    place.mkdir(parents=True)
    try:
        found, count = kind.trial(bench, number, generator, place / "trial")
    except AssertionError as error:
        found, count = [str(error) or f"assertion failed at line {error.__traceback__.tb_lineno}"], 1  # type: ignore[union-attr]
    if not found:
        shutil.rmtree(place)
    return {"kind": kind.name, "number": number, "tried": count, "found": found}


def planted(bench: Bench, name: str, place: Path) -> dict[str, Any]:
    """Plant a bug and return whether it was noticed, by what, and that without it nothing is."""
    with_it = provoking.provoke(name, bench.reference("warm-up"), place / "with")
    without = provoking.provoke(name, bench.reference("warm-up"), place / "without", planted=False)
    shutil.rmtree(place)
    seen = [each for each in with_it if plants.PLANTED[name].seen_by in each]
    return {"kind": PLANTED, "number": name, "tried": 1, "found": without, "noticed": seen[:1]}


class Record:
    """What was tried, in a file where there is one."""

    def __init__(self, file: Path | None, seed: int) -> None:
        self.file, self.seed = file, seed
        self.lines: list[dict[str, Any]] = []
        if file is not None and file.exists():
            lines = [json.loads(line) for line in file.read_text().splitlines()]
            self.lines = [line for line in lines if line["seed"] == seed]

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Return the trials of a kind."""
        return [line for line in self.lines if line["kind"] == kind]

    def add(self, line: dict[str, Any]) -> None:
        """Note a trial."""
        self.lines.append(line := {**line, "seed": self.seed})
        if self.file is not None:
            with self.file.open("a") as file:
                file.write(json.dumps(line) + "\n")
        for each in line["found"]:
            print(f"  FOUND {line['kind']}, trial {line['number']}: {each}", flush=True)


def left(kind: Kind, bench: Bench, record: Record) -> Iterator[int]:
    """Yield the numbers of the trials of a kind that are still to be made."""
    done = {line["number"] for line in record.of(kind.name)}
    wanted, number = kind.count(bench), 0
    while (sum(line["tried"] for line in record.of(kind.name)) if kind.faults else number) < wanted:
        if number not in done:
            yield number
        number += 1


def report(record: Record) -> bool:
    """Print the table; whether all is well."""
    print(f"\n| {'what was done':40} | faults | survived | bit-equal or noticed |")
    print(f"|{'-' * 42}|-------:|---------:|---------------------:|")
    well = True
    for name in dict.fromkeys(line["kind"] for line in record.lines if line["kind"] != PLANTED):
        lines = record.of(name)
        count = sum(line["tried"] for line in lines)
        unequal = sum(any(word in each for each in line["found"] for word in UNEQUAL) for line in lines)
        wrong = sum(bool(line["found"]) for line in lines)
        well &= wrong == 0
        print(f"| {name:40} | {count:6} | {count - (wrong - unequal):8} | {count - wrong:20} |")
    if bugs := record.of(PLANTED):
        print(f"\n| {'planted bug':32} | noticed by |\n|{'-' * 34}|---|")
        for line in bugs:
            seen = line["noticed"][0].splitlines()[0] if line["noticed"] else "NOT NOTICED"
            print(f"| {line['number']:32} | {seen[:100]} |")
            well &= bool(line["noticed"]) and not line["found"]
    return well


def main() -> None:
    """Make the trials and print the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=None, help="kinds, by a part of their names")
    parser.add_argument("--record", type=Path, default=None)
    parser.add_argument("--forked", action="store_true")
    options = parser.parse_args()
    print_environment()
    print(
        f"seed {options.seed}, processes {'forked' if options.forked else 'started as a user starts them'}", flush=True
    )
    record, began = Record(options.record, options.seed), time.perf_counter()

    def wanted(name: str) -> bool:
        return options.only is None or any(part in name for part in options.only)

    with tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True) as folder:
        bench = Bench(Path(folder), options.seed, options.kills, options.forked)
        if options.forked:
            runs.warm_up(bench.folder)
        for number, kind in enumerate(kind for kind in KINDS if wanted(kind.name)):
            for trial in left(kind, bench, record):
                record.add(tried(kind, bench, trial, bench.folder / f"kind-{number}" / str(trial)))
            print(f"{time.perf_counter() - began:7.0f} s: {kind.name} done", flush=True)
        for name in plants.PLANTED if wanted(PLANTED) else ():
            if name not in {line["number"] for line in record.of(PLANTED)}:
                record.add(planted(bench, name, bench.folder / name.replace(" ", "-")))
    sys.exit(not report(record))


if __name__ == "__main__":
    main()
