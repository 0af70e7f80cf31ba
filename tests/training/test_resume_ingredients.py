"""What the papers' recipes add to a run's state: a stopped run still comes to the same end, bit for bit."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from making import TINY, write_colours
from resnext import durable
from resnext.bundle import Bundle
from resnext.errors import UserError
from resnext.training import checkpoint, journal
from resnext.training.position import Position
from resnext.training.recipe import Recipe
from resnext.training.run import train
from resnext.training.stopping import Interrupted

RMSPROP = {"name": "rmsprop", "learning_rate": 0.02, "rho": 0.9, "epsilon": 1.0, "clip_norm": 2.0}
PLATEAU = {
    "epochs": 4,
    "options": {"final_survival": 0.5},
    "initialisation": "he-fan-in",
    "optimizer": RMSPROP,
    # No epoch improves the error by so much, so the rate falls after each but the first.
    "schedule": {"name": "plateau", "patience": 1, "threshold": 0.99, "factor": 0.5},
}
WARM_UP = {
    "options": {"drop_path": 0.3},
    "ema_decay": 0.9,
    "schedule": {"name": "step", "milestones": [2.5], "warmup_rate": 0.1, "warmup_until_error": 0.9},
}
MEASURED = {"event", "epoch", "step", "images", "loss", "errors", "learning_rate", "train_loss", "top1", "best"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colours(tmp_path_factory.mktemp("photos"), 24)


def account(run: Path) -> list[dict[str, Any]]:
    """Return the steps and epochs of a run's journal, without times."""
    events = [e for e in journal.read(run / "journal.jsonl") if e["event"] in ("step", "epoch")]
    return [{key: value for key, value in event.items() if key in MEASURED} for event in events]


