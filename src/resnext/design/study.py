"""A study: candidates × seeds, as a plan that can be edited, in a directory that can be killed and gone on from.

The directory holds `study.toml`, the plan; `manifest.parquet`, the one cut of the data that all trials share;
`trials/`, an ordinary run each with `outcome.json` once it is done; and the report. Nothing else is remembered: what
is due follows from the plan and the outcomes.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from resnext import catalog, durable
from resnext.errors import UserError, did_you_mean
from resnext.training import recipe as recipes

PLAN, MANIFEST, TRIALS, OUTCOME = "study.toml", "manifest.parquet", "trials", "outcome.json"
TUNING_SEED = 7919
"""The seed of trials that choose a learning rate; no candidate may have it, so that they count for nothing else."""

Measure = Literal["test", "validation"]


@dataclass(frozen=True)
class Candidate:
    """A network that takes part; `seeds` and `learning_rate` where they are not those of all."""

    network: str
    options: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    learning_rate: float | None = None


@dataclass(frozen=True)
class Trial:
    """One run: a candidate with a seed. `kind` is "seed", or "rate" or "rung" for one that only chooses."""

    candidate: str
    seed: int
    epochs: int
    learning_rate: float
    kind: Literal["seed", "rate", "rung"] = "seed"

    @property
    def name(self) -> str:
        """The name of its directory."""
        what = {"seed": "", "rate": f"-rate{self.learning_rate:g}", "rung": f"-epochs{self.epochs}"}[self.kind]
        return f"{self.candidate}{what}-seed{self.seed}"


@dataclass(frozen=True)
class Plan:
    """What is compared, and how: everything that `study.toml` says.

    `recipe` is complete, and the same for all trials but for network, seed and what a candidate says. `rates` are tried
    for each candidate that says none, with a seed of their own, and the best on validation is its. With `halving` the
    worse half, by validation, leaves after a quarter, half, … of the epochs, each time begun anew.
    """

    data: str
    reference: str
    candidates: dict[str, Candidate]
    seeds: tuple[int, ...]
    recipe: dict[str, Any]
    measure: Measure = "validation"
    training_error: bool = False
    rates: tuple[float, ...] = ()
    halving: bool = False

    def __post_init__(self) -> None:
        if self.reference not in self.candidates:
            raise UserError(
                f"The reference {self.reference!r} is no candidate.{did_you_mean(self.reference, self.candidates)}"
            )
        if len(self.candidates) < 2:
            raise UserError("One candidate is no comparison. Name two networks or more.")
        for name, one in self.candidates.items():
            if not re.fullmatch(r"[\w-]+", name):
                raise UserError(f"{name!r} names no candidate: letters, digits, - and _ do.")
            seeds = self.seeds_of(name)
            if not seeds or len(set(seeds)) < len(seeds) or TUNING_SEED in seeds or min(seeds) < 0:
                raise UserError(f"The seeds of {name} are {list(seeds)}. Give different whole numbers from 0.")
            catalog.resolve(one.network)
        if self.measure not in ("test", "validation"):
            raise UserError(f"measure={self.measure!r}: what is compared is test or validation.")
        if any(not (math.isfinite(rate) and rate > 0) for rate in self.rates):
            raise UserError(f"The learning rates are {list(self.rates)}. Give numbers above 0.")

    @property
    def epochs(self) -> int:
        """Epochs of a trial."""
        return int(self.recipe["epochs"])

    @property
    def rate(self) -> float:
        """The learning rate of the recipe."""
        return float(self.recipe["optimizer"]["learning_rate"])

    def seeds_of(self, name: str) -> tuple[int, ...]:
        """Return the seeds of a candidate."""
        return self.candidates[name].seeds or self.seeds

    def to_toml(self) -> str:
        """Return the plan as the text of its file."""
        told = {
            "data": self.data,
            "reference": self.reference,
            "measure": self.measure,
            "seeds": self.seeds,
            "training_error": self.training_error,
            "rates": self.rates,
            "halving": self.halving,
            "recipe": self.recipe,
            "candidates": {name: _plain(one) for name, one in self.candidates.items()},
        }
        return (
            "# A study: every candidate is trained with every seed by the same recipe. It may be edited while none of\n"
            "# its trials has begun; afterwards candidates and seeds may be added.\n\n" + recipes.to_toml(told)
        )

    @classmethod
    def from_toml(cls, text: str, source: str) -> Plan:
        """Return the plan that a text means; raises UserError, with the file's name, where it means none."""
        try:
            told = tomllib.loads(text)
            refuse_unknown(told, cls.__dataclass_fields__, source)
            candidates = {}
            for name, one in told.pop("candidates").items():
                refuse_unknown(one, Candidate.__dataclass_fields__, f"{source}: candidates.{name}")
                candidates[name] = Candidate(**{**one, "seeds": tuple(one.get("seeds", ()))})
            series: dict[str, Any] = {name: tuple(told.pop(name, ())) for name in ("seeds", "rates")}
            recipes.refuse_unknown_keys(told["recipe"], source=source)
            return cls(candidates=candidates, **series, **told)
        except (tomllib.TOMLDecodeError, KeyError, TypeError, AttributeError) as error:
            what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            raise UserError(f"{source} is no plan of a study: {what}. Correct it.") from error


