"""Runs brought to their end, however often they are killed, and compared bit for bit with one that was left alone."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from faults.children import KILLED, Child, start
from faults.entry import Faults
from faults.setups import SAVES, Setup, environment
from resnext.bundle import Bundle
from resnext.durable import CRASH_AT
from resnext.errors import UserError
from resnext.training import checkpoint, journal

MEASURED = {"event", "epoch", "step", "images", "loss", "errors", "learning_rate", "train_loss", "top1", "best"}
NEEDED_AT_MOST = 60
"""Starts after which a run that still is not done will never be."""


@dataclass(frozen=True)
class Reference:
    """A run that was left alone: where it lies, how long its process lived, and the crash points that it passed."""

    setup: Setup
    place: Path
    seconds: float
    passed: list[str]
    forked: bool

    def points(self) -> Counter[str]:
        """Return how often each crash point was passed."""
        return Counter(self.passed)

    @property
    def saves_each_step(self) -> bool:
        """Whether its saves come after each step, and so at each run alike."""
        return bool(self.setup.raw["machine"]["checkpoint_every"] == SAVES)

    def saves(self) -> list[int]:
        """Return the steps before which it saved, in order."""
        return [e["at_step"] for e in journal.read(self.place / "journal.jsonl") if e["event"] == "checkpoint"]

    def written(self, number: int) -> int:
        """Return how many checkpoints were surely complete at the crash point passed as the `number`-th."""
        return max(0, self.passed[:number].count("checkpoint-tensors") - 1)


@dataclass
class Trial:
    """A run that was not left alone. `hits` counts the kills that found it alive."""

    reference: Reference
    place: Path
    hits: int = 0
    starts: int = 0
    plant: str = ""
    codes: list[int] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    @property
    def run(self) -> Path:
        """The run's directory."""
        return self.place / "runs" / "run"

    def start(self, *, faults: Faults | None = None, resume: str = "auto", **variables: str) -> Child:
        """Start it, or start it again; `resume` "auto" and "by hand" are two ways to say so."""
        self.starts += 1
        if self.starts == 1 and not (self.place / "runs").exists():
            prepare(self.reference.setup, self.place)
        begun = (self.run / "recipe.toml").is_file() and (self.run / "manifest.parquet").is_file()
        flags = {"auto": ["--auto-resume"], "by hand": ["--resume"] if begun else [], "": []}[resume]
        if self.plant:
            faults = replace(faults or self.faults(), plant=self.plant)
        return start(
            self.reference.setup.arguments(self.run, *flags),
            {**environment(self.place / "cache"), **variables},
            self.place / f"said-{self.starts}.txt",
            faults=faults,
            forked=self.reference.forked,
        )

    def kill(self, child: Child, seconds: float) -> bool:
        """Kill a process with SIGKILL after so many seconds; False where it had ended by itself before."""
        code = child.wait(seconds)
        if code is None:
            child.process.kill()
            code = child.end()
            assert code in KILLED or code == 0, f"exit code {code} of a killed process; it said:\n{child.said()}"
        self.note(child, code)
        self.hits += code in KILLED
        return code in KILLED

    def faults(self, hold: str = "", at: int = 1, *, disk: Path | None = None) -> Faults:
        """Return faults of which this trial's folder is told: held still at a place, and a disk that can be full."""
        folder = self.place / f"faults-{self.starts}-{len(list(self.place.glob('faults-*')))}"
        folder.mkdir(parents=True)
        return Faults(str(folder), hold=hold, at=at, disk="" if disk is None else str(disk))

    def note(self, child: Child, code: int) -> None:
        """Keep an exit code, which must be one that a run may end with here."""
        self.codes.append(code)
        assert code in (0, *KILLED, 130, 143), f"exit code {code}; it said:\n{child.said()}"

    def is_finished(self) -> bool:
        """Whether its journal says that it came to its end."""
        return journal.is_finished(self.run / "journal.jsonl")

    def finish(self, resume: str = "auto") -> list[str]:
        """Let it come to its end and return what is not as in the reference."""
        if not self.is_finished():
            child = self.start(resume=resume)
            code = child.end()
            self.note(child, code)
            assert code == 0, f"exit code {code}; it said:\n{child.said()}"
        return self.lost + differences(self.reference.place, self.run)

    def look_for_saves(self, written: int) -> None:
        """Note where less is there than the first `written` checkpoints, of which the newest must be whole.

        Only for setups that save after each step, as the reference tells which ones there were.
        """
        if not written:
            return
        try:
            loaded = checkpoint.load_newest(self.run / "checkpoints")
        except UserError as error:
            self.lost.append(f"what was saved is lost: {error}")
            return
        expected = self.reference.saves()[written - 1]
        if loaded is None or _number(loaded[1], self.reference) < expected:
            self.lost.append(f"what was saved is lost: nothing from step {expected} on is whole")


