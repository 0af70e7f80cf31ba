"""The form of a run: what the stopwatch chooses, that it computes the same, and that a resumed run keeps it."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import resnext
from making import TINY, write_colours
from resnext import durable, machine
from resnext.bundle import Bundle
from resnext.equivalence import fusing, merging
from resnext.errors import UserError
from resnext.training import checkpoint, forms, journal, racing
from resnext.training.forms import FUSED, Forms
from resnext.training.plan import Wish, plan
from resnext.training.recipe import Recipe, load
from resnext.training.run import train
from resnext.training.step import TrainingStep
from resnext.training.stopping import Interrupted

NAME = "cifar_resnext11_4x4d"
FIELDS = {**TINY, "network": NAME, "epochs": 2, "precision": "fp32"}
CONVS = [f"stage{number}.block1.spatial.conv" for number in (1, 2, 3)]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let short runs choose too, and nothing be remembered from other tests."""
    monkeypatch.setattr(forms, "WORTH_STEPS", 1)
    monkeypatch.setattr(forms, "_CHOSEN", {})


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colours(tmp_path_factory.mktemp("photos"), 24)


Timed = Callable[[int], float]


def stopwatch(monkeypatch: pytest.MonkeyPatch, timed: Timed) -> list[int]:
    """Let every contender take as long as `timed` says; return a list that fills with how many stood for choice."""
    stood: list[int] = []

    def told(counts: Any, contenders: Any, *rest: object) -> Iterator[tuple[Any, dict[int, float]]]:
        for key in counts:
            passes = contenders(key)
            stood.append(len(passes))
            for run in passes.values():
                run()
            yield key, {each: timed(each) for each in passes}

    monkeypatch.setattr(forms, "races", told)
    return stood


def faster_by(factor: int, seconds: float = 0.5) -> Timed:
    return lambda each: seconds if each == factor else 1.0


def step_of(network: str = NAME, *, size: int = 16, **fields: Any) -> TrainingStep:
    raw = {
        "network": network,
        "epochs": 1,
        "batch_size": 4,
        "data": {"image_size": size, "resize": size, "mean": [0.5] * 3, "std": [0.5] * 3},
        "optimizer": {"learning_rate": 0.1},
        "machine": {"device": "cpu", "precision": "fp32"},
    }
    recipe = Recipe.from_dict({**raw, **fields})
    torch.manual_seed(0)
    made = resnext.create(network, num_classes=3, **recipe.options)
    return TrainingStep(made, recipe, recipe.data.preprocessing(), 3)


def losses(run: Path) -> list[float]:
    return [event["loss"] for event in journal.read(run / "journal.jsonl") if event["event"] == "step"]


def told(run: Path) -> dict[str, Any]:
    """Return the last start or resume event."""
    return [event for event in journal.read(run / "journal.jsonl") if event["event"] in ("start", "resume")][-1]