def refuse_unknown(told: dict[str, Any], known: Any, source: str) -> None:
    """Raise UserError for a key that is none of the known ones."""
    for key in told:
        if key not in known:
            raise UserError(f"{source}: unknown key {key!r}.{did_you_mean(key, known)}")


def _plain(one: Candidate) -> dict[str, Any]:
    """Return a candidate without what it leaves to all."""
    return {name: value for name, value in asdict(one).items() if value not in ((), {}, None)}


@dataclass(frozen=True)
class Study:
    """A plan in its directory."""

    place: Path
    plan: Plan

    @classmethod
    def open(cls, place: Path) -> Study:
        """Return the study in a directory; raises UserError where there is none."""
        file = place / PLAN
        if not file.is_file():
            raise UserError(f"{place} holds no study. Begin one: resnext compare DATA --networks A,B --out {place}")
        return cls(place, Plan.from_toml(file.read_text(encoding="utf-8"), str(file)))

    def place_of(self, trial: Trial) -> Path:
        """Return the directory of a trial's run."""
        return self.place / TRIALS / trial.name

    def outcome(self, trial: Trial) -> dict[str, Any] | None:
        """Return what a trial came to, or None where it is not done."""
        file = self.place_of(trial) / OUTCOME
        if not file.is_file():
            return None
        told: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return told

    def recipe_of(self, trial: Trial) -> dict[str, Any]:
        """Return the recipe of a trial, as nested fields."""
        one = self.plan.candidates[trial.candidate]
        optimizer = {"learning_rate": trial.learning_rate}
        own = {"network": one.network, "options": one.options, "seed": trial.seed, "epochs": trial.epochs}
        return recipes.merge(self.plan.recipe, {**own, "optimizer": optimizer})

    def stages(self) -> list[list[Trial]]:
        """Return the trials in the order in which they are due, as far as outcomes say which they are.

        All of a stage can be trained at the same time; the next depends on their outcomes. The last stage, once it is
        known, has the trials that count.
        """
        stages = []
        rates = {name: one.learning_rate or self.plan.rate for name, one in self.plan.candidates.items()}
        if tried := self._rate_trials():
            stages.append([trial for trials in tried.values() for trial in trials])
            if not self._all_done(stages[-1]):
                return stages
            rates |= {name: self._best(trials).learning_rate for name, trials in tried.items()}
        names = list(self.plan.candidates)
        for epochs in self._rungs():
            trials = {name: self._seeds(name, rates[name], epochs, "rung") for name in names}
            stages.append(_by_seed(trials))
            if not self._all_done(stages[-1]):
                return stages
            names = self._better_half(trials)
        stages.append(_by_seed({name: self._seeds(name, rates[name], self.plan.epochs, "seed") for name in names}))
        return stages

    def counted(self) -> list[Trial]:
        """Return the trials that count, done or not; none while outcomes have not said which they are."""
        last = self.stages()[-1]
        return last if last[0].kind == "seed" else []

    def due(self) -> list[Trial]:
        """Return the trials that are to be trained next and depend on no other; none where all is done."""
        return [trial for trial in self.stages()[-1] if self.outcome(trial) is None]

    def _all_done(self, trials: list[Trial]) -> bool:
        return all(self.outcome(trial) is not None for trial in trials)

    def _rate_trials(self) -> dict[str, list[Trial]]:
        """Return the trials that choose each candidate's learning rate."""
        return {
            name: [Trial(name, TUNING_SEED, self.plan.epochs, rate, "rate") for rate in self.plan.rates]
            for name, one in self.plan.candidates.items()
            if self.plan.rates and one.learning_rate is None
        }

    def _best(self, trials: list[Trial]) -> Trial:
        """Return the trial that was best on validation, the lower rate of two."""
        return max(trials, key=lambda trial: (self._validation(trial), -trial.learning_rate))

    def _validation(self, trial: Trial) -> float:
        told = self.outcome(trial)
        assert told is not None, trial
        return float(told["validation"])

    def _rungs(self) -> list[int]:
        """Return the epochs after which the worse half leaves."""
        if not self.plan.halving:
            return []
        count = max(1, math.ceil(math.log2(len(self.plan.candidates))))
        return [max(1, self.plan.epochs // 2**power) for power in range(count, 0, -1)]

    def _better_half(self, trials: dict[str, list[Trial]]) -> list[str]:
        """Return the candidates of the better half, by mean validation, and the reference."""
        means = {name: sum(map(self._validation, each)) / len(each) for name, each in trials.items()}
        ranked = sorted(means, key=lambda name: -means[name])
        kept = {*ranked[: -(-len(ranked) // 2)], self.plan.reference}
        return [name for name in trials if name in kept]

    def _seeds(self, name: str, rate: float, epochs: int, kind: Literal["seed", "rung"]) -> list[Trial]:
        return [Trial(name, seed, epochs, rate, kind) for seed in self.plan.seeds_of(name)]


def _by_seed(trials: dict[str, list[Trial]]) -> list[Trial]:
    """Return trials seed by seed, so that a study that is stopped early has compared everyone as often as it could."""
    most = max(len(each) for each in trials.values())
    return [each[number] for number in range(most) for each in trials.values() if number < len(each)]


def write_plan(place: Path, plan: Plan) -> None:
    """Write a plan into a study's directory."""
    durable.write_text(place / PLAN, plan.to_toml())