def wait_until_held(child: Child, faults: Faults) -> None:
    """Return when a process has come to the place where it is held."""
    while not (Path(faults.folder) / "held").exists():
        assert child.wait(0.02) is None, f"it ended before it came to {faults.hold}; it said:\n{child.said()}"


def let_go(faults: Faults) -> None:
    """Let a held process go on."""
    (Path(faults.folder) / "go").touch()


def prepare(setup: Setup, place: Path) -> None:
    """Make a folder for a run and its cache, with what it starts from."""
    (place / "runs").mkdir(parents=True, exist_ok=True)
    kernels = setup.folder / "cache" / "kernels"
    if kernels.is_dir():  # built once, as that takes longer than the run
        shutil.copytree(kernels, place / "cache" / "kernels")
    if setup.begun is not None:
        shutil.copytree(setup.begun, place / "runs" / "run")


def uninterrupted(setup: Setup, place: Path, *, forked: bool = True) -> Reference:
    """Train from beginning to end."""
    prepare(setup, place)
    faults = Faults(str(place), record=True)
    flags = ["--resume"] if setup.begun is not None else []
    began = time.perf_counter()
    child = start(
        setup.arguments(place / "runs" / "run", *flags),
        environment(place / "cache"),
        place / "said.txt",
        faults=faults,
        forked=forked,
    )
    code = child.end()
    seconds = time.perf_counter() - began
    assert code == 0, f"exit code {code}; it said:\n{child.said()}"
    shared = setup.folder / "cache"
    if (place / "cache" / "kernels").is_dir() and not shared.exists():
        shutil.copytree(place / "cache", shared)
    return Reference(setup, place / "runs" / "run", seconds, (place / "passed").read_text().split(), forked)


def warm_up(folder: Path) -> None:
    """Start the process that others are forked from, so that no life of one is measured with its imports."""
    start(["networks", "--json"], environment(folder / "cache"), folder / "warm-up.txt").end()


def early(setup: Setup, place: Path, *, forked: bool = True) -> Path:
    """Return a run that was killed after its second checkpoint."""
    prepare(setup, place)
    variables = {**environment(place / "cache"), CRASH_AT: "checkpoint-manifest:3"}
    child = start(setup.arguments(place / "runs" / "run"), variables, place / "said.txt", forked=forked)
    code = child.end()
    assert code in KILLED, f"exit code {code}; it said:\n{child.said()}"
    return place / "runs" / "run"


def killed_until_done(
    reference: Reference, place: Path, generator: random.Random, *, resume: str = "auto", most: int = NEEDED_AT_MOST
) -> Trial:
    """Kill a run at moments drawn uniformly over the life of its reference until it ends, or `most` kills hit it."""
    trial = Trial(reference, place)
    while not trial.is_finished() and trial.hits < most:
        assert trial.starts < NEEDED_AT_MOST, f"{trial.starts} starts and not done: {trial.codes}"
        trial.kill(trial.start(resume=resume), generator.uniform(0, reference.seconds))
    return trial