def stop_after(step: int) -> journal.Observer:
    def observe(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == step:
            signal.raise_signal(signal.SIGINT)

    return observe


def rates(run: Path) -> list[float]:
    return [event["learning_rate"] for event in account(run) if event["event"] == "step"]


def stopped_twice(photos: Path, place: Path, fields: dict[str, Any]) -> list[dict[str, Any]]:
    """Run whole, and stopped after steps 5 and 19; return the steps, which must be the same, as the results must."""
    whole = train(photos, out=place / "whole", **fields)
    run = place / "run"
    with pytest.raises(Interrupted):
        train(photos, out=run, observer=stop_after(5), **fields)
    with pytest.raises(Interrupted):
        train(photos, out=run, resume=True, observer=stop_after(19))
    resumed = train(photos, out=run, resume=True)
    assert account(run) == account(whole.path)
    assert resumed.bundle.identity == whole.bundle.identity
    return [event for event in account(run) if event["event"] == "step"]


def test_plateau_gates_and_rmsprop_resume_exactly(photos: Path, tmp_path: Path) -> None:
    steps = stopped_twice(photos, tmp_path, {**{k: v for k, v in TINY.items() if k != "learning_rate"}, **PLATEAU})
    each = len(steps) // 4
    assert [step["learning_rate"] for step in steps] == [0.02] * 2 * each + [0.01] * each + [0.005] * each
    assert not any("errors" in step for step in steps)


def test_warm_up_by_training_error_and_drop_path_resume_exactly(photos: Path, tmp_path: Path) -> None:
    steps = stopped_twice(photos, tmp_path, {**TINY, **WARM_UP})
    running, warm = 1.0, False
    for step in steps:
        full = 0.05 if step["step"] < 2.5 * len(steps) / 3 else 0.005
        assert step["learning_rate"] == pytest.approx(full if warm else 0.005)
        assert ("errors" in step) == (not warm)  # counted no longer than needed
        if not warm:
            running += (step["errors"] / step["images"] - running) / 100
            warm = running < 0.9
    counted = sum("errors" in step for step in steps)
    assert 6 < counted < 20  # the warm-up ended between the two stops


def test_the_history_is_of_top_1_errors_over_the_images_there_are(tmp_path: Path) -> None:
    for split, count in (("train", 9), ("val", 4)):
        write_colours(tmp_path / "photos" / split, count)
    for number in range(2):
        (tmp_path / "photos" / "train" / "red" / f"{number}.png").unlink()
    schedule = {"name": "plateau", "warmup_rate": 0.1, "warmup_until_error": 0.5}  # not reached in so few steps
    out = train(tmp_path / "photos", out=tmp_path / "run", **{**TINY, "epochs": 2}, schedule=schedule).path
    steps = [event for event in account(out) if event["event"] == "step"]
    epochs = [event for event in account(out) if event["event"] == "epoch"]
    assert [step["images"] for step in steps] == [8, 8, 9] * 2  # one image alone joins the batch before
    running = 1.0
    for step in steps:
        running += (step["errors"] / step["images"] - running) / 100
    newest = checkpoint.listed(out / "checkpoints")[-1]
    history = json.loads((newest / checkpoint.STATE).read_text())["position"]["history"]
    assert history["training_error"] == running
    assert history["validation_errors"] == [1 - epoch["top1"] for epoch in epochs]
    assert any(steps[last]["errors"] for last in (2, 5))


def test_a_checkpoint_of_an_older_version_is_taken_up(photos: Path, tmp_path: Path) -> None:
    whole = train(photos, out=tmp_path / "whole", **TINY)
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(photos, out=out, observer=stop_after(11), **TINY)
    newest = checkpoint.listed(out / "checkpoints")[-1]
    state = json.loads((newest / checkpoint.STATE).read_text())
    del state["position"]["history"]
    # What a version without some field wrote: here without any field that has its default.
    complete = Recipe.from_dict({**state["recipe"], "epochs": 3})
    state["recipe"] = complete.model_dump(mode="json", exclude_defaults=True, exclude={"epochs"})
    assert "rho" not in state["recipe"]["optimizer"]
    (newest / checkpoint.STATE).write_text(json.dumps(state))
    hashes = {name: durable.sha256(newest / name) for name in (checkpoint.TENSORS, checkpoint.STATE)}
    (newest / checkpoint.MANIFEST).write_text(json.dumps(hashes))
    resumed = train(photos, out=out, resume=True)
    assert account(out) == account(whole.path)
    assert resumed.bundle.identity == whole.bundle.identity


def test_a_position_survives_its_own_dict() -> None:
    position = Position(epoch=2, best={"epoch": 1, "top1": 0.5, "loss": 1.0})
    position.history.validation_errors += [0.75, 0.5]
    position.history.training_error, position.history.warmed_up_at = 0.7, 12
    again = Position.from_dict(json.loads(json.dumps(position.to_dict())))
    assert again == position
    assert Position.from_dict({"epoch": 2}).history == Position().history


def test_the_named_initialisation_is_what_the_run_starts_from(photos: Path, tmp_path: Path) -> None:
    first = [
        account(train(photos, out=tmp_path / str(name), **{**TINY, "epochs": 1, "initialisation": name}).path)[0][
            "loss"
        ]
        for name in (None, "he-fan-out", "normal-0.01")
    ]
    assert len(set(first)) == 3
    assert first[2] == pytest.approx(1.0986, abs=0.02)  # ln 3: logits of weights so small are nearly equal


def test_compiling_with_gates_is_refused_before_anything_is_written(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--compile off"):
        train(photos, out=tmp_path / "run", compile="on", options={"final_survival": 0.5}, **TINY)
    assert not (tmp_path / "run").exists()


def test_auxiliary_classifiers_stay_out_of_the_bundle(photos: Path, tmp_path: Path) -> None:
    run = train(photos, out=tmp_path / "run", network="googlenet_bn", image_size=32, resize=32, epochs=1, batch_size=16)
    contents = Bundle.open(run.path).contents
    assert contents.options == {"auxiliary": False}
    assert contents.recipe.get("options", {}) == {}
    weights = run.bundle.read("model.safetensors")
    assert not [name for name in weights if name.startswith("auxiliary")]
    assert run.bundle.build().auxiliary is None
