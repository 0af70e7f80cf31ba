"""One process at a time works on a run: the second leaves at once and says who is there."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from making import TINY, write_colours
from resnext.errors import UserError
from resnext.training import owner
from resnext.training.owner import LOCK, owned, refuse_owned
from resnext.training.run import train

OWNING = """
import sys
from pathlib import Path
from resnext.errors import UserError
from resnext.training.owner import owned
try:
    with owned(Path(sys.argv[1])):
        print("owned", flush=True)
        sys.stdin.read()
except UserError as error:
    sys.exit(str(error))
"""


def start(place: Path) -> subprocess.Popen[str]:
    """Start a process that owns `place` until its stdin ends."""
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", OWNING, str(place)], stdin=pipe, stdout=pipe, stderr=pipe, text=True)


@contextmanager
def owned_by_another(place: Path) -> Iterator[subprocess.Popen[str]]:
    place.mkdir(parents=True, exist_ok=True)
    with start(place) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "owned\n"
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colours(tmp_path_factory.mktemp("owner") / "photos", 8)


@pytest.mark.parametrize("resume", [False, True])
def test_the_second_leaves_while_the_first_is_there_and_names_it(tmp_path: Path, photos: Path, resume: bool) -> None:
    place = tmp_path / "run"
    with owned_by_another(place) as process:
        with pytest.raises(UserError) as caught:
            train(photos, out=place, resume=resume, **TINY)
        assert process.poll() is None, "it does not wait until the first has ended"
        assert f"{place} is in use by process {process.pid} on " in str(caught.value)
        assert len(str(caught.value).splitlines()) == 2
        assert [file.name for file in place.iterdir()] == [LOCK], "nothing is written by the second"


def test_who_begins_after_the_plan_was_made_is_kept_out_too(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "run"
    monkeypatch.setattr(owner, "refuse_owned", lambda place: None)
    with owned_by_another(place), pytest.raises(UserError, match="is in use by process"):
        train(photos, out=place, **TINY)


def test_a_killed_owner_owns_nothing(tmp_path: Path) -> None:
    with owned_by_another(tmp_path) as process:
        with pytest.raises(UserError):
            refuse_owned(tmp_path)
        process.send_signal(signal.SIGKILL)
        process.wait()
        refuse_owned(tmp_path)
        with owned(tmp_path):
            assert f'"process": {os.getpid()}' in (tmp_path / LOCK).read_text()
    assert (tmp_path / LOCK).read_text() == "", "who has left is not named"


def test_of_two_that_start_together_one_gets_it(tmp_path: Path) -> None:
    for number in range(10):
        place = tmp_path / str(number)
        place.mkdir()
        both = [start(place), start(place)]
        while all(process.poll() is None for process in both):
            time.sleep(0.01)
        loser = next(index for index in range(2) if both[index].poll() is not None)
        winner = both[1 - loser]
        assert winner.communicate(timeout=300)[0] == "owned\n"  # which ends its stdin
        assert winner.returncode == 0
        told = both[loser].communicate(timeout=300)
        assert both[loser].returncode == 1, told
        assert f"process {winner.pid} on" in told[1]


def test_a_run_leaves_its_lock_to_the_next(tmp_path: Path, photos: Path) -> None:
    place = tmp_path / "run"
    first = train(photos, out=place, **{**TINY, "epochs": 1})
    refuse_owned(place)
    again = train(photos, out=place, resume=True, **{**TINY, "epochs": 2})
    assert first.path == again.path == place


def test_a_look_does_not_keep_the_owner_out(tmp_path: Path) -> None:
    (tmp_path / LOCK).touch()
    looking = os.open(tmp_path / LOCK, os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    timer = threading.Timer(0.3, os.close, [looking])
    timer.start()
    with owned(tmp_path):
        pass
    timer.join()


def test_a_file_system_without_locks_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*arguments: Any) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(owner.fcntl, "flock", flock)
    with owned(tmp_path), owned(tmp_path):
        refuse_owned(tmp_path)


def test_a_directory_with_nothing_but_a_lock_is_empty(tmp_path: Path, photos: Path) -> None:
    with owned(tmp_path):
        pass
    train(photos, out=tmp_path, **{**TINY, "epochs": 1})