def stopped(photos: Path, out: Path, at: int, **fields: Any) -> Path:
    def interrupt(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == at:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        train(photos, out=out, observer=interrupt, **fields)
    return out


# The race itself, on a clock that contenders move.


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.ran: list[str] = []
        monkeypatch.setattr(racing.time, "perf_counter", lambda: self.now)

    def contender(self, name: str, *seconds: float) -> Callable[[], None]:
        """Take these seconds in turn, and the last of them ever after."""
        left = list(seconds)

        def run() -> None:
            self.ran.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


CPU = torch.device("cpu")


def test_the_least_of_rounds_counts_and_one_disturbance_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    contenders = {1: clock.contender("1", 1.0), 2: clock.contender("2", 9.0, 4.0, 0.7, 0.6, 0.8)}
    assert racing.race(contenders, 1.1, 1000.0, CPU) == pytest.approx({1: 1.0, 2: 0.6})
    assert clock.ran.count("1") == racing.ROUNDS - 1


def test_what_is_twice_hopeless_is_out_and_what_is_wider_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    contenders = {k: clock.contender(str(k), seconds) for k, seconds in ((1, 1.0), (2, 1.6), (4, 0.1))}
    assert racing.race(contenders, 1.0, 1000.0, CPU) == pytest.approx({1: 1.0, 2: 1.6})
    assert clock.ran[:3] == ["2", "2", "2"]
    assert set(clock.ran[3:]) == {"1"}


def test_the_layer_as_it_stands_is_timed_again_however_slow_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    contenders = {1: clock.contender("1", 1.0), 2: clock.contender("2", 1.0)}
    assert racing.race(contenders, 50.0, 1000.0, CPU) == pytest.approx({1: 1.0, 2: 1.0})


def test_timing_ends_with_its_time_and_with_its_share_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)

    def contenders(key: str) -> racing.Contenders:
        seconds = {"small": 0.01, "large": 0.1}[key]
        return {k: clock.contender(key, seconds) for k in (1, 2, 4)}

    counts = {"small": 1, "large": 2}
    whole = [key for key, _ in racing.races(counts, contenders, 10_000, 60.0, CPU)]
    assert whole == ["large", "small"]  # what costs the run most first
    clock.now, clock.ran = 0.0, []
    assert [*racing.races(counts, contenders, 10_000, 0.1, CPU)] == []
    clock.now = 0.0
    [*racing.races(counts, contenders, 50, 60.0, CPU)]
    assert clock.now < 0.22 + 0.05 * 50 * 0.21 + 5 * 0.1  # first passes, the share, and the round it ends in
    assert [*racing.races({}, contenders, 50, 60.0, CPU)] == []


# What is chosen.


def test_a_merge_must_be_faster_by_a_twentieth(monkeypatch: pytest.MonkeyPatch) -> None:
    stopwatch(monkeypatch, faster_by(2, 0.96))
    assert forms.settle(step_of(), steps=100, recorded=None)[0].merged == {}
    forms._CHOSEN.clear()
    stopwatch(monkeypatch, faster_by(4, 0.94))
    step = step_of()
    chosen, notes = forms.settle(step, steps=100, recorded=None)
    assert chosen.merged == dict.fromkeys(CONVS, 4) == merging.merged(step.network)
    assert "groups of convolutions merged (stage1 ×4, stage2 ×4, stage3 ×4)" in notes[-1]


def test_equal_convolutions_are_timed_once_and_at_their_own_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    images = forms._images

    def watched(step: TrainingStep, shape: tuple[int, ...]) -> torch.Tensor:
        seen.append(shape)
        return images(step, shape)

    monkeypatch.setattr(forms, "_images", watched)
    monkeypatch.setattr(fusing, "reason_unavailable", lambda: "there is no compiler")
    stood = stopwatch(monkeypatch, faster_by(2))
    step = step_of("resnext50_32x4d", size=64, options={"blocks": (3, 2), "cardinality": 4})
    chosen, _ = forms.settle(step, steps=100, recorded=None)
    assert seen == [(16, 16, 16), (32, 15, 15), (32, 8, 8)]  # 16 pixels a side stride to 8, and so do 15
    assert stood == [3, 3, 3]
    assert len(chosen.merged) == 5


def test_what_has_no_choice_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusing, "reason_unavailable", lambda: "there is no compiler")
    stood = stopwatch(monkeypatch, faster_by(2))
    assert forms.settle(step_of("cifar_resnet8"), steps=100, recorded=None)[0].merged == {}
    plain = step_of(machine={"form": "plain", "precision": "fp32"})
    assert forms.settle(plain, steps=100, recorded=None) == (Forms("plain", place=forms._place(plain)), [])
    monkeypatch.setattr(forms, "WORTH_STEPS", 50)
    assert forms.settle(step_of(), steps=49, recorded=None)[0].merged == {}
    assert stood == []
    notes = forms.settle(step_of("cifar_resnet8"), steps=50, recorded=None)[1]
    assert notes == ["Batch norm runs in torch's own way: there is no compiler"]


