"""Training that begins with weights from elsewhere: what learns when, how fast, and that it can be stopped anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import resnext
from making import TINY, write_colours
from resnext import catalog
from resnext.bundle import Bundle
from resnext.errors import UserError
from resnext.training import journal
from resnext.training.freezing import Freezing
from resnext.training.run import train
from resnext.training.sections import Transfer

FINE = {key: value for key, value in TINY.items() if key not in ("network", "image_size", "resize")}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two kinds of images, one of which the first network knows under another name."""
    folder = write_colours(tmp_path_factory.mktemp("photos"), 24, seed=3)
    (folder / "red").rename(folder / "rot")
    for path in (folder / "blue").iterdir():
        path.unlink()
    (folder / "blue").rmdir()
    return folder


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first")
    return train(write_colours(folder / "photos", 24), out=folder / "run", **TINY).path


def state(run: Path) -> dict[str, np.ndarray]:
    return Bundle.open(run).read("model.safetensors")


def told(run: Path, *kinds: str) -> list[dict[str, Any]]:
    return [event for event in journal.read(run / "journal.jsonl") if event["event"] in kinds]


def test_a_run_begins_with_the_weights_and_their_preprocessing(first: Path, photos: Path, tmp_path: Path) -> None:
    run = train(photos, out=tmp_path / "run", weights=str(first), transfer={"head_epochs": 3}, **FINE)
    before, after = state(first), state(run.path)
    for name, tensor in after.items():  # three epochs of the classifier alone, so all else is as it came
        assert name.startswith("head.fc") or np.array_equal(tensor, before[name]), name
    assert after["head.fc.weight"].shape[0] == 2
    contents, source = run.bundle.contents, Bundle.open(first).contents
    assert (contents.network, contents.preprocessing) == (source.network, source.preprocessing)
    assert contents.classes == ("green", "rot")
    assert "trained further here" in contents.licence
    assert any("classifier is new" in note for note in told(run.path, "start")[0]["notes"])


@pytest.mark.parametrize("cached", [True, False])
def test_the_classifier_learns_first_and_then_the_rest(first: Path, photos: Path, tmp_path: Path, cached: bool) -> None:
    transfer = {"head_epochs": 2, "cache_features": cached}
    run = train(photos, out=tmp_path / "run", weights=str(first), transfer=transfer, **{**FINE, "epochs": 4})
    assert run.scores["top1"] > 0.9
    steps = told(run.path, "step")
    rates = [[step["learning_rate"] for step in steps if step["epoch"] == epoch] for epoch in range(4)]
    assert rates[0][0] == 0.1
    assert rates[0][-1] > rates[1][0] > rates[1][-1] > 0
    assert rates[2][0] == pytest.approx(
        FINE["learning_rate"] / 25
    )  # the schedule begins behind the classifier's epochs


def test_vectors_give_the_losses_that_images_give(first: Path, photos: Path, tmp_path: Path) -> None:
    plain = {"augmentation": {"crop": "none", "flip": 0.0}, "precision": "fp32", "weights": str(first)}
    losses = {}
    for cached in (True, False):
        run = train(
            photos,
            out=tmp_path / f"{cached}",
            transfer={"head_epochs": 3, "cache_features": cached},
            **plain,
            **FINE,
        )
        losses[cached] = [step["loss"] for step in told(run.path, "step")]
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)
    assert len(set(losses[True])) > 3


def test_mirrored_images_have_vectors_of_their_own(first: Path, photos: Path, tmp_path: Path) -> None:
    losses = []
    for flip in (0.0, 1.0):
        run = train(
            photos,
            out=tmp_path / f"{flip}",
            weights=str(first),
            transfer={"head_epochs": 1},
            augmentation={"crop": "none", "flip": flip},
            **{**FINE, "epochs": 1},
        )
        losses.append([step["loss"] for step in told(run.path, "step")])
    assert losses[0] != losses[1]


