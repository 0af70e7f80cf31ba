"""Several processes, started by torchrun as a user would: one run, each image once, killed and restarted exactly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from making import TINY, write_colours
from resnext.bundle import Bundle
from resnext.data import order
from resnext.data.manifest import Manifest
from resnext.training import checkpoint, journal

ENOUGH = 200  # seconds, for what takes ten
FIELDS = {name: value for name, value in TINY.items() if name not in ("resize", "workers", "cache_gib")}
MEASURED = {"event", "epoch", "step", "images", "loss", "learning_rate", "train_loss", "top1", "best"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colours(tmp_path_factory.mktemp("photos"), 30)


def command(photos: Path, out: Path, processes: int, *, restarts: int = 0, **fields: Any) -> list[str]:
    """Return a command line that trains with so many processes; one needs no torchrun."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in {**FIELDS, **fields}.items()]
    train = ["-m", "resnext", "train", str(photos), f"--out={out}", "--json", "--no-report", *flags]
    if processes == 1:
        return [sys.executable, *train]
    several = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [sys.executable, *several, f"--max-restarts={restarts}", *train]


def start(line: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    return subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(line: list[str], *flags: str) -> subprocess.CompletedProcess[str]:
    process = start([*line, *flags])
    out, err = process.communicate(timeout=ENOUGH)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def ranks(parent: int) -> dict[int, int]:
    """Return the process numbers of torchrun's children by their rank."""
    found = {}
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            try:
                above = int((place / "stat").read_text().rpartition(")")[2].split()[1])
                environment = dict(line.partition("=")[::2] for line in (place / "environ").read_text().split("\0"))
            except (OSError, ValueError):
                continue
            if above == parent and "RANK" in environment:
                found[int(environment["RANK"])] = int(place.name)
    return found


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + ENOUGH
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


def reached(out: Path, step: int) -> Callable[[], bool]:
    """Return whether a run's journal has told of a step; told soon after, as lines are flushed every second."""

    def told() -> bool:
        path = out / "journal.jsonl"
        return path.exists() and any(event.get("step", -1) >= step for event in journal.read(path))

    return told


def account(out: Path) -> list[dict[str, Any]]:
    events = [event for event in journal.read(out / "journal.jsonl") if event["event"] in ("step", "epoch")]
    return [{key: value for key, value in event.items() if key in MEASURED} for event in events]


def assert_equal_runs(one: Path, other: Path) -> None:
    """Assert that two runs are the same bit for bit: account, bundle and everything in the last checkpoint."""
    assert account(one) == account(other)
    assert Bundle.open(one).identity == Bundle.open(other).identity
    newest = [checkpoint.load_newest(each / "checkpoints") for each in (one, other)]
    assert newest[0] is not None
    assert newest[1] is not None
    assert newest[0][0].keys() == newest[1][0].keys()
    assert all(newest[0][0][name].equal(newest[1][0][name]) for name in newest[0][0])
    assert newest[0][1]["position"] == newest[1][1]["position"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a recipe with all that has a state of its own: moving average, mixing, gates."""
    path = tmp_path_factory.mktemp("recipe") / "hard.toml"
    path.write_text(
        'network = "cifar_resnet8"\nepochs = 6\nbatch_size = 8\nema_decay = 0.9\n'
        "[options]\nfinal_survival = 0.5\n"
        "[data]\nimage_size = 16\nresize = 16\nmean = [0.5, 0.5, 0.5]\nstd = [0.25, 0.25, 0.25]\n"
        '[augmentation]\ncrop = "pad"\npadding = 2\nflip = 0.5\nmixup = 0.2\n'
        "[optimizer]\nlearning_rate = 0.05\n"
        '[machine]\nform = "plain"\n'  # what a stopwatch chooses may differ between two runs
    )
    return path


@pytest.fixture(scope="module")
def whole(photos: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    done = run(command(photos, out, 2, recipe=recipe, epochs=6, checkpoint_every=0.001))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["bundle"] == f"{out}/model", "one process speaks, and its JSON is all of stdout"
    return out


def test_two_processes_leave_one_account_of_each_image(whole: Path) -> None:
    events = list(journal.read(whole / "journal.jsonl"))
    begin = events[0]
    assert "2 processes" in begin["device"]
    steps = [event for event in events if event["event"] == "step"]
    assert [event["step"] for event in steps] == [*range(len(steps))]
    for epoch in range(6):
        assert sum(event["images"] for event in steps if event["epoch"] == epoch) == begin["train_images"]
    assert Bundle.open(whole).verify() == []
    assert sum(event["event"] == "end" for event in events) == 1


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_killed_process_is_restarted_and_the_run_ends_as_if_nothing_had_been(
    whole: Path, photos: Path, recipe: Path, tmp_path: Path, victim: int
) -> None:
    out = tmp_path / "run"
    process = start(command(photos, out, 2, restarts=2, recipe=recipe, epochs=6, checkpoint_every=0.001))
    wait_until(reached(out, 13), process)
    os.kill(ranks(process.pid)[victim], signal.SIGKILL)
    _, err = process.communicate(timeout=ENOUGH)
    assert process.returncode == 0, err
    assert sum(event["event"] == "resume" for event in journal.read(out / "journal.jsonl")) == 1
    assert_equal_runs(out, whole)


def test_sigterm_to_torchrun_saves_and_the_same_command_goes_on(
    whole: Path, photos: Path, recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    line = command(photos, out, 2, recipe=recipe, epochs=6, checkpoint_every=1000)
    process = start([*line, "--auto-resume"])
    wait_until(reached(out, 5), process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=ENOUGH)
    assert process.returncode != 0
    assert err.count("Stopped by SIGTERM") == 1, "one process speaks"
    newest = checkpoint.listed(out / "checkpoints")[-1]
    assert int(newest.name.removeprefix("step-")) > 5, "it was saved where it stopped"
    done = run(line, "--auto-resume")
    assert done.returncode == 0, done.stderr
    assert_equal_runs(out, whole)
    again = run(line, "--auto-resume")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["identity"] == Bundle.open(whole).identity, "a finished run is left as it is"


def test_two_one_two_processes_see_each_image_once(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for processes, epochs in ((2, 1), (1, 2), (2, 3)):
        done = run(command(photos, out, processes, epochs=epochs), *(["--resume"] if epochs > 1 else []))
        assert done.returncode == 0, done.stderr
        if epochs > 1:
            assert "number of processes" in done.stderr
            assert "Batch norm now sees other parts" in done.stderr
    events = [event for event in account(out) if event["event"] == "step"]
    assert [event["step"] for event in events] == [*range(len(events))]
    for epoch in range(3):
        assert sum(event["images"] for event in events if event["epoch"] == epoch) == 81


def test_with_synchronised_batch_norm_two_processes_compute_what_one_does(photos: Path, tmp_path: Path) -> None:
    alike = {"precision": "fp32", "epochs": 1, "batch_norm": "synchronised", "learning_rate": 0.01, "flip": 0}
    for processes in (1, 2):
        done = run(command(photos, tmp_path / str(processes), processes, **alike))
        assert done.returncode == 0, done.stderr
    one, two = (
        np.array([event["loss"] for event in account(tmp_path / name) if event["event"] == "step"])
        for name in ("1", "2")
    )
    np.testing.assert_allclose(two, one, rtol=1e-3)
    local = run(command(photos, tmp_path / "local", 2, **{**alike, "batch_norm": "local"}))
    assert local.returncode == 0, local.stderr
    other = np.array([event["loss"] for event in account(tmp_path / "local") if event["event"] == "step"])
    assert np.abs(other / one - 1).max() > 1e-2, "batch norm of halves is another function"


def test_a_mistake_is_told_once_and_ends_all_processes(photos: Path, tmp_path: Path) -> None:
    done = run(command(photos, tmp_path / "run", 2, network="nosuch"))
    assert done.returncode != 0
    assert done.stderr.count("nosuch") == 1
    assert "Traceback (most recent call last):\n  File" not in done.stderr.partition("torch/distributed")[0]


def test_linear_scaling_is_said_and_recorded(photos: Path, tmp_path: Path) -> None:
    done = run(command(photos, tmp_path / "run", 2, epochs=1, scaling="linear"))
    assert done.returncode == 0, done.stderr
    assert "Scaled to 2 processes: batches of 16 images and a learning rate of 0.1" in done.stderr
    recorded = (tmp_path / "run" / "recipe.toml").read_text()
    assert "batch_size = 16\n" in recorded
    assert "learning_rate = 0.1\n" in recorded


POISONED = """
import math, os, sys
from resnext.cli import main
from resnext.training.step import TrainingStep

original = TrainingStep._inputs

def inputs(self, batch, epoch, step):
    values, targets = original(self, batch, epoch, step)
    return (values * math.nan if step == 4 and os.environ["RANK"] == "1" else values), targets

TrainingStep._inputs = inputs
main(sys.argv[1:])
"""


def test_what_befalls_one_process_is_agreed_on_by_all(tmp_path: Path) -> None:
    """One process meets a batch that is not finite, and each of both an image that cannot be read."""
    photos, out, script = write_colours(tmp_path / "photos", 30), tmp_path / "run", tmp_path / "poisoned.py"
    broken = [photos / "red" / f"{number}.png" for number in range(6)]
    for path in broken:
        path.write_bytes(b"no picture")
    script.write_text(POISONED)
    line = command(photos, out, 2, epochs=2, max_unreadable=0.2)
    at = line.index("-m", 3)
    done = run([*line[:at], str(script), *line[at + 2 :]])
    assert done.returncode == 0, done.stderr
    events = list(journal.read(out / "journal.jsonl"))
    (skipped,) = (event for event in events if event["event"] == "skipped")
    assert (skipped["step"], skipped["why"]) == (4, "loss")
    train = {path.name for path in broken} & {
        Path(path).name
        for path in Manifest.read(out / "manifest.parquet").split("train").paths.to_pylist()
        if "red" in path
    }
    named = {Path(event["path"]).name for event in events if event["event"] == "unreadable"}
    assert named == train
    seen = [sum(e["images"] for e in events if e["event"] in ("step", "skipped") and e["epoch"] == n) for n in (0, 1)]
    assert seen == [events[0]["train_images"] - len(train)] * 2
    assert all(np.isfinite(value).all() for value in Bundle.open(out).read("model.safetensors").values())


HANGING = """
import os, sys, time
from datetime import timedelta
from resnext.cli import main
from resnext.training import distributed
from resnext.training.step import TrainingStep

distributed.TIMEOUT = timedelta(seconds=15)
original = TrainingStep._inputs

def inputs(self, batch, epoch, step):
    if step == 4 and os.environ["RANK"] == "1":
        time.sleep(1000)
    return original(self, batch, epoch, step)

TrainingStep._inputs = inputs
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_process_that_hangs_ends_the_run_in_words(photos: Path, tmp_path: Path) -> None:
    script = tmp_path / "hanging.py"
    script.write_text(HANGING)
    line = command(photos, tmp_path / "run", 2, epochs=1)
    at = line.index("-m", 3)
    done = run([*line[:at], str(script), *line[at + 2 :]])
    assert done.returncode != 0
    assert "Process 0 on " in done.stderr
    assert "lost the others of this run" in done.stderr
    assert "--max-restarts" in done.stderr
    loaded = checkpoint.load_newest(tmp_path / "run" / "checkpoints")
    assert loaded is not None, "the last checkpoint is intact"


@pytest.mark.parametrize("count", [2, 3, 7, 8, 9, 64, 129])
@pytest.mark.parametrize("processes", [1, 2, 3, 4, 8])
def test_parts_are_the_whole_and_nearly_equal(count: int, processes: int) -> None:
    parts = [order.part(count, process, processes) for process in range(processes)]
    assert all(part.whole == count for part in parts)
    if count < 2 * processes:
        assert all((part.start, part.stop, part.copies) == (0, count, processes) for part in parts)
        return
    rows = [row for part in parts for row in range(part.start, part.stop)]
    assert rows == [*range(count)]
    sizes = {part.stop - part.start for part in parts}
    assert max(sizes) - min(sizes) <= 1 < min(sizes)
    assert {part.copies for part in parts} == {1}