def test_two_towers_can_be_merged_too(monkeypatch: pytest.MonkeyPatch) -> None:
    stopwatch(monkeypatch, faster_by(2))
    step = step_of("alexnet", size=96, options={"channels": (8, 16, 16, 16, 16), "hidden": 32})
    assert set(forms.settle(step, steps=100, recorded=None)[0].merged.values()) == {2}


def test_fusing_is_used_where_it_is_not_slower_and_never_under_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    fused: list[object] = []
    monkeypatch.setattr(fusing, "reason_unavailable", lambda: None)
    monkeypatch.setattr(fusing, "fuse", fused.append)
    for seconds, expected in ((1.0, True), (1.01, False)):
        forms._CHOSEN.clear()
        stopwatch(monkeypatch, faster_by(FUSED, seconds))
        step = step_of("cifar_resnet8")
        assert forms.settle(step, steps=100, recorded=None)[0].fused is expected
        assert (step.network in fused) is expected
    forms._CHOSEN.clear()
    stopwatch(monkeypatch, faster_by(2))
    compiled = step_of(machine={"compile": "on", "device": "cpu", "precision": "fp32"})
    chosen = forms.settle(compiled, steps=100, recorded=None)[0]
    assert not chosen.fused
    assert chosen.merged == dict.fromkeys(CONVS, 2)


def test_equal_runs_of_a_process_choose_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    stopwatch(monkeypatch, faster_by(2))
    first, _ = forms.settle(step_of(), steps=100, recorded=None)
    stopwatch(monkeypatch, faster_by(4))
    assert forms.settle(step_of(), steps=100, recorded=None)[0] == first
    assert forms.settle(step_of(batch_size=8), steps=100, recorded=None)[0] != first


def test_the_real_stopwatch_chooses_among_what_there_is() -> None:
    step = step_of(machine={"precision": "bf16", "device": "cpu"})
    before = {name: value.clone() for name, value in step.network.state_dict().items()}
    chosen, _ = forms.settle(step, steps=10**6, recorded=None)
    assert set(chosen.merged.values()) <= {2, 4}
    assert all(torch.equal(value, before[name]) for name, value in step.network.state_dict().items())
    assert all(parameter.grad is None for parameter in step.network.parameters())


# What becomes of a run.


