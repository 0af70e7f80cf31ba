"""A run from end to end on small data: what it leaves, how it is resumed, and what it refuses."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import resnext
from making import COLOURS, TINY, write_colours
from resnext.bundle import Bundle
from resnext.errors import UserError
from resnext.training import checkpoint, journal
from resnext.training.recipe import Recipe, load
from resnext.training.run import train
from resnext.training.stopping import Interrupted


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colours(tmp_path_factory.mktemp("photos"), 24)


def weights(run: Path) -> dict[str, np.ndarray]:
    return Bundle.open(run).read("model.safetensors")


def losses(run: Path) -> list[tuple[int, float]]:
    return [(e["step"], e["loss"]) for e in journal.read(run / "journal.jsonl") if e["event"] == "step"]


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> resnext.training.run.Run:
    return train(photos, out=tmp_path_factory.mktemp("runs") / "whole", ema_decay=0.9, **TINY)


def test_it_learns_and_leaves_a_complete_run(finished: Any, photos: Path, tmp_path: Path) -> None:
    assert finished.scores["top1"] > 0.9
    left = {path.name for path in finished.path.iterdir()}
    assert left == {"recipe.toml", "manifest.parquet", "journal.jsonl", "checkpoints", "model", ".lock"}
    assert finished.bundle.contents.classes == tuple(sorted(COLOURS))
    assert finished.bundle.verify() == []
    recorded = Recipe.from_dict(load(finished.path / "recipe.toml"))
    assert Recipe.from_dict(finished.bundle.contents.recipe) == recorded
    test = write_colours(tmp_path / "test", 10, seed=5)
    assert resnext.evaluate(finished.path, test).top1 > 0.9
    classifier = resnext.load(finished.path)
    assert classifier(test / "red" / "3.png").label == "red"


def test_the_journal_tells_every_step_and_epoch(finished: Any) -> None:
    events = list(journal.read(finished.path / "journal.jsonl"))
    assert [e["event"] for e in events if e["event"] not in ("step", "checkpoint")] == ["start", *["epoch"] * 3, "end"]
    assert [e["at_step"] for e in events if e["event"] == "checkpoint"] == [
        0,
        *(e["step"] + 1 for e in events if e["event"] == "epoch"),
    ]
    steps = [e for e in events if e["event"] == "step"]
    assert [e["step"] for e in steps] == list(range(len(steps)))
    assert {"loss", "learning_rate", "data_seconds", "compute_seconds", "update_seconds"} <= steps[0].keys()
    start = events[0]
    assert sum(e["images"] for e in steps) == 3 * start["train_images"]


def test_the_golden_images_give_their_logits(finished: Any) -> None:
    golden = finished.bundle.read("golden.safetensors")
    logits = resnext.load(finished.path).engine(golden["pixels"])
    np.testing.assert_allclose(logits, golden["logits"], atol=1e-5)


def test_the_same_seed_gives_the_same_run_with_other_workers_and_no_cache(
    finished: Any, photos: Path, tmp_path: Path
) -> None:
    again = train(photos, out=tmp_path / "again", ema_decay=0.9, **{**TINY, "workers": 3, "cache_gib": 0.0})
    assert losses(again.path) == losses(finished.path)
    assert again.bundle.identity == finished.bundle.identity
    other = train(photos, out=tmp_path / "other", ema_decay=0.9, **{**TINY, "seed": 1})
    assert losses(other.path) != losses(finished.path)


@pytest.mark.parametrize(
    ("stop_at", "number", "code"), [(3, signal.SIGINT, 130), (7, signal.SIGTERM, 143), (14, signal.SIGUSR1, 143)]
)
def test_an_interrupted_run_resumes_to_the_same_end(
    finished: Any, photos: Path, tmp_path: Path, stop_at: int, number: signal.Signals, code: int
) -> None:
    def interrupt(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == stop_at:
            signal.raise_signal(number)

    with pytest.raises(Interrupted, match="--resume") as stopped:
        train(photos, out=tmp_path / "run", ema_decay=0.9, observer=interrupt, **TINY)
    assert stopped.value.exit_code == code
    assert f"Stopped by {number.name}." in str(stopped.value)
    with pytest.raises(UserError, match="not finished"):
        train(photos, out=tmp_path / "run", **TINY)
    resumed = train(photos, out=tmp_path / "run", resume=True)
    assert losses(resumed.path) == losses(finished.path)
    assert resumed.bundle.identity == finished.bundle.identity


def interrupted(photos: Path, out: Path, at: int) -> Path:
    """Stop a run like `finished` after the step `at`."""

    def interrupt(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == at:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        train(photos, out=out, ema_decay=0.9, observer=interrupt, **TINY)
    return out


def test_a_run_that_lost_its_newest_checkpoint_still_comes_to_the_same_end(
    finished: Any, photos: Path, tmp_path: Path
) -> None:
    run = interrupted(photos, tmp_path / "run", at=14)
    *older, newest = checkpoint.listed(run / "checkpoints")
    (newest / "state.safetensors").write_bytes(b"")
    events: list[dict[str, Any]] = []
    resumed = train(photos, out=run, resume=True, observer=events.append)
    notes = next(event["notes"] for event in events if event["event"] == "resume")
    assert any(newest.name in note and "passed over" in note for note in notes)
    assert losses(resumed.path) == losses(finished.path)
    assert resumed.bundle.identity == finished.bundle.identity
    assert older


def test_a_run_without_one_whole_checkpoint_says_so_and_keeps_its_bundle(photos: Path, tmp_path: Path) -> None:
    run = interrupted(photos, tmp_path / "run", at=14)
    before = Bundle.open(run).identity
    for place in checkpoint.listed(run / "checkpoints"):
        (place / "state.json").unlink()
    with pytest.raises(UserError, match="No checkpoint is whole"):
        train(photos, out=run, resume=True)
    assert Bundle.open(run).identity == before


def test_a_crash_between_the_two_renames_of_the_bundle_loses_nothing(
    finished: Any, photos: Path, tmp_path: Path
) -> None:
    run = interrupted(photos, tmp_path / "run", at=14)
    (run / "model").rename(run / "model.old")
    assert train(photos, out=run, resume=True).bundle.identity == finished.bundle.identity
    assert not (run / "model.old").exists()


def test_ctrl_c_before_the_first_step_can_be_resumed(finished: Any, photos: Path, tmp_path: Path) -> None:
    def interrupt(event: dict[str, Any]) -> None:
        if event["event"] == "progress":
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="--resume"):
        train(photos, out=tmp_path / "run", observer=interrupt, ema_decay=0.9, **TINY)
    shutil.rmtree(tmp_path / "run" / "checkpoints", ignore_errors=True)
    resumed = train(photos, out=tmp_path / "run", resume=True)
    assert losses(resumed.path) == losses(finished.path)


def test_more_epochs_extend_a_finished_run(finished: Any, photos: Path, tmp_path: Path) -> None:
    shutil.copytree(finished.path, tmp_path / "run")
    extended = train(photos, out=tmp_path / "run", resume=True, epochs=4)
    assert len(losses(extended.path)) == len(losses(finished.path)) * 4 // 3
    with pytest.raises(UserError, match="another seed"):
        train(photos, out=tmp_path / "run", resume=True, epochs=9, seed=3)


def test_a_finished_run_and_foreign_files_are_left_alone(finished: Any, photos: Path, tmp_path: Path) -> None:
    before = finished.bundle.identity
    with pytest.raises(UserError, match="already holds a finished run"):
        train(photos, out=finished.path, **TINY)
    assert Bundle.open(finished.path).identity == before
    (tmp_path / "thesis.txt").write_text("ten years of work")
    with pytest.raises(UserError, match="not empty"):
        train(photos, out=tmp_path, **TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_loss_that_is_not_finite_stops_with_what_to_try(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lower --learning-rate"):
        train(photos, out=tmp_path / "run", **{**TINY, "learning_rate": 1e30, "precision": "fp32"})
    with pytest.raises(UserError, match="holds no bundle"):
        Bundle.open(tmp_path / "run")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"network": "resnet51"}, "no network 'resnet51'.*Did you mean 'resnet50'"),
        ({"network": "resnet18"}, "Take an image size of 32 or more"),
        ({"data": {"early_size": 2, "early_epochs": 1}}, "too small"),
        ({"epochs": 0}, "epochs"),
        ({"batch_size": "many"}, "batch_size"),
        ({"batch": 3}, "unknown key 'batch'.*'batch_size'"),
        ({"recipe": "no_such"}, "no recipe 'no_such'"),
        ({"options": {"shortcut": "Z"}}, "shortcut"),
        ({"options": {"shortcuts": "A"}}, "shortcut"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(
    photos: Path, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=f"(?s){message}"):
        train(photos, out=tmp_path / "run", **{**TINY, **fields})
    assert not (tmp_path / "run").exists()


def test_unreadable_files_are_named_once_left_out_and_limited(tmp_path: Path) -> None:
    data = write_colours(tmp_path / "photos", 24)
    (data / "red" / "cut.png").write_bytes((data / "red" / "0.png").read_bytes()[:90])
    (data / "blue" / "text.jpg").write_text("not an image")
    (data / "green" / "empty.png").write_bytes(b"")
    events: list[dict[str, Any]] = []
    with pytest.raises(UserError, match="--max-unreadable"):
        train(data, out=tmp_path / "strict", **TINY)
    train(data, out=tmp_path / "strict", resume=True, max_unreadable=0.2)
    run = train(data, out=tmp_path / "run", max_unreadable=0.2, observer=events.append, **TINY)
    named = [Path(e["path"]).name for e in events if e["event"] == "unreadable"]
    skipped = [Path(row["path"]).name for row in run.scores["skipped"]]
    assert sorted(named + skipped) == ["cut.png", "empty.png", "text.jpg"]
    start = next(e for e in events if e["event"] == "start")
    trained = sum(e["images"] for e in events if e["event"] == "step")
    assert trained == 3 * (start["train_images"] - len(named))


def test_a_full_disk_is_one_line_and_the_run_can_go_on(
    finished: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = Path.write_bytes, []

    def full(self: Path, data: bytes) -> int:
        calls.append(self.name)
        if self.name == "state.safetensors" and calls.count(self.name) == 2:
            write(self, data[: len(data) // 2])
            raise OSError(28, "No space left on device", str(self))
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"is full.*--resume"):
        train(photos, out=tmp_path / "run", ema_decay=0.9, **TINY)
    monkeypatch.undo()
    resumed = train(photos, out=tmp_path / "run", resume=True)
    assert losses(resumed.path) == losses(finished.path)
    assert resumed.bundle.identity == finished.bundle.identity


def test_what_the_defaults_choose_is_told_and_written_down(tmp_path: Path) -> None:
    data = write_colours(tmp_path / "photos", 12, size=24)
    events: list[dict[str, Any]] = []
    run = train(data, out=tmp_path / "run", epochs=1, workers=1, observer=events.append)
    recipe = Recipe.from_dict(load(run.path / "recipe.toml"))
    assert recipe.network.startswith("cifar_resnet")
    assert recipe.data.image_size == 24
    told = " ".join(events[0]["notes"]) if events[0]["event"] == "start" else ""
    told = told or " ".join(next(e for e in events if e["event"] == "start")["notes"])
    assert recipe.network in told
    assert "expect a rough classifier" in told


def test_grey_images_train_a_grey_network(tmp_path: Path) -> None:
    for name, level in (("dark", 40), ("light", 200)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(12):
            noise = np.random.default_rng(number).normal(level, 20, (16, 16))
            Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8)).save(tmp_path / f"photos/{name}/{number}.png")
    run = train(tmp_path / "photos", out=tmp_path / "run", network="cifar_resnet8", epochs=1, workers=1)
    assert json.loads((run.bundle.path / "bundle.json").read_text())["channels"] == 1


def test_mixing_ema_adamw_smoothing_and_clipping_run_and_resume(photos: Path, tmp_path: Path) -> None:
    fields = {
        **TINY,
        "augmentation": {"crop": "pad", "padding": 2, "mixup": 0.2, "cutmix": 1.0, "erasing": 0.3},
        "optimizer": {"name": "adamw", "learning_rate": 0.003, "decay": "weights", "clip_norm": 1.0},
        "label_smoothing": 0.1,
        "ema_decay": 0.9,
        "precision": "bf16",
    }
    del fields["learning_rate"]
    whole = train(photos, out=tmp_path / "whole", **fields)

    def interrupt(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 10:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        train(photos, out=tmp_path / "run", observer=interrupt, **fields)
    resumed = train(photos, out=tmp_path / "run", resume=True)
    assert losses(resumed.path) == losses(whole.path)
    assert resumed.bundle.identity == whole.bundle.identity


def test_folds_validate_every_image_once_and_give_mean_and_interval(tmp_path: Path) -> None:
    from resnext.training.folds import train_folds

    data = write_colours(tmp_path / "photos", 10)
    result = train_folds(data, 3, out=tmp_path / "run", **{**TINY, "epochs": 1})
    assert result["images"] == 30
    top1 = result["folds"]
    assert result["top1"] == pytest.approx(np.mean(top1))
    half = 4.302652729911275 * np.std(top1, ddof=1) / np.sqrt(3)  # Student's t, 2 degrees of freedom, 97.5 %
    assert result["top1_interval"][1] == pytest.approx(min(1, result["top1"] + half))
    with pytest.raises(UserError, match="2 or more"):
        train_folds(data, 1, out=tmp_path / "one", **TINY)


def test_another_image_size_than_the_recipe_s_keeps_the_share_of_the_crop(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("[data]\nimage_size = 16\nresize = 20\n")
    fields = {**TINY, "image_size": 24, "epochs": 1}
    del fields["resize"]
    run = train(photos, out=tmp_path / "run", recipe=tmp_path / "recipe.toml", **fields)
    assert run.bundle.contents.preprocessing.image_size == 24
    assert run.bundle.contents.preprocessing.resize == 30


def test_early_epochs_train_on_smaller_inputs(photos: Path, tmp_path: Path) -> None:
    from resnext.training.session import Session

    seen: list[int] = []

    def look(module: object, inputs: tuple[Any, ...]) -> None:
        seen.append(inputs[0].shape[-1])

    original = Session._network

    def watched(self: Session) -> Any:
        network = original(self)
        network.stem.register_forward_pre_hook(look)
        return network

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "_network", watched)
        early = {"early_size": [8, 12], "early_epochs": [1, 1]}
        train(photos, out=tmp_path / "run", data=early, micro_batch=64, **TINY)
    # An epoch trains on its size and is then validated on whole images.
    assert [size for size, before in zip(seen, [0, *seen], strict=False) if size != before] == [8, 16, 12, 16]


def test_a_run_is_resumed_on_its_own_data_and_recipe_only(photos: Path, tmp_path: Path) -> None:
    run = interrupted(photos, tmp_path / "run", at=14)
    for other in (tmp_path / "nowhere", write_colours(tmp_path / "other", 4)):
        with pytest.raises(UserError, match="was begun with the data in"):
            train(other, out=run, resume=True)
    text = (run / "recipe.toml").read_text()
    (run / "recipe.toml").write_text(text.replace("seed = 0", "seed = 5"))
    with pytest.raises(UserError, match="is not the recipe"):
        train(photos, out=run, resume=True)


def test_a_batch_larger_than_the_data_trains(photos: Path, tmp_path: Path) -> None:
    run = train(photos, out=tmp_path / "run", **{**TINY, "epochs": 1, "batch_size": 60_000})
    assert run.scores["images"] > 0
