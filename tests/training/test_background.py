"""Work beside training: in order, one at a time, and its failures come out where training can tell of them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator

import pytest

from resnext.training.background import Background


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def test_jobs_are_done_in_order_beside_the_caller(gate: threading.Event) -> None:
    done: list[int] = []
    with Background() as background:
        background.submit(lambda: (gate.wait(), done.append(0))[1])
        background.submit(lambda: done.append(1))
        assert done == [], "the caller goes on while the first one waits"
        gate.set()
        background.wait()
        assert done == [0, 1]
        background.submit(lambda: done.append(2))
    assert done == [0, 1, 2], "what was submitted is done at the end of the block"


def test_who_submits_a_third_job_waits_for_the_first(gate: threading.Event) -> None:
    with Background() as background:
        background.submit(lambda: gate.wait() and None)
        background.submit(lambda: None)
        third = threading.Thread(target=background.submit, args=[lambda: None])
        third.start()
        third.join(0.3)
        assert third.is_alive()
        gate.set()
        third.join(10)
        assert not third.is_alive()


@pytest.mark.parametrize("how", ["submit", "check", "wait", "exit"])
def test_a_failure_comes_out_of_the_next_call_and_later_jobs_are_not_begun(how: str) -> None:
    done: list[int] = []

    def fail() -> None:
        raise OSError("no space")

    background = Background()
    background.submit(fail)
    background.submit(lambda: done.append(1))
    background._jobs.join()
    calls: dict[str, Callable[[], None]] = {
        "submit": lambda: background.submit(lambda: done.append(2)),
        "exit": lambda: background.__exit__(None, None, None),
        "check": background.check,
        "wait": background.wait,
    }
    with pytest.raises(OSError, match="no space"):
        calls[how]()
    assert done == []


def failing(error: BaseException, *jobs: Callable[[], None]) -> None:
    with Background() as background:
        for job in jobs:
            background.submit(job)
        raise error


def test_the_first_error_is_not_hidden_by_one_of_a_job() -> None:
    def fail() -> None:
        raise OSError("second")

    with pytest.raises(ValueError, match="first"):
        failing(ValueError("first"), fail)


def test_who_leaves_at_once_waits_for_nothing(gate: threading.Event) -> None:
    with pytest.raises(KeyboardInterrupt):
        failing(KeyboardInterrupt(), lambda: gate.wait() and None)


def test_the_thread_gives_way_to_those_that_train() -> None:
    seen: list[int] = []
    with Background() as background:
        background.submit(lambda: seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id())))
    assert seen[0] > os.getpriority(os.PRIO_PROCESS, 0)
