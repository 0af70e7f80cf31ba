"""Cross-validation: train K times, each with another part of the training images for validation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from resnext.bundle import Bundle
from resnext.data.manifest import folds as cut
from resnext.data.manifest import scan
from resnext.errors import UserError
from resnext.training import distributed, journal
from resnext.training.journal import Observer, ignore, is_finished
from resnext.training.plan import JOURNAL, Wish, default_place, is_begun, plan
from resnext.training.run import execute, how_to_resume
from resnext.training.said import merge_said
from resnext.training.stopping import Interrupted

CONFIDENCE = 0.95


def train_folds(
    data: str | Path,
    k: int,
    /,
    *,
    out: str | Path | None = None,
    recipe: str | Path | None = None,
    resume: bool = False,
    observer: Observer = ignore,
    **fields: Any,
) -> dict[str, Any]:
    """Train K runs in `out/fold-1` … `out/fold-K` and return their mean top-1 with its interval.

    Each image is validated by at most one run (a class of a single image stays in training). The interval is
    Student's t over the K folds; because folds share training images it is a guide, not a test. `resume` leaves
    finished folds as they are and goes on with the others. Raises UserError for K below 2 and for what `train`
    refuses.
    """
    if k < 2:
        raise UserError(f"--folds {k} is no cross-validation. Use 2 or more, or leave it out.")
    if distributed.wanted():
        raise UserError("Folds are trained one after another by one process each. Leave out --folds, or torchrun.")
    place = Path(out) if out is not None else default_place(data, resume=resume)
    if not resume and any(place.glob("fold-*")):
        raise UserError(f"{place} holds folds already. Go on with --resume, or choose another --out.")
    said = merge_said(recipe, fields)
    seed = said.get("seed", 0)
    progress = journal.progress(observer)
    share = said.get("data", {}).get("validation", 0.1)
    whole = scan(data, purpose="train", seed=seed, validation=share, progress=progress)
    scores, plans = [], []
    for number, part in enumerate(cut(whole, k, seed, progress), 1):
        fold = place / f"fold-{number}"
        if resume and is_finished(fold / JOURNAL):
            scores.append(Bundle.open(fold).contents.results)
            continue
        wish = Wish(fold, resume=resume and is_begun(fold))
        plans.append(plan(data, wish=wish, recipe=recipe, fields=fields, manifest=part))
    try:
        scores += [execute(each, observer).scores for each in plans]
    except Interrupted as stop:
        raise Interrupted(stop.signal_number, how_to_resume(stop.signal_number, place)) from None
    mean, low, high = student_interval([score["top1"] for score in scores])
    return {
        "run": str(place),
        "folds": [score["top1"] for score in scores],
        "images": sum(score["images"] for score in scores),
        "top1": mean,
        "top1_interval": [low, high],
    }


def student_interval(values: list[float]) -> tuple[float, float, float]:
    """Return mean, low and high of the 95 % Student interval of a mean, cut to 0…1; needs two values or more."""
    from scipy.stats import t

    mean = float(np.mean(values))
    half = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return mean, max(0.0, mean - half), min(1.0, mean + half)
