"""How long until a network is this accurate on CIFAR-10, with our training and with the loop people use?

    python benchmarks/time_to_accuracy.py --state DIR [--minutes N] [--only ours|timm] [--report]

Works through a study in DIR: both sides train the same network on the same 45,000 images with each of the same six
settings (epochs, peak rate) and one seed; then each side's best setting with two further seeds. A run is tested once,
when it ends; nothing is chosen by that, and only the judged runs' tests are told. One run at a time, the two sides by
turns; the clock of a run starts with its process. It can be stopped (Ctrl-C, SIGTERM, kill -9, --minutes) and goes on
with the same command, also elsewhere: copy DIR, or only DIR/study.jsonl while no run is unfinished. Times of different
types of machine are kept apart. time_to_accuracy.jsonl beside this file is what was measured until now: copy it to
DIR/study.jsonl to go on with it. RESNEXT_CIFAR10 names CIFAR-10 as image folders.

The peer is timm_training.py. Ours is `resnext train` with the recipe below, each run with an empty cache, so that
decoding the images and building kernels count. 16 runs of at most 60 minutes: about 6 hours on two cores with bf16.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Any

from accuracy_report import report
from accuracy_study import SIDES, Event, Plan, Run, Setting, Study
from environment import cifar10_place

from resnext import durable
from resnext.data.manifest import Manifest, scan
from resnext.errors import UserError
from resnext.training import owner
from resnext.training.recipe import to_toml

HERE = Path(__file__).parent
SPLIT, DATA = "split.csv", "data"
PEER = HERE / "timm_training.py"
POLL = 1.0
GRACE = 60.0
"""Seconds that a run has for saving when it is asked to stop."""


def recipe_of(plan: Plan, setting: Setting, seed: int) -> dict[str, Any]:
    """Return our recipe with a setting: small inputs first, one cycle, a moving average."""
    return {
        "network": plan.network,
        "epochs": setting.epochs,
        "batch_size": 128,
        "seed": seed,
        "label_smoothing": 0.1,
        "ema_decay": 0.998,
        "options": dict(plan.options),
        "data": {
            "image_size": 32,
            "resize": 32,
            "channels": 3,
            "mean": [0.4914, 0.4824, 0.4467],
            "std": [0.2471, 0.2435, 0.2616],
            "early_size": [16, 24],
            "early_epochs": [round(0.4 * setting.epochs), round(0.25 * setting.epochs)],
        },
        "augmentation": {"crop": "pad", "padding": 4, "flip": 0.5},
        "optimizer": {"learning_rate": setting.rate, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
        "schedule": {"name": "one-cycle", "warmup_epochs": round(0.2 * setting.epochs, 1)},
    }


def command(study: Study, run: Run) -> list[str]:
    """Return the command that begins a run or goes on with it."""
    assert study.plan is not None
    split, out = str(study.place / SPLIT), str(study.place / run.name)
    if run.side == "ours":
        recipe = study.place / "recipes" / f"{run.setting}-seed{run.seed}.toml"
        recipe.parent.mkdir(exist_ok=True)
        durable.write_text(recipe, to_toml(recipe_of(study.plan, run.setting, run.seed)))
        relocate(study.place / run.name, study.place)
        return [sys.executable, "-m", "resnext", "train", split, f"--recipe={recipe}", f"--out={out}", "--auto-resume"]
    flags = [f"--epochs={run.setting.epochs}", f"--rate={run.setting.rate}", f"--seed={run.seed}"]
    return [sys.executable, str(PEER), f"--split={split}", f"--out={out}", *network_flags(study.plan), *flags]


def network_flags(plan: Plan) -> list[str]:
    """Return the peer's flags for the network."""
    return [f"--network={plan.network}", f"--options={json.dumps(plan.options)}"]


def relocate(run: Path, place: Path) -> None:
    """Where the study was copied to another directory, tell a run of ours where its images are now."""
    file = run / "manifest.parquet"
    if file.exists() and (manifest := Manifest.read(file)).root != place.resolve():
        dataclasses.replace(manifest, root=place.resolve()).write(file)


def prepare(study: Study, cifar10: Path) -> None:
    """Make `data` a link to the images, and cut 10 % of the training images for validation, once for all runs."""
    link = study.place / DATA
    link.unlink(missing_ok=True)
    link.symlink_to(cifar10.resolve(), target_is_directory=True)
    if (study.place / SPLIT).exists():
        return
    manifest = scan(cifar10, purpose="train", seed=0, validation=0.1)
    columns = (manifest.table[name].to_pylist() for name in ("path", "label", "split"))
    rows = [(f"{DATA}/{path}", manifest.classes[label], split) for path, label, split in zip(*columns, strict=True)]
    beside = study.place / f"{SPLIT}.new"
    with beside.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    beside.replace(study.place / SPLIT)


def cache_of(run: Run) -> Path:
    """Return a run's own cache, empty when the run begins on a machine; it is no part of the study's state."""
    return Path(tempfile.gettempdir()) / "resnext-time-to-accuracy" / run.name.replace("/", "-")


