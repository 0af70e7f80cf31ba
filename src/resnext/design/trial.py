"""One trial of a study, in a process of its own: `python -m resnext.design.trial STUDY NAME`."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path

from resnext import durable
from resnext.data.manifest import Manifest
from resnext.design.study import MANIFEST, OUTCOME, Study, Trial
from resnext.errors import UserError
from resnext.evaluation import metrics
from resnext.inference.evaluation import evaluate
from resnext.inference.files import load, reader
from resnext.training import owner
from resnext.training.plan import Wish, plan
from resnext.training.run import execute
from resnext.training.stopping import Interrupted

PATIENCE, POLL = 60.0, 0.2
"""Seconds for which a trial waits that another process still holds, and between two looks."""


def carry_out(study: Study, trial: Trial) -> None:
    """Begin a trial or go on with it, measure what it came to, and write that down."""
    place = study.place_of(trial)
    manifest = Manifest.read(study.place / MANIFEST)
    fields = study.recipe_of(trial)
    run = execute(
        plan(study.plan.data, wish=Wish(place, automatic=True), recipe=None, fields=fields, manifest=manifest)
    )
    outcome = {"validation": run.scores["top1"], "validation_images": run.scores["images"]}
    if study.plan.measure == "test":
        scores = evaluate(place, study.plan.data)
        outcome |= {"test": scores.top1, "test_images": scores.images}
    if study.plan.training_error:
        classifier = load(place)
        scores = metrics.evaluate(classifier.engine, reader(classifier, manifest.split("train")))
        outcome |= {"training_error": 1 - scores.top1}
    outcome["peak_memory_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    durable.write_text(place / OUTCOME, json.dumps(outcome, indent=2) + "\n")


def find(study: Study, name: str) -> Trial:
    """Return the trial of a name; raises UserError where the plan has none."""
    for trial in (trial for stage in study.stages() for trial in stage):
        if trial.name == name:
            return trial
    raise UserError(f"{study.place} has no trial {name!r}.")


def _end_with_parent() -> None:
    """Ask this process to stop once whoever holds the other end of its stdin is gone."""

    def wait() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def _wait_for_owner(place: Path) -> None:
    """Wait while a process still trains here whose study has ended: it was asked to stop by that."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            owner.refuse_owned(place)
            return
        except UserError:
            if time.monotonic() > deadline:
                raise
        time.sleep(POLL)


def main(arguments: list[str]) -> int:
    """Carry the trial out; return the exit code, as `resnext train` has it."""
    _end_with_parent()
    try:
        study = Study.open(Path(arguments[0]))
        trial = find(study, arguments[1])
        _wait_for_owner(study.place_of(trial))
        carry_out(study, trial)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except Interrupted as stop:
        return stop.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
