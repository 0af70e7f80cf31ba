"""The disk fills while a run writes: one clear line, exit code 2, nothing lost, and it goes on once there is space.

Wherever this runs, a process whose files find no space below a directory stands for the disk. Where mounting is
allowed, as it mostly is for root, a small disk in memory is filled to the last byte besides.
"""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest

from faults import runs
from faults.entry import Faults
from faults.runs import Reference, Trial
from resnext.training import checkpoint, journal

MEBIBYTES = 24
A_STEP = "resnext.training.step:TrainingStep._update"


def may_mount() -> bool:
    """Whether this process may mount: root often, others hardly ever."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return False
    tried = subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True)
    return tried.returncode == 0


class Simulated:
    """A disk that is full when its trial says so."""

    def __init__(self, trial: Trial, tmp_path: Path) -> None:
        self.trial = trial
        self.flag = Path()

    def faults(self, hold: str, at: int) -> Faults:
        faults = self.trial.faults(hold, at, disk=self.trial.place / "runs")
        self.flag = Path(faults.folder) / "full"
        return faults

    def fill(self) -> None:
        self.flag.touch()

    def free(self) -> None:
        self.flag.unlink()


class InMemory:
    """A tmpfs, and a file that takes all that is left of it."""

    def __init__(self, trial: Trial, tmp_path: Path) -> None:
        self.trial = trial
        self.ballast = trial.place / "runs" / "ballast"

    def faults(self, hold: str, at: int) -> Faults:
        return self.trial.faults(hold, at)

    def fill(self) -> None:
        with self.ballast.open("wb", buffering=0) as file:
            for size in (1 << 20, 1 << 12, 1):
                while has_space_for(file, size):
                    pass

    def free(self) -> None:
        self.ballast.unlink()


def has_space_for(file: BinaryIO, size: int) -> bool:
    """Write so many bytes; whether there was space for them."""
    try:
        file.write(b"x" * size)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False
    return True


DISKS = {"simulated": Simulated, **({"tmpfs": InMemory} if may_mount() else {})}


@contextmanager
def mounted(place: Path, kind: str) -> Iterator[None]:
    """Have the folder of a trial's runs on a disk of its own, where it is to be a real one."""
    if kind != "tmpfs":
        yield
        return
    (place / "runs").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={MEBIBYTES}m", "none", str(place / "runs")], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place / "runs")], check=True)


WHILE = {
    "a checkpoint is written": ("crash:directory-made", 8, "state.safetensors"),
    "the journal is appended": (A_STEP, 5, "journal.jsonl"),
    "the last bundle is written": ("resnext.training.validation:Validation._golden", 1, "model.safetensors"),
    "the first checkpoint is written": ("crash:directory-made", 1, "state.safetensors"),
    "the recipe is written": ("resnext.durable:write_text", 1, ".recipe.toml."),
}
"""Where the process is held while the disk is filled, the how-manieth time, and a file that then finds it full."""


CASES = [(kind, while_) for kind in DISKS for while_ in WHILE if kind == "simulated" or while_ in list(WHILE)[:3]]


@pytest.mark.parametrize(("kind", "while_"), CASES)
def test_a_full_disk(kind: str, while_: str, reference: Callable[[str], Reference], place: Path) -> None:
    # Without checkpoints within an epoch it is the journal that finds the disk full.
    whole = reference("rarely-saving" if "journal" in while_ else "plain")
    trial = Trial(whole, place)
    with mounted(place, kind):
        disk = DISKS[kind](trial, place)
        *where, file = WHILE[while_]
        faults = disk.faults(*where)
        child = trial.start(faults=faults)
        runs.wait_until_held(child, faults)
        before = max(map(number, checkpoint.listed(trial.run / "checkpoints")), default=-1)
        disk.fill()
        if "journal" in while_:
            time.sleep(1.1 * journal.FLUSH_SECONDS)  # then it is flushed at the next step, before all else is written
        runs.let_go(faults)
        assert child.end() == 2, child.said()
        last = child.said().strip().splitlines()[-1]
        assert f"The disk with {trial.run} is full." in last
        assert "--resume" in last
        assert "Traceback" not in child.said()
        assert newest(trial.run) >= before
        if kind == "simulated":
            refused = (Path(faults.folder) / "refused").read_text().splitlines()
            assert any(Path(each).name.startswith(file) for each in refused), refused
        disk.free()
        assert trial.finish() == []


def newest(run: Path) -> int:
    """Return the step of the newest whole checkpoint; -1: there is none."""
    loaded = checkpoint.load_newest(run / "checkpoints")
    if loaded is None:
        return -1
    assert loaded[2] == [], "no checkpoint is damaged"
    return number(checkpoint.listed(run / "checkpoints")[-1])


def number(place: Path) -> int:
    return int(place.name.removeprefix("step-"))
