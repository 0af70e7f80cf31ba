"""Steps whose loss or gradients are not finite: left out, counted, and after five in a row the run goes back."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from making import TINY, write_colours
from resnext.bundle import Bundle
from resnext.data.loader import Batch
from resnext.errors import UserError
from resnext.training import divergence, journal
from resnext.training.run import train
from resnext.training.step import TrainingStep
from resnext.training.stopping import Interrupted

STEPS = 9  # in an epoch of the photos below: 65 for training, in batches of 8


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colours(tmp_path_factory.mktemp("photos"), 24)


def poisoned(monkeypatch: pytest.MonkeyPatch, where: Callable[[TrainingStep, int], float | None]) -> None:
    """Multiply a step's inputs by what `where` (the step object, its number) says."""
    original = TrainingStep._inputs

    def inputs(self: TrainingStep, batch: Batch, epoch: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        values, targets = original(self, batch, epoch, step)
        factor = where(self, step)
        return (values if factor is None else values * factor), targets

    monkeypatch.setattr(TrainingStep, "_inputs", inputs)


def events(run: Path, *kinds: str) -> list[dict[str, Any]]:
    return [event for event in journal.read(run / "journal.jsonl") if event["event"] in kinds]


def finite(run: Path) -> bool:
    return all(np.isfinite(value).all() for value in Bundle.open(run).read("model.safetensors").values())


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_poisoned_batch_changes_nothing_and_is_counted(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    poisoned(monkeypatch, lambda step, number: factor if number in (4, 12, 13) else None)
    run = train(photos, out=tmp_path / "run", ema_decay=0.9, **TINY)
    skipped = events(run.path, "skipped")
    assert [event["step"] for event in skipped] == [4, 12, 13]
    assert all(event["why"] == "loss" and len(event["paths"]) == 8 for event in skipped)
    assert Path(skipped[0]["paths"][0]).is_file()
    told = [event["step"] for event in events(run.path, "step")]
    assert told == [number for number in range(3 * STEPS) if number not in (4, 12, 13)]
    assert run.scores["top1"] > 0.9
    assert finite(run.path)


def test_a_skipped_step_leaves_weights_statistics_and_optimiser_as_they_were(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before: dict[str, torch.Tensor] = {}

    def where(step: TrainingStep, number: int) -> float | None:
        if number == 5:
            before.update({name: value.clone() for name, value in step.tensors().items()})
            return math.nan
        if number == 6:
            now = step.tensors()
            assert now.keys() == before.keys()
            assert all(torch.equal(now[name], before[name]) for name in now)
            before["compared"] = torch.ones(1)
        return None

    poisoned(monkeypatch, where)
    train(photos, out=tmp_path / "run", ema_decay=0.9, **TINY)
    assert "compared" in before


def test_gradients_that_are_not_finite_are_caught_where_the_loss_is(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = TrainingStep._backward

    def backward(self: TrainingStep, inputs: Any, targets: Any, step: int, part: Any, **others: Any) -> Any:
        sums = original(self, inputs, targets, step, part, **others)
        if step == 7:
            next(self.network.parameters()).grad[0, 1, 1, 1] = math.inf
        return sums

    monkeypatch.setattr(TrainingStep, "_backward", backward)
    run = train(photos, out=tmp_path / "run", **TINY)
    (skipped,) = events(run.path, "skipped")
    assert (skipped["step"], skipped["why"]) == (7, "gradient")
    assert finite(run.path)


def go_back(photos: Path, place: Path, **more: Any) -> Path:
    fields = {**TINY, "schedule": {"name": "constant"}, "checkpoint_every": 1e-6}
    return train(photos, out=place, **fields, **more).path


def test_after_five_in_a_row_the_run_goes_back_and_learns_more_slowly(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    poisoned(monkeypatch, lambda step, number: math.nan if 13 <= number < 18 and not rates else None)

    def watch(event: dict[str, Any]) -> None:
        if event["event"] == "return":
            rates.append(event["rate_factor"])

    run = go_back(photos, tmp_path / "run", observer=watch)
    (returned,) = events(run, "return")
    assert (returned["at_step"], returned["to_step"], returned["rate_factor"]) == (17, 13, 0.5)
    told = events(run, "step")
    assert [event["step"] for event in told] == [*range(3 * STEPS)], "one account, without gap or doublet"
    assert [event["learning_rate"] for event in told] == [0.05] * 13 + [0.025] * (3 * STEPS - 13)
    assert not events(run, "skipped"), "they were taken back with the steps"
    assert finite(run)


def test_a_run_that_diverges_again_and_again_gives_up_in_words(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(monkeypatch, lambda step, number: math.nan if number >= 13 else None)
    with pytest.raises(UserError, match=r"(?s)not finite 5 times in a row.*another --out and a lower --learning-rate"):
        go_back(photos, tmp_path / "run")
    assert len(events(tmp_path / "run", "return")) == divergence.RETURNS


def test_a_run_stopped_amid_a_streak_comes_to_the_same_end(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is poisoned depends on the run's state alone, as it does in earnest: here on the rate after a return.
    rates: list[float] = [1.0]
    original = divergence.back

    def back(position: Any, restored: Any) -> None:
        original(position, restored)
        rates[0] = position.rate_factor

    monkeypatch.setattr(divergence, "back", back)
    poisoned(monkeypatch, lambda step, number: math.nan if number >= 13 and rates[0] == 1 else None)

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "skipped" and event["step"] == 15:
            signal.raise_signal(signal.SIGTERM)

    whole = go_back(photos, tmp_path / "whole")
    rates[0] = 1.0
    with pytest.raises(Interrupted):
        go_back(photos, tmp_path / "run", observer=stop)
    train(photos, out=tmp_path / "run", resume=True)
    (returned,) = events(tmp_path / "run", "return")
    assert (returned["at_step"], returned["to_step"]) == (17, 13)
    kept = ("step", "loss", "learning_rate")
    ours, theirs = ([{k: e[k] for k in kept} for e in events(run, "step")] for run in (tmp_path / "run", whole))
    assert ours == theirs
    assert Bundle.open(tmp_path / "run").identity == Bundle.open(whole).identity
