"""A run: from a folder of images to a bundle, in one directory that can be stopped and taken up again."""

from __future__ import annotations

import errno
import json
import shlex
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnext import durable, machine
from resnext.bundle import Bundle
from resnext.engine import choose_device
from resnext.errors import UserError
from resnext.training import distributed, journal, memory, owner, stopping
from resnext.training.background import Background
from resnext.training.distributed import ALONE, Group
from resnext.training.journal import Journal, Observer
from resnext.training.plan import JOURNAL, MANIFEST, RECIPE, Plan, Wish, plan, refuse_occupied
from resnext.training.stopping import Interrupted

if TYPE_CHECKING:
    from resnext.training.session import Session

UNTOLD = ("progress", "estimate", "stopping")
"""Events that are for whoever watches, and not for the journal."""


@dataclass(frozen=True)
class Run:
    """A finished run: its directory, what its bundle (best on validation) scored on validation, and whether it leads.

    Of several processes the first leads; the others have the same scores, and the bundle where they see the directory.
    """

    path: Path
    scores: dict[str, Any]
    leads: bool = True

    @cached_property
    def bundle(self) -> Bundle:
        """The run's bundle."""
        return Bundle.open(self.path)


def train(
    data: str | Path,
    /,
    *,
    out: str | Path | None = None,
    recipe: str | Path | None = None,
    resume: bool = False,
    auto_resume: bool = False,
    observer: Observer = journal.ignore,
    **fields: Any,
) -> Run:
    """Train a classifier on a folder of images, a CSV or a named data set, and return its run.

    `out` is the run's directory (default `runs/NAME`); `recipe` a TOML file or the name of a recipe of this
    package; `fields` are recipe fields (`network`, `epochs`, `image_size`, …, or whole sections as dicts), `form`
    ("auto", "a", "b" or "c") and `scaling` ("none" or "linear"), as the flags of these names, and win over it. With
    `auto_resume` a run that is there goes on, a finished one is returned, and otherwise one begins. Started by torchrun
    it is one of the processes that train together. `observer` is called with every event that the journal gets. Raises
    UserError for whatever the caller can mend; an interrupted run raises `training.stopping.Interrupted` after its
    state was saved.
    """
    wish = Wish(out, resume, auto_resume)
    with distributed.joined(fields.get("device") or "auto") as group:
        planned = shared_plan(
            group, lambda: plan(data, wish=wish, recipe=recipe, fields=fields, group=group, observer=observer)
        )
        return execute(planned, observer, group)


def shared_plan(group: Group, make: Callable[[], Plan]) -> Plan:
    """Return the plan that the first process makes, in all of them."""
    return make() if group.size == 1 else Plan.from_bytes(group.agree(lambda: make().to_bytes()))


def execute(planned: Plan, observer: Observer = journal.ignore, group: Group = ALONE) -> Run:
    """Carry a plan out, as the directory's one owner: write it, train, keep the best bundle, measure it once more."""
    place = planned.path
    if planned.finished:
        return Run(place, Bundle.open(place).contents.results, group.leads)
    try:
        if group.leads:
            durable.make_directory(place)
        owned = owner.owned(place) if group.leads else nullcontext()
        with stopping.at_once(), owned, memory.kept(choose_device(planned.recipe.machine.device)):
            return _train(planned, observer if group.leads else journal.ignore, group)
    except (Interrupted, KeyboardInterrupt) as stop:
        number = stop.signal_number if isinstance(stop, Interrupted) else signal.SIGINT
        raise Interrupted(number, how_to_resume(number, place) if group.leads else "") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"The disk with {place} is full. The last state that was saved is intact; free some space "
                "and go on with --resume."
            ) from error
        raise


def _train(planned: Plan, observer: Observer, group: Group) -> Run:
    from resnext.training.session import Session

    place = planned.path
    if group.leads and not planned.resumed:
        refuse_occupied(place)  # once more: another may have begun since the plan was made
        planned.manifest.write(place / MANIFEST)
        durable.write_text(place / RECIPE, planned.recipe.to_toml())
    with Background() as background:
        session = Session(planned, observer, group, background)
        if not group.leads:
            return _follow(planned, session)
        with Journal(place / JOURNAL, step=session.step_number if planned.resumed else None) as written:
            session.checkpoints.before_writing = written.sync
            return _lead(planned, session, _tell_both(written, observer))


def _follow(planned: Plan, session: Session) -> Run:
    """Train as one of the processes that write and tell nothing."""
    session.train(journal.ignore)
    return Run(planned.path, json.loads(session.group.agree(lambda: b"")), leads=False)


def how_to_resume(signal_number: int, place: Path) -> str:
    """Say what stopped a run and how it goes on."""
    return (
        f"Stopped by {signal.Signals(signal_number).name}. What was saved is in {place}; go on with the same command "
        f"and --out {shlex.quote(str(place))} --resume."
    )


def _lead(planned: Plan, session: Session, tell: Observer) -> Run:
    started = time.perf_counter()
    manifest = planned.manifest
    tell(
        {
            "event": "resume" if planned.resumed else "start",
            "run": str(planned.path),
            "at_step": session.step_number,
            "network": planned.recipe.network,
            "classes": len(manifest.classes),
            "train_images": len(manifest.split("train")),
            "validation_images": len(manifest.split("val")),
            "notes": [*planned.notes, *session.notes],
            "pixels": session.pixel_notes,
            "device": session.description,
            "forms": session.forms.to_dict(),
            "machine": machine.description(),
            "software": machine.software(),
        }
    )
    if planned.resumed:
        durable.write_text(planned.path / RECIPE, planned.recipe.to_toml())
    session.train(tell)
    scores = json.loads(session.group.agree(lambda: json.dumps(session.measure_best()).encode()))
    kept = Bundle.open(planned.path)
    tell(
        {
            "event": "end",
            "bundle": str(kept.path),
            "identity": kept.identity,
            "seconds": round(time.perf_counter() - started, 1),
            **{key: scores[key] for key in ("images", "top1", "top5", "top1_interval", "loss")},
        }
    )
    return Run(planned.path, scores)


def _tell_both(written: Journal, observer: Observer) -> Callable[[journal.Event], None]:
    def tell(event: journal.Event) -> None:
        if event["event"] not in UNTOLD:
            written(event)
        observer(event)

    return tell