def start(line: list[str], cache: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start a process that ends with this one, however that ends, and writes what it says to a file."""
    environment = {**os.environ, "RESNEXT_CACHE": str(cache), "PYTHONUNBUFFERED": "1"}
    options: dict[str, Any] = {"env": environment, "start_new_session": True, "preexec_fn": _die_with_parent}
    with log.open("ab") as file:
        return subprocess.Popen(line, stdout=file, stderr=file, **options)


def _die_with_parent() -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Stopped(Exception):
    """The time for today is over, or the user asked to stop."""


class Driver:
    """Train what is to be trained, until a time."""

    def __init__(self, study: Study, deadline: float) -> None:
        self.study = study
        self.deadline = deadline
        self.asked = False
        self.failed: Run | None = None

    def ask(self, number: int, frame: FrameType | None) -> None:
        """Stop soon; as a signal handler."""
        self.asked = True

    def work(self, sides: tuple[str, ...]) -> None:
        """Train and test what is missing on this machine; raises Stopped when it is time to."""
        place = self.study.here()
        while True:
            if run := self.study.next_test(place, sides):
                self.test(run)
            elif run := self.study.next_run(place, sides):
                self.train(run)
            else:
                return

    def train(self, run: Run) -> None:
        """Begin a run or go on with it, until it ends, reaches its limit, or it is time to stop."""
        study, place = self.study, self.study.place / run.name
        assert study.plan is not None
        if study.take_in(run):
            self.end(run, "finished")
            return
        self.refuse_late()
        if not study.record(run).pieces:
            shutil.rmtree(cache_of(run), ignore_errors=True)
        place.mkdir(parents=True, exist_ok=True)
        log = place.with_name(place.name + ".log")
        line, kept = command(study, run), study.seconds_kept(run)
        started = time.time()
        study.tell({"event": "piece", "run": run.name, "started": started, "commit": commit()})
        say(f"{run.name}: " + (f"goes on after {kept / 60:.1f} minutes" if kept else "begins"))
        process = start(line, cache_of(run), log)
        limit = False
        try:
            while process.poll() is None and not limit:
                time.sleep(POLL)
                study.take_in(run)
                limit = kept + time.time() - started > 60 * study.plan.limit
                self.refuse_late()
        finally:
            stop(process)
            finished = study.take_in(run)
        if finished or limit:
            self.end(run, "finished" if finished else "limit")
            return
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
        if self.failed == run:
            raise UserError(f"{run.name} failed twice; what it said is in {log}:\n{tail}")
        say(f"{run.name} failed and is tried once more:\n{tail}")
        self.failed = run

    def end(self, run: Run, why: str) -> None:
        """Record how a run ended."""
        record = self.study.record(run)
        self.study.tell({"event": "ended", "run": run.name, "why": why})
        shutil.rmtree(cache_of(run), ignore_errors=True)
        say(f"{run.name}: {why} after {record.minutes:.1f} minutes, best validation top-1 {record.best:.4f}")

    def test(self, run: Run) -> None:
        """Look at the test images with a finished run's best weights."""
        study, out = self.study, self.study.place / run.name
        assert study.plan is not None
        self.refuse_late()
        test = study.place / DATA
        if run.side == "ours":
            relocate(out, study.place)
            line = [sys.executable, "-m", "resnext", "evaluate", str(out), str(test), "--json"]
        else:
            line = [sys.executable, str(PEER), f"--test={test / 'test'}", f"--out={out}", *network_flags(study.plan)]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"The test of {run.name} failed: {done.stderr.strip()[-500:]}")
        told: Event = json.loads(done.stdout)
        study.tell({"event": "test", "run": run.name, "top1": told["top1"], "images": told["images"]})
        say(f"{run.name}: test top-1 {told['top1']:.4f}")

    def refuse_late(self) -> None:
        """Raise Stopped where it is time to stop."""
        if self.asked or time.monotonic() > self.deadline:
            raise Stopped


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process, which has time to save, and what it started."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def commit() -> str:
    """Return the commit of this checkout, with a "+" where files differ from it."""
    told = subprocess.run(
        ["git", "-C", str(HERE), "describe", "--always", "--dirty=+"], capture_output=True, text=True, check=False
    )
    return told.stdout.strip() or "unknown"


def say(text: str) -> None:
    """Tell the user, at once."""
    print(text, flush=True)


def main() -> None:
    """Go on with the study, and print its report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, required=True, help="the study's directory")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so many, to go on another time")
    parser.add_argument("--only", choices=SIDES, help="train one side only")
    parser.add_argument("--report", action="store_true", help="print the report and train nothing")
    parser.add_argument("--network", default="cifar_resnet14")
    parser.add_argument("--options", type=json.loads, default={"width": 32}, help="the network's options, as JSON")
    parser.add_argument("--settings", nargs="+", help="EPOCHSxRATE")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.84, 0.86, 0.88, 0.90])
    parser.add_argument("--limit", type=float, default=60.0, help="minutes of one run")
    options = parser.parse_args()
    options.settings = options.settings or ["8x0.1", "8x0.3", "14x0.1", "14x0.3", "22x0.1", "22x0.3"]
    study = Study(options.state)
    if not options.report:
        try:
            carry_out(study, options)
        except (UserError, ValueError) as error:
            sys.exit(str(error))
    print(report(study))


def carry_out(study: Study, options: argparse.Namespace) -> None:
    """Train as long as there is time, as the study's only driver."""
    settings, thresholds = tuple(options.settings), tuple(options.thresholds)
    plan = Plan(options.network, options.options, settings, options.seeds, thresholds, options.limit)
    study.place.mkdir(parents=True, exist_ok=True)
    with owner.owned(study.place):
        study.begin(plan)
        prepare(study, cifar10_place(Path(tempfile.gettempdir()) / "resnext-time-to-accuracy" / "cifar10"))
        driver = Driver(study, time.monotonic() + 60 * options.minutes)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, driver.ask)
        say(f"Up to {2 * (len(settings) + options.seeds - 1)} runs of at most {options.limit:g} minutes each.")
        try:
            driver.work((options.only,) if options.only else SIDES)
        except Stopped:
            say("Stopped; the same command goes on.")


if __name__ == "__main__":
    main()
