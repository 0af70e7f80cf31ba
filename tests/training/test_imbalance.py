"""Remedies for classes of unequal size: scikit-learn's weights, losses as defined, exact under resume, and of use."""

from __future__ import annotations

import signal
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn

from making import TINY, write_colours
from resnext.data.loader import Batch
from resnext.errors import UserError
from resnext.training import journal
from resnext.training.imbalance import class_weights
from resnext.training.loop import Interrupted
from resnext.training.recipe import Recipe
from resnext.training.run import train
from resnext.training.step import TrainingStep

WEIGHTS = np.array([0.5, 2.0, 0.0, 1.25])
REMEDIES: tuple[dict[str, Any], ...] = ({"class_weights": "balanced"}, {"sampling": "balanced"})


class Linear(nn.Module):
    """Two linear heads on the pixels, the second an auxiliary one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.own, self.auxiliary = nn.Linear(12, 4), nn.Linear(12, 4)

    def training_logits(self, images: Tensor) -> list[tuple[float, Tensor]]:
        flat = images.flatten(1)
        return [(1.0, self.own(flat)), (0.3, self.auxiliary(flat))]


def step_of(weights: npt.NDArray[np.float64] | None, micro_batch: int = 0, **fields: Any) -> TrainingStep:
    raw = {
        "network": "",
        "epochs": 1,
        "batch_size": 6,
        "data": {"image_size": 2, "resize": 2, "mean": [0.5] * 3, "std": [0.2] * 3},
        "optimizer": {"learning_rate": 0.1, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0},
        "machine": {"device": "cpu", "precision": "fp32", "micro_batch": micro_batch},
    }
    recipe = Recipe.from_dict({**raw, **fields})
    return TrainingStep(Linear(), recipe, recipe.data.preprocessing(), 4, class_weights=weights)


def batch_of(images: int) -> Batch:
    generator = np.random.default_rng(1)
    pixels = generator.integers(0, 256, (images, 2, 2, 3), np.uint8)
    return Batch(np.arange(images), pixels, np.array([0, 1, 1, 3, 2, 0, 3])[:images], 0)


def expected_loss(step: TrainingStep, inputs: Tensor, targets: npt.NDArray[np.float64], smoothing: float) -> float:
    """−Σᵢ Σₖ wₖ tᵢₖ ln pᵢₖ / N, with targets smoothed as arXiv:1512.00567 section 7 has it, for both heads."""
    smooth = (1 - smoothing) * targets + smoothing / 4
    total = 0.0
    with torch.no_grad():
        for share, logits in step.network.training_logits(inputs):  # type: ignore[operator]
            logs = logits.double().log_softmax(1).numpy()
            total += share * -(WEIGHTS * smooth * logs).sum() / len(inputs)
    return total


@given(labels=st.lists(st.integers(0, 5), min_size=1, max_size=80))
def test_weights_are_scikit_learns_and_have_mean_one(labels: list[int]) -> None:
    there = np.unique(labels)
    weights = class_weights(np.array(labels, np.int32), 7)
    assert weights[there] == pytest.approx(compute_class_weight("balanced", classes=there, y=np.array(labels)))
    assert np.delete(weights, there).tolist() == [0.0] * (7 - len(there))
    assert weights[labels].mean() == pytest.approx(1)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_weighted_sum_over_the_number_of_images(mixed: bool, smoothing: float) -> None:
    options = {"augmentation": {"mixup": 0.4}} if mixed else {}
    step, batch = step_of(WEIGHTS, label_smoothing=smoothing, **options), batch_of(6)
    inputs, targets = step._inputs(batch, 0, 0)
    dense = targets.double().numpy() if mixed else np.eye(4)[batch.labels]
    assert not mixed or 0.01 < dense.max(axis=1).min() < 0.99
    expected = expected_loss(step, inputs, dense, smoothing)
    assert step(batch, 0, 0, 0.1).loss == pytest.approx(expected, rel=1e-5)


def test_a_batch_in_parts_has_the_gradient_of_the_whole() -> None:
    after = []
    for micro_batch in (0, 3, 2):
        step = step_of(WEIGHTS, micro_batch)
        outcome = step(batch_of(7), 0, 0, 0.1)
        after.append((outcome.loss, [each.detach().clone() for each in step.network.parameters()]))
    for loss, parameters in after[1:]:
        assert loss == pytest.approx(after[0][0], rel=1e-6)
        torch.testing.assert_close(parameters, after[0][1])
    plain = step_of(None)
    assert plain(batch_of(7), 0, 0, 0.1).loss != pytest.approx(after[0][0], rel=1e-2)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images of blue, 10 of green, 4 of red."""
    place = write_colours(tmp_path_factory.mktemp("photos"), 24)
    for name, count in (("green", 10), ("red", 4)):
        for number in range(count, 24):
            (place / name / f"{number}.png").unlink()
    return place


