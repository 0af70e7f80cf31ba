"""Being asked to stop: by Ctrl-C, by a system that ends the process, by a batch system some time before it does."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1")
"""The signals that ask a run to stop. Slurm and others send the last one some time before they end a job."""

GRACE = 30.0
"""Seconds from torchrun's SIGTERM to its SIGKILL; Kubernetes and Docker have 30 and 10."""

TIGHT = 25.0
"""Seconds of one step and one save from which on GRACE may not be enough."""


class Interrupted(Exception):
    """The user or the system asked the run to stop; its state was saved.

    `exit_code` is 130 for SIGINT (Ctrl-C), and 143 for SIGTERM and SIGUSR1, by which batch systems announce an end.
    """

    def __init__(self, signal_number: int, message: str | None = None) -> None:
        super().__init__(signal.Signals(signal_number).name if message is None else message)
        self.signal_number = signal_number
        self.exit_code = 128 + (signal.SIGINT if signal_number == signal.SIGINT else signal.SIGTERM)


@contextmanager
def at_once() -> Iterator[None]:
    """Leave by Interrupted, wherever the process is, when SIGTERM or SIGUSR1 comes: where there is no step to finish.

    `requests` within this block collects them instead.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    with _handled([name for name in SIGNALS if name != "SIGINT"], leave):  # Python itself makes an exception of SIGINT
        yield


@contextmanager
def requests() -> Iterator[list[int]]:
    """Collect requests to stop instead of dying in the middle of a step; a second signal acts at once."""
    requested: list[int] = []

    def request(number: int, frame: FrameType | None) -> None:
        requested.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    with _handled(SIGNALS, request) as before:
        yield requested


@contextmanager
def _handled(
    names: Sequence[str], handle: Callable[[int, FrameType | None], None]
) -> Iterator[dict[int, signal._HANDLER]]:
    """Handle these signals within this block, and yield who handled them before; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield {}
        return
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        signal.signal(number, handle)
    try:
        yield before
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