def test_a_run_in_another_form_is_the_same_run_up_to_rounding(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {**FIELDS, "options": {"final_survival": 0.5}, "ema_decay": 0.9, "learning_rate": 0.002}
    plain = train(photos, out=tmp_path / "plain", form="c", **fields)
    assert told(plain.path)["forms"]["merged"] == {}
    stopwatch(monkeypatch, faster_by(2))
    run = train(photos, out=tmp_path / "run", **fields)
    assert told(run.path)["forms"]["merged"] == dict.fromkeys(CONVS, 2)
    assert any("merged (stage1 ×2" in note for note in told(run.path)["notes"])
    np.testing.assert_allclose(losses(run.path), losses(plain.path), rtol=1e-2)
    assert losses(run.path) != losses(plain.path)
    weights = Bundle.open(run.path).read("model.safetensors")
    assert weights[f"{CONVS[0]}.weight"].shape == (16, 4, 3, 3)
    assert Bundle.open(run.path).build()


@pytest.mark.parametrize("average", [{}, {"ema_decay": 0.9}])
def test_a_resumed_run_keeps_its_form_and_its_bits_whatever_the_stopwatch_would_choose(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, average: dict[str, float]
) -> None:
    stopwatch(monkeypatch, lambda each: 0.5 if each == 2 else 1.0)
    whole = train(photos, out=tmp_path / "whole", **FIELDS, **average)
    out = stopped(photos, tmp_path / "run", 4, **FIELDS, **average)
    forms._CHOSEN.clear()
    stood = stopwatch(monkeypatch, faster_by(4))
    resumed = train(photos, out=out, resume=True)
    assert stood == []
    assert losses(out) == losses(whole.path)
    assert resumed.bundle.identity == whole.bundle.identity
    assert told(out)["forms"] == told(whole.path)["forms"]
    assert not any("up to rounding, not bit for bit" in note for note in told(out)["notes"])


def test_on_another_machine_or_with_another_form_the_choice_is_made_again_and_that_is_said(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopwatch(monkeypatch, faster_by(2))
    out = stopped(photos, tmp_path / "run", 1, **FIELDS)
    monkeypatch.setattr(machine, "fingerprint", lambda: {"processor": "another", "cores": 1, "flags_sha256": ""})
    stopwatch(monkeypatch, faster_by(4))

    def interrupt(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 3:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        train(photos, out=out, resume=True, observer=interrupt)
    assert told(out)["forms"]["merged"] == dict.fromkeys(CONVS, 4)
    assert "not bit for bit" in told(out)["notes"][-1]
    train(photos, out=out, resume=True, form="c")
    assert told(out)["forms"]["merged"] == {}
    assert "not bit for bit" in told(out)["notes"][-1]


def test_a_checkpoint_that_names_no_form_was_computed_plainly(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(photos, out=tmp_path / "whole", form="c", **FIELDS)
    out = stopped(photos, tmp_path / "run", 4, form="c", **FIELDS)
    newest = checkpoint.listed(out / "checkpoints")[-1]
    state = json.loads((newest / checkpoint.STATE).read_text())
    del state["forms"]
    (newest / checkpoint.STATE).write_text(json.dumps(state))
    hashes = {name: durable.sha256(newest / name) for name in (checkpoint.TENSORS, checkpoint.STATE)}
    (newest / checkpoint.MANIFEST).write_text(json.dumps(hashes))
    recipe = (out / "recipe.toml").read_text()
    assert 'form = "plain"' in recipe
    (out / "recipe.toml").write_text(recipe.replace('form = "plain"\n', ""))
    stood = stopwatch(monkeypatch, faster_by(2))
    train(photos, out=out, resume=True)
    assert stood == []
    assert losses(out) == losses(whole.path)


# What `--form` means.


def planned(photos: Path, tmp_path: Path, form: str | None, **fields: Any) -> Recipe:
    asked = {**FIELDS, **fields, "form": form}
    return plan(photos, wish=Wish(tmp_path / "run"), recipe=None, fields=asked).recipe


def test_the_flag_names_a_block_form_or_leaves_the_choice(photos: Path, tmp_path: Path) -> None:
    for form, expected in ((None, ("auto", {})), ("auto", ("auto", {})), ("c", ("plain", {}))):
        recipe = planned(photos, tmp_path, form)
        assert (recipe.machine.form, recipe.options) == expected
    assert planned(photos, tmp_path, "b").options == {"form": "b"}
    assert planned(photos, tmp_path, "b").machine.form == "plain"
    assert planned(photos, tmp_path, "c", options={"form": "a"}).options == {"form": "c"}
    assert planned(photos, tmp_path, "a", options={"form": "a", "shortcut": "A"}).options == {
        "form": "a",
        "shortcut": "A",
    }
    assert planned(photos, tmp_path, "c", network="cifar_resnet8").options == {}


@pytest.mark.parametrize(("network", "form"), [("cifar_resnet8", "b"), (NAME, "d")])
def test_a_form_that_the_network_has_not_is_refused(photos: Path, tmp_path: Path, network: str, form: str) -> None:
    with pytest.raises(UserError, match="form"):
        planned(photos, tmp_path, form, network=network)
    assert not (tmp_path / "run").exists()


def test_a_run_cannot_change_its_block_form_but_be_told_the_one_it_has(photos: Path, tmp_path: Path) -> None:
    out = stopped(photos, tmp_path / "run", 1, form="b", **FIELDS)
    for form in ("a", "c"):
        with pytest.raises(UserError, match="another options"):
            train(photos, out=out, resume=True, form=form)
    run = train(photos, out=out, resume=True, form="b")
    assert Recipe.from_dict(load(run.path / "recipe.toml")).options == {"form": "b"}
    assert Bundle.open(run.path).contents.options == {"form": "b"}
