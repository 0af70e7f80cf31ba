"""The state of a time-to-accuracy study: what is planned, what was run, and which setting each side is judged by.

A study is a directory. `study.jsonl` holds one event a line, appended and synced, and everything else is worked out
from it, so that the study goes on after a kill, on another day, or on another machine to which the directory was
copied. Runs are kept apart by type of machine, as their times must not be mixed.

The clock of a run starts when its process does. A run that was stopped goes on from its last checkpoint: the time to
there is kept, what was computed after it and lost does not count, and the new process's start does, for both sides.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from resnext import machine

SIDES = ("ours", "timm")
Event = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """Epochs and peak learning rate."""

    epochs: int
    rate: float

    def __str__(self) -> str:
        return f"{self.epochs}x{self.rate:g}"

    @classmethod
    def parse(cls, text: str) -> Setting:
        """Return the setting that a text such as "30x0.1" means."""
        epochs, _, rate = text.partition("x")
        return cls(int(epochs), float(rate))


@dataclass(frozen=True)
class Plan:
    """What a study is about; it cannot change once the study has begun. `limit` is minutes of one run."""

    network: str
    options: dict[str, int]
    settings: tuple[str, ...]
    seeds: int
    thresholds: tuple[float, ...]
    limit: float

    @property
    def all_settings(self) -> list[Setting]:
        """The settings that both sides try."""
        return [Setting.parse(each) for each in self.settings]


@dataclass(frozen=True)
class Run:
    """One training run: side, setting and seed, on one type of machine."""

    place: str
    side: str
    setting: Setting
    seed: int

    @property
    def name(self) -> str:
        """Its directory below the study's."""
        return f"runs/{self.place}/{self.side}-{self.setting}-seed{self.seed}"


@dataclass
class Record:
    """What is known of a run. `epochs` maps an epoch, from 0 on, to (seconds, top-1 on validation).

    `saved` maps the step of a checkpoint to the seconds at which it was there, `before` does so for those of earlier
    pieces than the last; `resumed` whether it is known where the last piece began. `ended` says how the run ended
    ("finished", "limit"), or is empty.
    """

    pieces: list[Event] = field(default_factory=list)
    epochs: dict[int, tuple[float, float]] = field(default_factory=dict)
    saved: dict[int, float] = field(default_factory=dict)
    before: dict[int, float] = field(default_factory=dict)
    resumed: bool = False
    ended: str = ""
    test: Event | None = None

    def minutes_to(self, threshold: float, limit: float) -> float | None:
        """Return the minutes after which validation first reached a top-1; None if not within `limit` minutes."""
        reached = [seconds / 60 for seconds, top1 in self.epochs.values() if top1 >= threshold]
        return min(reached) if reached and min(reached) <= limit else None

    @property
    def best(self) -> float:
        """The best top-1 on validation."""
        return max((top1 for _, top1 in self.epochs.values()), default=0.0)

    @property
    def minutes(self) -> float:
        """The minutes until the last epoch that is known."""
        return max((seconds for seconds, _ in self.epochs.values()), default=0.0) / 60