def account(run: Path) -> list[tuple[Any, ...]]:
    keys = ("event", "epoch", "step", "images", "loss", "train_loss", "top1")
    return [tuple(e.get(key) for key in keys) for e in journal.read(run / "journal.jsonl") if e["event"] in keys[1:3]]


@pytest.mark.parametrize("remedy", REMEDIES, ids=str)
def test_a_stopped_run_comes_to_the_same_end_and_the_remedy_stands_in_its_recipe(
    photos: Path, tmp_path: Path, remedy: dict[str, Any]
) -> None:
    fields = {**TINY, **remedy, "augmentation": {"crop": "pad", "padding": 2, "flip": 0.5, "cutmix": 1.0}}

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 6:  # in the middle of the second epoch
            signal.raise_signal(signal.SIGINT)

    whole = train(photos, out=tmp_path / "whole", **fields)
    with pytest.raises(Interrupted):
        train(photos, out=tmp_path / "run", observer=stop, **fields)
    resumed = train(photos, out=tmp_path / "run", resume=True)
    assert account(resumed.path) == account(whole.path)
    plain = train(photos, out=tmp_path / "plain", **{**fields, next(iter(remedy)): None})
    assert account(plain.path)[0] != account(whole.path)[0]
    assert resumed.bundle.identity == whole.bundle.identity
    (name, value), *_ = remedy.items()
    written = Recipe.from_dict(tomllib.loads((whole.path / "recipe.toml").read_text()))
    assert written.deciding()[name] == value
    with pytest.raises(UserError, match=f"was begun with another {name}"):
        train(
            photos, out=tmp_path / "run", resume=True, epochs=4, **{name: "none" if "weights" in name else "shuffled"}
        )


def test_what_the_remedy_means_is_said(photos: Path, tmp_path: Path) -> None:
    said = []
    for number, remedy in enumerate(({}, *REMEDIES)):
        out = train(photos, out=tmp_path / str(number), **{**TINY, "epochs": 1}, **remedy).path
        said.append(" ".join(next(journal.read(out / "journal.jsonl"))["notes"]))
    assert "is balanced" not in said[0]
    assert "are weighted" not in said[0]
    assert "--class-weights balanced" in said[0], "without a remedy one is named"
    assert "--class-weights balanced" not in said[1] + said[2]
    # Of 34 training images: 22 blue, 9 green, 3 red; 34 / (3 · 3) and 34 / (3 · 22).
    assert "counts 3.78 for red (of 3) and 0.515 for blue (of 22)" in said[1]
    assert "shows one of red (of 3) 3.78 times and one of blue (of 22) 0.515 times" in said[2]


def test_both_remedies_at_once_are_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Take one of the two"):
        train(photos, out=tmp_path / "run", class_weights="balanced", sampling="balanced", **TINY)
    assert not (tmp_path / "run").exists()


def write_shades(folder: Path, counts: dict[str, int], seed: int) -> None:
    """Write grey images whose one brightness is drawn from N(110, 20) for "common" and N(140, 20) for "rare"."""
    generator = np.random.default_rng(seed)
    for name, mean in (("common", 110), ("rare", 140)):
        (folder / name).mkdir(parents=True)
        for number in range(counts[name]):
            level = np.clip(generator.normal(mean, 20) + generator.normal(0, 3, (8, 8, 1)), 0, 255)
            Image.fromarray(np.repeat(level, 3, 2).astype(np.uint8)).save(folder / name / f"{number}.png")


def test_either_remedy_finds_more_of_a_rare_class_that_looks_like_a_common_one(tmp_path: Path) -> None:
    data = tmp_path / "shades"
    write_shades(data / "train", {"common": 300, "rare": 20}, seed=0)
    write_shades(data / "val", {"common": 100, "rare": 100}, seed=1)
    fields = {**TINY, "image_size": 8, "resize": 8, "batch_size": 32, "epochs": 6, "learning_rate": 0.02}
    recalls = []
    for number, remedy in enumerate(({}, *REMEDIES)):
        run = train(data, out=tmp_path / str(number), ema_decay=0.9, **fields, **remedy)
        rows = run.scores["per_class"]
        recalls.append({name: row["top1"] for name, row in rows.items()})
    plain, *remedied = recalls
    for each in remedied:
        assert each["rare"] > plain["rare"] + 0.2
        assert each["rare"] + each["common"] > plain["rare"] + plain["common"]
