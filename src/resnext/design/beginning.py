"""Begin a study: complete the recipe once for all, cut the data once, and refuse what cannot be trained."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnext import durable
from resnext.data.listing import list_images
from resnext.data.manifest import Manifest, located, scan
from resnext.design import budget
from resnext.design.study import MANIFEST, PLAN, Candidate, Measure, Plan, Study, write_plan
from resnext.errors import UserError
from resnext.training import journal
from resnext.training.journal import Observer
from resnext.training.plan import Wish, plan
from resnext.training.said import merge_said

OWN = ("network", "options", "seed")
"""What a trial's recipe has from its candidate and its seed."""


@dataclass(frozen=True)
class Question:
    """What is compared how often: as in `study.Plan`."""

    seeds: int = 3
    measure: Measure | None = None
    training_error: bool = False
    rates: tuple[float, ...] = ()
    halving: bool = False


def named(networks: Sequence[str]) -> dict[str, Candidate]:
    """Return candidates that are called by their networks."""
    return {re.sub(r"[^\w-]", "_", network): Candidate(network) for network in networks}


def designed(answer: budget.Answer) -> dict[str, Candidate]:
    """Return the reference and what was solved for, called by their networks and what else makes them."""
    candidates: dict[str, Candidate] = {}
    alike = [one for one in answer.candidates if one.point == answer.reference.point]
    others = [one for one in answer.candidates if one.point != answer.reference.point]
    for one in [*(alike or [answer.reference]), *others]:
        words = [one.name, *(f"{name}{_word(value)}" for name, value in one.options.items())]
        options = {name: list(value) if isinstance(value, tuple) else value for name, value in one.options.items()}
        candidates[re.sub(r"[^\w-]", "_", "-".join(words))] = Candidate(one.name, options)
    return candidates


def _word(value: object) -> str:
    return "_".join(map(str, value)) if isinstance(value, tuple) else str(value)


def begin(
    data: str,
    place: Path,
    candidates: Mapping[str, Candidate],
    question: Question,
    *,
    recipe: str | None = None,
    fields: Mapping[str, Any] | None = None,
    observer: Observer = journal.ignore,
) -> Study:
    """Write the plan of a study and its one cut of the data into a new directory.

    The first candidate is the reference. `recipe` and `fields` are as for `resnext.train`; what they leave open is
    chosen as for the reference, and then the same for all. Raises UserError where the directory is taken, and for what
    `train` would refuse of any candidate.
    """
    if place.exists() and any(place.iterdir()):
        what = "a study: go on with --resume" if (place / PLAN).is_file() else "something else"
        raise UserError(f"{place} holds {what}, or choose another --out.")
    if not candidates:
        raise UserError("There is no candidate. Name networks, or what they are to be like.")
    reference = next(iter(candidates))
    given = dict(fields or {})
    said = merge_said(recipe, given)
    share, seed = said.get("data", {}).get("validation", 0.1), said.get("seed", 0)
    manifest = scan(data, purpose="train", seed=seed, validation=share, progress=journal.progress(observer))
    complete = _complete(data, place, manifest, recipe, given, candidates[reference])
    made = Plan(
        data=str(Path(data).expanduser().resolve()) if Path(data).expanduser().exists() else data,
        reference=reference,
        candidates=dict(candidates),
        seeds=tuple(range(question.seeds)),
        recipe=complete,
        measure=question.measure or ("test" if _has_test(data) else "validation"),
        training_error=question.training_error,
        rates=question.rates,
        halving=question.halving,
    )
    for name, each in candidates.items():
        try:
            _complete(data, place, manifest, None, complete, each)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
    durable.make_directory(place)
    manifest.write(place / MANIFEST)
    write_plan(place, made)
    return Study(place, made)


def _complete(
    data: str, place: Path, manifest: Manifest, recipe: str | None, fields: Mapping[str, Any], one: Candidate
) -> dict[str, Any]:
    """Return the recipe as `train` would complete it for a candidate, but for what is the candidate's."""
    own = {**fields, "network": one.network, "options": one.options}
    planned = plan(data, wish=Wish(place / "trials" / "none"), recipe=recipe, fields=own, manifest=manifest)
    return {name: value for name, value in planned.recipe.to_dict().items() if name not in OWN}


def _has_test(data: str) -> bool:
    return "test" in list_images(located(data), "check").splits
