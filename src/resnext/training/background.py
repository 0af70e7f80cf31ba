"""Work that a run does beside its training, in order, in one thread: writing what was copied for it before."""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
from collections.abc import Callable
from types import TracebackType

from resnext.training.stopping import Interrupted

NICENESS = 10
"""The thread gives way to those that train: on Linux each thread has a niceness of its own."""


class Background:
    """Do jobs one after another in a thread. At most one waits: who submits a third one waits for the first.

    What a job raises comes out of the next call of `submit`, `check` or `wait`, and no later job is begun.
    """

    def __init__(self) -> None:
        self._jobs: queue.Queue[Callable[[], object] | None] = queue.Queue(maxsize=1)
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None

    def submit(self, job: Callable[[], object]) -> None:
        """Have a job done after those submitted before."""
        self.check()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="resnext-saving", daemon=True)
            self._thread.start()
        self._jobs.put(job)

    def check(self) -> None:
        """Raise what a job raised, once."""
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def wait(self) -> None:
        """Return when all jobs are done; raises what one of them raised."""
        self._jobs.join()
        self.check()

    def __enter__(self) -> Background:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Interrupted) or not isinstance(error, Exception | None):
            return  # asked to leave at once: what is being written is not there until it is whole
        if self._thread is not None:
            self._jobs.join()
            self._jobs.put(None)
            self._thread.join()
            self._thread = None
        if error is None:
            self.check()

    def _work(self) -> None:
        if sys.platform == "linux":
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        while (job := self._jobs.get()) is not None:
            try:
                if self._failure is None:
                    job()
            except BaseException as failure:  # handed over to whoever submits, whatever it is
                self._failure = failure
            finally:
                self._jobs.task_done()
        self._jobs.task_done()
