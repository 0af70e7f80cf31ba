"""What a study's trials came to, as tables: a row a trial, a row a candidate."""

from __future__ import annotations

import statistics as medians
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from resnext import complexity, durable, journals
from resnext.data.manifest import Manifest
from resnext.design import statistics
from resnext.design.statistics import Difference, Mean
from resnext.design.study import MANIFEST, Study, Trial

WARM_UP = 3
"""Steps at the beginning of a run whose times say nothing of the others."""


@dataclass(frozen=True)
class Result:
    """A trial that is done. Shares in 0…1, seconds; `step_seconds` is the median of an image in a training step."""

    candidate: str
    seed: int
    learning_rate: float
    top1: float
    validation: float
    training_error: float | None
    training_loss: float
    step_seconds: float
    seconds: float
    peak_memory_mib: float
    losses: tuple[float, ...]
    validations: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the result as a row."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}


@dataclass(frozen=True)
class Summary:
    """A candidate over its seeds; `difference` is from the reference, None for it itself."""

    candidate: str
    network: str
    is_reference: bool
    parameters: int
    macs: int
    results: tuple[Result, ...]
    top1: Mean
    difference: Difference | None
    flip_p_holm: float | None

    @cached_property
    def step_seconds(self) -> float:
        """The median of an image in a training step."""
        return medians.median(each.step_seconds for each in self.results)

    @cached_property
    def training_loss(self) -> Mean:
        """The loss over the last epoch."""
        return statistics.mean([each.training_loss for each in self.results])

    @cached_property
    def training_error(self) -> Mean | None:
        """The top-1 error on the training images, as they are, where that was measured."""
        errors = [each.training_error for each in self.results if each.training_error is not None]
        return statistics.mean(errors) if errors else None

    @cached_property
    def peak_memory_mib(self) -> float:
        """The most memory that a trial's process took."""
        return max(each.peak_memory_mib for each in self.results)


def results(study: Study) -> list[Result]:
    """Return the trials that count and are done."""
    found = []
    for trial in study.counted():
        told = study.outcome(trial)
        if told is not None:
            found.append(_result(study, trial, told))
    return found


def _result(study: Study, trial: Trial, told: dict[str, Any]) -> Result:
    events = list(journals.read(study.place_of(trial) / "journal.jsonl"))
    steps = [event for event in events if event["event"] == "step"]
    seconds = [
        (event["compute_seconds"] + event["update_seconds"]) / event["images"]
        for event in steps[min(WARM_UP, len(steps) - 1) :]
    ]
    ordered = journals.epochs(events)
    return Result(
        candidate=trial.candidate,
        seed=trial.seed,
        learning_rate=trial.learning_rate,
        top1=told[study.plan.measure],
        validation=told["validation"],
        training_error=told.get("training_error"),
        training_loss=ordered[-1]["train_loss"],
        step_seconds=medians.median(seconds),
        seconds=sum(event["train_seconds"] + event["validate_seconds"] for event in ordered),
        peak_memory_mib=told["peak_memory_mib"],
        losses=tuple(event["train_loss"] for event in ordered),
        validations=tuple(event["top1"] for event in ordered),
    )


def summaries(study: Study, found: Sequence[Result]) -> list[Summary]:
    """Return the candidates that have results, the reference first, then in the order of the plan."""
    by_name = {name: [each for each in found if each.candidate == name] for name in study.plan.candidates}
    reference = {each.seed: each.top1 for each in by_name[study.plan.reference]}
    differences = {
        name: statistics.difference({each.seed: each.top1 for each in some}, reference)
        for name, some in by_name.items()
        if name != study.plan.reference
    }
    tested = {
        name: one.flip_p
        for name, one in differences.items()
        if one is not None and one.flip_p is not None and one.is_testable
    }
    corrected = statistics.holm(tested)
    first = study.plan.reference
    names = [first, *(name for name in study.plan.candidates if name != first)]
    classes = len(Manifest.read(study.place / MANIFEST).classes)
    return [
        _summary(study, name, by_name[name], differences.get(name), corrected.get(name), classes)
        for name in names
        if by_name[name]
    ]


def _summary(
    study: Study, name: str, some: Sequence[Result], gap: Difference | None, corrected: float | None, classes: int
) -> Summary:
    one, data = study.plan.candidates[name], study.plan.recipe["data"]
    cost = complexity.describe(
        one.network,
        image_size=data["image_size"],
        num_classes=classes,
        in_channels=data.get("channels", 3),
        **one.options,
    )
    return Summary(
        candidate=name,
        network=one.network,
        is_reference=name == study.plan.reference,
        parameters=cost["parameters"],
        macs=cost["macs"],
        results=tuple(some),
        top1=statistics.mean([each.top1 for each in some]),
        difference=gap,
        flip_p_holm=corrected,
    )


def write_parquet(found: Sequence[Result], file: Path) -> None:
    """Write one row a trial."""
    import pyarrow as pa

    durable.write_table(file, pa.Table.from_pylist([each.to_dict() for each in found]))
