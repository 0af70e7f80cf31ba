"""Cross-validation: train K times, each with another part of the training images for validation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from resnext.data.manifest import folds as cut
from resnext.data.manifest import scan
from resnext.errors import UserError
from resnext.training.journal import Observer, ignore
from resnext.training.run import Plan, default_place, execute, merge_said, plan, refuse_occupied

CONFIDENCE = 0.95


def train_folds(
    data: str | Path,
    k: int,
    /,
    *,
    out: str | Path | None = None,
    recipe: str | Path | None = None,
    observer: Observer = ignore,
    **fields: Any,
) -> dict[str, Any]:
    """Train K runs in `out/fold-1` … `out/fold-K` and return their mean top-1 with its interval.

    Each image is validated by exactly one run. The interval is Student's t over the K folds; because folds share
    training images it is a guide, not a test. Raises UserError for K below 2 and for what `train` refuses.
    """
    if k < 2:
        raise UserError(f"--folds {k} is no cross-validation. Use 2 or more, or leave it out.")
    place = Path(out) if out is not None else default_place(data, resume=False)
    refuse_occupied(place)
    said = merge_said(recipe, fields)
    seed = said.get("seed", 0)
    whole = scan(data, purpose="train", seed=seed, validation=said.get("data", {}).get("validation", 0.1))
    plans: list[Plan] = [
        plan(data, out=place / f"fold-{number}", recipe=recipe, resume=False, fields=fields, manifest=part)
        for number, part in enumerate(cut(whole, k, seed), 1)
    ]
    scores = [execute(each, observer).scores for each in plans]
    top1 = [score["top1"] for score in scores]
    mean, low, high = student_interval(top1)
    return {
        "folds": [{"run": str(each.path), "top1": share} for each, share in zip(plans, top1, strict=True)],
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
