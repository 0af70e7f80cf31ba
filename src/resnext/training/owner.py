"""One process at a time owns a run's directory: it holds a lock on a file there, and the file says who it is.

The lock (flock) goes with its process however that ends, so that nothing has to be removed after a crash.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from resnext.errors import UserError

if sys.platform != "win32":
    import fcntl

LOCK = ".lock"
PATIENCE, PAUSE = 1.0, 0.05
"""Seconds for which a lock is tried again: who only looks whether a run is owned holds it for an instant."""

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EINVAL)
"""What a file system answers that has no locks."""


@contextmanager
def owned(place: Path) -> Iterator[None]:
    """Own a run's directory within this block.

    Raises UserError that names the owner where another process is. On Windows, and on a file system without locks,
    nobody is kept out.
    """
    descriptor = os.open(place / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        giving_up = time.monotonic() + PATIENCE
        while not _locked(descriptor, exclusive=True):
            if time.monotonic() > giving_up:
                raise _held(place)
            time.sleep(PAUSE)
        _write(descriptor, _myself())
        yield
        _write(descriptor, "")
    finally:
        os.close(descriptor)


def refuse_owned(place: Path) -> None:
    """Raise UserError, at once, where another process owns a run's directory."""
    try:
        descriptor = os.open(place / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return  # nobody ever owned it; or it cannot be read, which says nothing of who owns it
    try:
        if not _locked(descriptor, exclusive=False):
            raise _held(place)
    finally:
        os.close(descriptor)


def _locked(descriptor: int, *, exclusive: bool) -> bool:
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True


def _myself() -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return json.dumps({"process": os.getpid(), "host": socket.gethostname(), "since": since, "command": command})


def _write(descriptor: int, text: str) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)


def _held(place: Path) -> UserError:
    try:
        told = json.loads((place / LOCK).read_text(encoding="utf-8"))
        who = f"process {told['process']} on {told['host']}, since {told['since']} ({told['command']})"
    except (OSError, ValueError, KeyError, TypeError):
        who = "another process"
    return UserError(f"{place} is in use by {who}.\nWait until that has ended, end it, or choose another --out.")