def test_stages_wake_from_the_end_and_learn_the_slower_the_earlier_they_are() -> None:
    network = catalog.create("cifar_resnet8", num_classes=3)
    freezing = Freezing(network, Transfer(head_epochs=1, unfreeze_every=2, rate_decay=0.5))
    names = [name for name, _ in network.named_parameters()]
    awake = [{name.split(".")[0] for name in names if freezing.learns(name, epoch)} for epoch in range(9)]
    head, third, second, first = (
        {"head"},
        {"head", "stage3"},
        {"head", "stage3", "stage2"},
        {"head", "stage3", "stage2"},
    )
    assert awake[:3] == [head, third, third]
    assert awake[3:5] == [second, second]
    assert awake[5:7] == [first | {"stage1"}] * 2
    assert awake[7:] == [first | {"stage1", "stem"}] * 2
    assert [freezing.rate(f"{part}.x") for part in ("head", "stage3", "stage2", "stage1", "stem")] == [
        1.0,
        0.5,
        0.25,
        0.125,
        0.0625,
    ]


def test_frozen_parts_compute_as_at_inference_and_wake_again() -> None:
    network = catalog.create("cifar_resnet8", num_classes=3)
    freezing = Freezing(network, Transfer(head_epochs=1, unfreeze_every=1, frozen_norm=True))
    images = torch.randn(4, 3, 16, 16)
    for epoch in range(5):
        freezing.apply(epoch)
        before = {name: buffer.clone() for name, buffer in network.named_buffers()}
        network(images)
        assert all(torch.equal(buffer, before[name]) for name, buffer in network.named_buffers())
        norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
        assert not any(norm.training or norm.weight.requires_grad for norm in norms)
    assert network.get_submodule("stem.conv").weight.requires_grad
    thawing = Freezing(network, Transfer(head_epochs=1, unfreeze_every=1))
    thawing.apply(2)
    training = {name.split(".")[0] for name, module in network.named_modules() if name and module.training}
    assert training == {"stage2", "stage3", "head"}


@pytest.mark.parametrize("at", [2, 8, 14, 25])
def test_a_stopped_run_goes_on_to_the_same_bits(first: Path, photos: Path, tmp_path: Path, at: int) -> None:
    from resnext.training.stopping import Interrupted

    fields = {
        "weights": str(first),
        "transfer": {"head_epochs": 2, "unfreeze_every": 1, "rate_decay": 0.5},
        "ema_decay": 0.9,
        **{**FINE, "epochs": 5},
    }
    whole = train(photos, out=tmp_path / "whole", **fields)
    steps = told(whole.path, "step")
    assert len(steps) > at

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == at:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        train(photos, out=tmp_path / "cut", observer=stop, **fields)
    cut = train(photos, out=tmp_path / "cut", resume=True, **fields)
    assert cut.bundle.identity == whole.bundle.identity
    assert [(s["step"], s["loss"]) for s in told(cut.path, "step")] == [(s["step"], s["loss"]) for s in steps]


def test_weights_that_changed_since_the_plan_are_refused(first: Path, photos: Path, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    file = tmp_path / "weights.safetensors"
    save_file(state(first), file)
    fields = {"weights": str(file), "network": "cifar_resnet8", "image_size": 16, "resize": 16, **FINE}
    train(photos, out=tmp_path / "run", **fields)
    save_file({name: np.asarray(-tensor) for name, tensor in state(first).items()}, file)
    (tmp_path / "begun").mkdir()
    for name in ("recipe.toml", "manifest.parquet"):
        (tmp_path / "begun" / name).write_bytes((tmp_path / "run" / name).read_bytes())
    with pytest.raises(UserError, match="is another file than when this run was planned"):
        train(photos, out=tmp_path / "begun", resume=True, **fields)


def test_weights_of_another_network_are_refused_before_anything_is_written(
    first: Path, photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="is cifar_resnet8, not cifar_resnet20"):
        train(photos, out=tmp_path / "run", weights=str(first), **{**FINE, "network": "cifar_resnet20"})
    assert not (tmp_path / "run").exists()


def test_the_command_names_what_it_begins_with(first: Path, photos: Path, tmp_path: Path) -> None:
    run = resnext.train(photos, out=tmp_path / "run", weights=str(first), **{**FINE, "epochs": 2})
    notes = " ".join(told(run.path, "start")[0]["notes"])
    assert f"Begins with the weights of {first}." in notes
    assert "1 epochs of the classifier alone, then 1 of all layers" in notes
