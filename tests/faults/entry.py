"""What a process does before it trains, where something is to be done to it; `python -m faults.entry train …`."""

from __future__ import annotations

import errno
import importlib
import io
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FAULTS = "FAULTS"
PAUSE = 0.01
AT_MOST = 300.0


@dataclass(frozen=True)
class Faults:
    """What is done to a process. `folder` is where it and its parent talk by files.

    `hold` names a function, as `module:attribute`, or a crash point, as `crash:name`, and `at` which call of it: there
    it writes `held` and stays until there is a file `go`. Where there is a file `full`, what it writes below `disk`
    finds no space. `record` has it write the crash points that it passes to the file `passed`; `plant` names a bug of
    `plants`. `power` has it die at the crash point of that number and leave, in `cut`, what a disk without power would
    have kept of `disk`; `lying` is the number of the checkpoint from which on the disk forgets what it was given.
    """

    folder: str
    hold: str = ""
    at: int = 1
    disk: str = ""
    record: bool = False
    plant: str = ""
    power: int = 0
    lying: int = 0
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def main(arguments: list[str]) -> None:
    """Do what the environment says to this process, and then what the command line says."""
    if told := os.environ.pop(FAULTS, ""):
        prepare(Faults(**json.loads(told)))
    from resnext.cli import main as command_line

    sys.argv = ["resnext", *arguments]
    command_line(arguments)


def prepare(faults: Faults) -> None:
    """Put these faults in force."""
    folder = Path(faults.folder)
    if faults.hold:
        _hold(faults, folder)
    if faults.disk and not faults.power:
        _limit(Path(faults.disk), folder / "full")
    if faults.record:
        _record(folder / "passed")
    if faults.lying:
        _forget(faults.lying)
    if faults.power:
        _lose_power(faults, folder)
    if faults.plant:
        from faults import plants

        plants.PLANTED[faults.plant].plant()


def at_crash_points(act: Callable[[str], None]) -> None:
    """Have `act` called with its name at every crash point, before the point itself."""
    from resnext import durable

    point = durable.crash_point

    def passed(name: str) -> None:
        act(name)
        point(name)

    durable.crash_point = passed


def wait_here(folder: Path) -> None:
    """Tell the parent that this process has come to the place, and stay until it may go on."""
    (folder / "held").touch()
    until = time.monotonic() + AT_MOST
    while not (folder / "go").exists() and time.monotonic() < until:
        time.sleep(PAUSE)


def _hold(faults: Faults, folder: Path) -> None:
    place, _, name = faults.hold.partition(":")
    calls = [0]

    def count() -> None:
        calls[0] += 1
        if calls[0] == faults.at:
            wait_here(folder)

    if place == "crash":
        at_crash_points(lambda passed: count() if passed == name else None)
        return
    owner: Any = importlib.import_module(place)
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    original = getattr(owner, last)

    def held(*arguments: Any, **more: Any) -> Any:
        count()
        return original(*arguments, **more)

    setattr(owner, last, held)


def _record(file: Path) -> None:
    def note(name: str) -> None:
        with file.open("a") as passed:
            passed.write(name + "\n")

    at_crash_points(note)


def _lose_power(faults: Faults, folder: Path) -> None:
    import random

    from faults.disk import Disk

    disk = Disk(Path(faults.disk))
    disk.watch()
    passed = [0]

    def cut(name: str) -> None:
        passed[0] += 1
        if passed[0] == faults.power:
            disk.after_power_loss(folder / "cut", random.Random(faults.seed))
            os._exit(137)

    at_crash_points(cut)


def _forget(first: int) -> None:
    from contextlib import contextmanager

    from resnext.training import checkpoint

    real, checkpoints = checkpoint.durable.new_directory, [0]

    @contextmanager
    def forgetful(path: Path) -> Any:
        with real(path) as beside:
            yield beside
        checkpoints[0] += path.name.startswith("step-")
        if path.name.startswith("step-") and checkpoints[0] >= first:
            (path / checkpoint.TENSORS).write_bytes(b"")

    checkpoint.durable.new_directory = forgetful


class _NoSpace(io.FileIO):
    """A file on a disk that is full once the file `flag` exists: half of a write succeeds, then none."""

    def __init__(self, file: Any, mode: str, flag: Path) -> None:
        super().__init__(file, mode)
        self.flag = flag
        self.refusing = False

    def write(self, data: Any) -> int:
        if not self.flag.exists():
            return super().write(data)
        view = memoryview(data).cast("B")
        if self.refusing or len(view) < 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.name))
        self.refusing = True
        with os.fdopen(os.open(self.flag.with_name("refused"), os.O_WRONLY | os.O_CREAT | os.O_APPEND), "w") as told:
            told.write(f"{self.name}\n")
        return super().write(view[: len(view) // 2])


def _limit(disk: Path, flag: Path) -> None:
    """Let files below `disk` find no space once `flag` exists. Reading and renaming need none."""
    opened = io.open

    def limited(file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, *more: Any, **named: Any) -> Any:
        writes = any(letter in mode for letter in "wax") and "+" not in mode
        if isinstance(file, int) or not writes or disk not in Path(os.fspath(file)).absolute().parents:
            return opened(file, mode, buffering, encoding, *more, **named)
        raw = _NoSpace(file, mode.replace("t", "").replace("b", ""), flag)
        if buffering == 0:
            return raw
        buffered = io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding or "utf-8")

    io.open = limited  # what pathlib opens with
    import builtins

    builtins.open = limited


if __name__ == "__main__":
    main(sys.argv[1:])
