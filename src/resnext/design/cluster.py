"""Carry a study out on Ray: trials as tasks, on one machine or many that share the study's directory.

Ray decides where a task runs and starts it again where a machine is lost; a trial that is started again goes on from
its newest checkpoint. A task claims a set of cores on its machine, so that no two trials share one.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from resnext.design.conduct import Tell, failure, log_of, started, stopped
from resnext.design.study import Study, Trial
from resnext.errors import UserError
from resnext.training import owner, stopping

if sys.platform != "win32":
    import fcntl

LOCAL = "local"
POLL = 1.0
RETRIES = 5
ANSWER_WITHIN = 3.0
"""Seconds within which a cluster must answer."""


def conduct(study: Study, tell: Tell, address: str, cores: int | None = None) -> None:
    """Train what is due as tasks of `cores` cores each (None: all of the smallest machine), until nothing is.

    `address` is that of a Ray cluster, or "local", which makes this machine one. The study's directory, the data and
    this package must be where they are here on every machine. Raises as `conduct.conduct` does.
    """
    ray = _ray()
    with owner.owned(study.place), stopping.requests() as asked, _connected(ray, address):
        cores = cores or _smallest(ray)
        task = ray.remote(num_cpus=cores, max_retries=RETRIES)(_carry_out)
        while due := study.due():
            running = {task.remote(str(study.place), trial.name, cores): trial for trial in due}
            for number, trial in enumerate(due):
                tell({"event": "trial", "trial": trial.name, "number": number + 1, "of": len(due)})
            while running:
                if asked:
                    raise stopped(study, asked[0])
                done, _ = ray.wait(list(running), timeout=POLL)
                for each in done:
                    _finish(ray, each, study, running.pop(each), tell)


def _finish(ray: Any, task: Any, study: Study, trial: Trial, tell: Tell) -> None:
    try:
        code = ray.get(task)
    except ray.exceptions.RayError as error:
        raise UserError(f"{trial.name} was lost: {str(error).splitlines()[0]}. Go on with --resume.") from error
    if code:
        raise failure(study, trial, code)
    tell({"event": "finished", "trial": trial.name, "outcome": study.outcome(trial)})


def _carry_out(place: str, name: str, cores: int) -> int:
    """Train one trial on the machine that Ray chose; return its exit code."""
    log_of(Path(place), name).parent.mkdir(exist_ok=True)
    with claimed(cores) as numbers, started(Path(place), name, {"OMP_NUM_THREADS": str(cores)}) as process:
        if numbers and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(process.pid, numbers)
        return process.wait()


@contextmanager
def claimed(cores: int) -> Iterator[list[int]]:
    """Claim so many cores that no other trial of this machine has; none where so many are not left."""
    here = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    with ExitStack() as held:
        mine: list[int] = []
        for number in here:
            if len(mine) < cores and _lock(number, held):
                mine.append(number)
        if len(mine) < cores:
            held.close()
            mine = []
        yield mine


def _lock(core: int, held: ExitStack) -> bool:
    """Lock a core by its number, until the stack is closed or this process ends; return whether it was free."""
    file = Path(tempfile.gettempdir()) / f"resnext-{os.getuid()}-core-{core}.lock"
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return False
    held.callback(os.close, descriptor)
    return True


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise UserError("--ray needs the package ray. Install it: pip install 'resnext[scale]'.") from error
    return ray


@contextmanager
def _connected(ray: Any, address: str) -> Iterator[None]:
    """Be connected to a cluster within this block."""
    already = ray.is_initialized()
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if not already and ":" in address:
            _reach(address)
        if not already and address == LOCAL:
            ray.init(include_dashboard=False, num_cpus=len(os.sched_getaffinity(0)), **quiet)
        elif not already:
            ray.init(address=address, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0][:160]
        raise UserError(f"There is no Ray cluster at {address} ({reason}). Start one, or use --ray local.") from error
    try:
        yield
    finally:
        if not already:
            ray.shutdown()


def _reach(address: str) -> None:
    """Raise an OSError where nobody answers at HOST:PORT; Ray itself would ask for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    socket.create_connection((host, int(port)), timeout=ANSWER_WITHIN).close()


def _smallest(ray: Any) -> int:
    """Return the cores of the cluster's smallest machine that has any."""
    counts = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    if not (some := [count for count in counts if count]):
        raise UserError("The Ray cluster has no cores. Start workers, or use --ray local.")
    return min(some)