def killed_at_point(reference: Reference, place: Path, number: int, *, plant: str = "", lying: int = 0) -> Trial:
    """Kill a run at the crash point that it passes as the `number`-th, counted from 1, of all."""
    trial = Trial(reference, place, plant=plant)
    faults = replace(trial.faults(), lying=lying) if lying else None
    child = trial.start(faults=faults, **{CRASH_AT: f"*:{number}"})
    trial.note(child, code := child.end())
    trial.hits += code in KILLED
    if code in KILLED and reference.saves_each_step:
        trial.look_for_saves(min(reference.written(number), lying - 1 if lying else number))
    return trial


def cut_off(reference: Reference, place: Path, number: int, seed: int, *, plant: str = "") -> Trial:
    """Return a run whose machine lost its power at a crash point, with what of it is left on the disk."""
    trial, folder = Trial(reference, place, plant=plant), place.parent / f"{place.name}-disk"
    folder.mkdir(parents=True)
    child = trial.start(faults=Faults(str(folder), disk=str(place / "runs"), power=number, seed=seed))
    trial.note(child, code := child.end())
    if code in KILLED:
        trial.hits += 1
        shutil.move(place / "runs", place / "as-it-was")
        shutil.move(folder / "cut", place / "runs")
        if reference.saves_each_step:
            trial.look_for_saves(reference.written(number))
    return trial


def _number(state: dict[str, Any], reference: Reference) -> int:
    """Return the number of the step before which a state was saved."""
    epochs = sum(event["event"] == "epoch" for event in account(reference.place))
    steps = sum(event["event"] == "step" for event in account(reference.place))
    return int(state["position"]["epoch"] * (steps // epochs) + state["position"]["step_in_epoch"])


def account(run: Path) -> list[dict[str, Any]]:
    """Return the steps and epochs of a run's journal, without times."""
    events = [event for event in journal.read(run / "journal.jsonl") if event["event"] in ("step", "epoch")]
    return [{key: value for key, value in event.items() if key in MEASURED} for event in events]


def unreadable(run: Path) -> set[str]:
    """Return the files that a run's journal and bundle name as unreadable."""
    named = {event["path"] for event in journal.read(run / "journal.jsonl") if event["event"] == "unreadable"}
    return named | {row["path"] for row in Bundle.open(run).contents.results["skipped"]}


def differences(expected: Path, run: Path) -> list[str]:
    """Return what of a finished run is not, bit for bit, as in another: in the words of what users rely on."""
    found = [f"bundle: {problem}" for problem in Bundle.open(run).verify()]
    theirs, ours = _told(expected), _told(run)
    found += [f"{name}: differs" for name in theirs if theirs[name] != ours.get(name)]
    steps = [event["step"] for event in account(run) if event["event"] == "step"]
    if steps != sorted(set(steps)):
        found.append("journal: a step stands there twice")
    if set(steps) != set(range(len(set(steps)))):
        found.append("journal: steps are missing")
    return found


def _told(run: Path) -> dict[str, Any]:
    kept = Bundle.open(run)
    loaded = checkpoint.load_newest(run / "checkpoints")
    assert loaded is not None, f"{run} has no checkpoint"
    tensors, state, skipped = loaded
    assert not skipped, skipped
    hashes: dict[str, dict[str, str]] = {}
    for name, value in sorted(tensors.items()):
        kind, _, rest = name.partition("/")
        data = value.contiguous().reshape(-1).view(dtype=_BYTES).numpy().tobytes()
        hashes.setdefault(kind, {})[rest] = f"{value.dtype} {hashlib.sha256(data).hexdigest()}"
    position = dict(state["position"])
    return {
        "identity": kept.identity,
        "bundle's weights": kept.files["model.safetensors"],
        "golden images": kept.files["golden.safetensors"],
        "results": kept.contents.results,
        **{f"{kind} of the last checkpoint": values for kind, values in hashes.items()},
        "best": position.pop("best"),
        "history": position.pop("history"),
        "position": position,
        "state of the average": state["average_updates"],
        "form": json.dumps(state["forms"], sort_keys=True),
        "journal's steps and epochs": account(run),
        "unreadable files": unreadable(run),
    }


def _byte_type() -> Any:
    import torch

    return torch.uint8


_BYTES = _byte_type()