class Study:
    """A study's directory, read and appended to."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.file = place / "study.jsonl"
        self.plan: Plan | None = None
        self.machines: dict[str, Event] = {}
        self.records: dict[str, Record] = {}
        for event in _read(self.file):
            self._take(event)

    def begin(self, plan: Plan) -> None:
        """Record the plan of a new study; raises ValueError where another one was begun here."""
        if self.plan is None:
            self.tell({"event": "plan", **asdict(plan)})
        elif self.plan != plan:
            raise ValueError(f"{self.place} holds a study with another plan: {self.plan}. Take another --state.")

    def here(self) -> str:
        """Return the key of this machine's type, and record what it is."""
        found = machine.fingerprint()
        words = re.sub(r"[^A-Za-z0-9]+", "-", str(found["processor"])).strip("-").lower()
        digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:6]
        key = f"{words}-{found['cores']}-cores-{digest}"
        if key not in self.machines:
            told = {**machine.description(), "bf16": machine.has_fast_bfloat16()}
            self.tell({"event": "machine", "key": key, **told})
        return key

    def tell(self, event: Event) -> None:
        """Append an event, synced to the disk, and take it in."""
        self.place.mkdir(parents=True, exist_ok=True)
        with self.file.open("ab+") as file:
            cut_short = file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"
            file.write(b"\n" * bool(cut_short) + json.dumps(event).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._take(json.loads(json.dumps(event)))

    def _take(self, event: Event) -> None:
        kind = event["event"]
        if kind == "plan":
            fields = {key: tuple(value) if isinstance(value, list) else value for key, value in event.items()}
            self.plan = Plan(**{key: value for key, value in fields.items() if key != "event"})
            return
        if kind == "machine":
            self.machines[event["key"]] = event
            return
        record = self.records.setdefault(event["run"], Record())
        if kind == "piece":
            record.pieces.append(event)
            record.before, record.resumed = dict(record.saved), False
        elif kind == "resumed":
            record.resumed = True
            record.saved = {step: seconds for step, seconds in record.saved.items() if step <= event["at_step"]}
            record.epochs = {epoch: e for epoch, e in record.epochs.items() if e[0] <= event["seconds"]}
        elif kind == "epoch":
            record.epochs[event["epoch"]] = (event["seconds"], event["top1"])
        elif kind == "saved":
            record.saved[event["at_step"]] = event["seconds"]
        elif kind == "ended":
            record.ended = event["why"]
        elif kind == "test":
            record.test = event

    def record(self, run: Run) -> Record:
        """Return what is known of a run."""
        return self.records.get(run.name, Record())

    def take_in(self, run: Run) -> bool:
        """Take in what the run's own journal tells of its last piece; return whether the run came to its end.

        Both sides' journals have the events "start" or "resume" (`at_step`), "epoch" (`epoch`, `top1`), "checkpoint"
        (`at_step`) and "end", each with `time`, seconds since 1970. To be called before a run goes on, as a run that
        does drops from its journal what it does anew.
        """
        record, journal = self.record(run), self.place / run.name / "journal.jsonl"
        if not record.pieces:
            return False
        started = float(record.pieces[-1]["started"])
        offset: float | None = None
        ended = False
        for event in _read(journal):
            if event["time"] < started:
                continue
            if event["event"] in ("start", "resume"):
                offset = record.before.get(event["at_step"], 0.0) if event["event"] == "resume" else 0.0
                if not record.resumed:
                    at_step = event["at_step"]
                    self.tell({"event": "resumed", **_named(run), "at_step": at_step, "seconds": offset})
            if offset is None:
                continue
            seconds = round(offset + event["time"] - started, 3)
            if event["event"] == "epoch" and record.epochs.get(event["epoch"]) != (seconds, event["top1"]):
                number, top1 = event["epoch"], event["top1"]
                self.tell({"event": "epoch", **_named(run), "epoch": number, "seconds": seconds, "top1": top1})
            elif event["event"] == "checkpoint" and record.saved.get(event["at_step"]) != seconds:
                self.tell({"event": "saved", **_named(run), "at_step": event["at_step"], "seconds": seconds})
            ended = ended or event["event"] == "end"
            record = self.record(run)
        return ended

    def seconds_kept(self, run: Run) -> float:
        """Return the seconds of a run up to its last checkpoint, from which it goes on."""
        saved = self.record(run).saved
        return saved[max(saved)] if saved else 0.0

    def search(self, place: str, side: str) -> dict[Setting, Record]:
        """Return a side's runs with the first seed on a machine, by setting: those that ended."""
        assert self.plan is not None
        runs = {setting: self.record(Run(place, side, setting, 0)) for setting in self.plan.all_settings}
        return {setting: record for setting, record in runs.items() if record.ended}

    def choice(self, place: str) -> tuple[dict[str, Setting], float | None] | None:
        """Return the setting of each side, and the threshold by which they were chosen; None while runs are missing.

        The threshold is the highest that the peer reaches with any setting, and a side's setting the one that reaches
        it first; where there is none, the one of the best top-1.
        """
        assert self.plan is not None
        found = {side: self.search(place, side) for side in SIDES}
        if any(len(runs) < len(self.plan.settings) for runs in found.values()):
            return None
        limit = self.plan.limit
        reached = [t for t in self.plan.thresholds if any(r.minutes_to(t, limit) for r in found["timm"].values())]
        threshold = max(reached, default=None)
        chosen = {}
        for side, runs in found.items():
            times = {} if threshold is None else {s: r.minutes_to(threshold, limit) for s, r in runs.items()}
            fast = {setting: minutes for setting, minutes in times.items() if minutes is not None}
            by_top1 = max(runs, key=lambda setting: (runs[setting].best, -runs[setting].minutes))
            chosen[side] = min(fast, key=lambda setting: fast[setting]) if fast else by_top1
        return chosen, threshold

    def judged(self, place: str) -> dict[str, list[Run]]:
        """Return the runs that each side is judged by on a machine, all seeds; empty while the choice is open."""
        chosen = self.choice(place)
        if chosen is None or self.plan is None:
            return {}
        seeds = range(self.plan.seeds)
        return {side: [Run(place, side, chosen[0][side], seed) for seed in seeds] for side in SIDES}

    def next_run(self, place: str, sides: tuple[str, ...] = SIDES) -> Run | None:
        """Return what is to be trained next on a machine: both sides of a setting, then both of a further seed."""
        assert self.plan is not None
        pairs = [[Run(place, side, setting, 0) for side in SIDES] for setting in self.plan.all_settings]
        pairs += [list(pair) for pair in zip(*self.judged(place).values(), strict=True)][1:]  # all but the first seed
        for number, pair in enumerate(pairs):
            for run in pair if number % 2 == 0 else reversed(pair):  # nobody always comes first
                if run.side in sides and not self.record(run).ended:
                    return run
        return None

    def next_test(self, place: str, sides: tuple[str, ...] = SIDES) -> Run | None:
        """Return a run on a machine that has ended, whose weights are here and whose test accuracy is not known yet.

        Every run is tested when it ends, as its weights may be gone when it is known by which runs a side is judged.
        Nothing is chosen by test accuracy, and the report tells only that of the runs which are judged.
        """
        assert self.plan is not None
        tried = [Run(place, side, setting, 0) for side in sides for setting in self.plan.all_settings]
        judged = [run for side, each in self.judged(place).items() if side in sides for run in each]
        for run in (*tried, *judged):
            record = self.record(run)
            if record.ended and record.test is None and (self.place / run.name).is_dir():
                return run
        return None


def _read(path: Path) -> Iterator[Event]:
    """Yield the events of a file, without lines that a kill cut short."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(event, dict) and "event" in event:
            yield event


def _named(run: Run) -> Event:
    return {"run": run.name, "side": run.side, "setting": str(run.setting), "seed": run.seed}
