"""The papers' data ingredients in a run: measured once, recorded, used on resume, and carried by the bundle."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

import resnext
from making import TINY, write_colours
from resnext import durable
from resnext.bundle import Bundle
from resnext.data.cache import PixelCache
from resnext.data.loader import Loader
from resnext.data.manifest import Manifest, scan
from resnext.data.preprocessing import Preprocessing
from resnext.errors import UserError
from resnext.inference.describe import describe
from resnext.training import defaults, journal, pixels
from resnext.training.recipe import Recipe, load
from resnext.training.run import Run, train
from resnext.training.said import merge_said
from resnext.training.stopping import Interrupted

MEAN: dict[str, Any] = {
    **TINY,
    "resize": 18,
    "data": {"train_resize": 20, "per_pixel_mean": True},
    "augmentation": {"crop": "pad", "padding": 2, "padding_mode": "mean", "flip": 0.5},
}
LIT: dict[str, Any] = {
    **TINY,
    "data": {"train_resize": 24},
    "augmentation": {"crop": "shorter-side", "shorter_side": [16, 24], "lighting": 0.1},
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colours(tmp_path_factory.mktemp("photos"), 16, size=21)


@pytest.fixture(scope="module")
def centred(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(photos, out=tmp_path_factory.mktemp("runs") / "mean", **MEAN)


@pytest.fixture(scope="module")
def lit(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(photos, out=tmp_path_factory.mktemp("runs") / "lit", **LIT)


def losses(run: Path) -> list[tuple[int, float]]:
    return [(e["step"], e["loss"]) for e in journal.read(run / "journal.jsonl") if e["event"] == "step"]


def stopped(photos: Path, out: Path, fields: dict[str, Any], at: int = 7) -> Path:
    """Stop a run after the step `at`."""

    def interrupt(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == at:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        train(photos, out=out, observer=interrupt, **fields)
    return out


def centre_crops(run: Path, resize: int, size: int) -> npt.NDArray[np.uint8]:
    """The run's training images, read and resized by Pillow alone."""
    split, crops = Manifest.read(run / "manifest.parquet").split("train"), []
    for row in range(len(split)):
        image = Image.open(split.path(row)).resize((resize, resize), Image.Resampling.BILINEAR)
        edge = (resize - size) // 2
        crops.append(np.asarray(image)[edge : edge + size, edge : edge + size])
    return np.stack(crops)


def test_the_mean_image_is_numpys_mean_of_the_training_crops_and_in_the_bundle(centred: Run) -> None:
    expected = centre_crops(centred.path, 20, 16).mean(axis=0) / 255
    preprocessing = centred.bundle.contents.preprocessing
    assert preprocessing.mean_image is not None
    np.testing.assert_allclose(preprocessing.mean_image, expected, atol=1e-6)
    np.testing.assert_allclose(preprocessing.mean, expected.mean(axis=(0, 1)), atol=1e-6)
    assert (preprocessing.resize, preprocessing.image_size) == (18, 16)
    assert centred.bundle.verify() == []
    kept = load_file(centred.path / "mean_image.safetensors")["mean_image"]
    assert np.array_equal(kept, preprocessing.mean_image)
    told = describe(str(centred.path))["bundle"]["preprocessing"]
    assert told == preprocessing.to_dict()
    assert len(told["mean_image"]) == 64


def test_predict_says_through_the_bundle_what_validation_said(centred: Run) -> None:
    assert centred.scores["top1"] > 0.8
    split = Manifest.read(centred.path / "manifest.parquet").split("val")
    paths = [str(split.path(row)) for row in range(len(split))]
    ranked = [dict(prediction.ranked) for prediction in resnext.load(centred.path)(list(paths))]
    shares = [one[split.classes[label]] for one, label in zip(ranked, split.labels, strict=True)]
    np.testing.assert_allclose(-np.mean(np.log(shares)), centred.scores["loss"], rtol=1e-5)
    image = centred.bundle.contents.preprocessing.mean_image
    network = centred.bundle.build()
    assert image is not None
    # The straight line, written out: resize, crop, subtract, divide.
    crop = np.asarray(Image.open(paths[0]).resize((18, 18), Image.Resampling.BILINEAR))[1:17, 1:17]
    inputs = (crop / 255 - image) / np.array(centred.bundle.contents.preprocessing.std)
    with torch.inference_mode():
        logits = network(torch.tensor(inputs.transpose(2, 0, 1)[None], dtype=torch.float32))
    expected = torch.softmax(logits, 1)[0].numpy()
    np.testing.assert_allclose([ranked[0][name] for name in split.classes], expected, atol=1e-5)


@pytest.mark.parametrize("lost", [False, True])
def test_a_run_with_a_mean_image_resumes_to_the_same_end(
    centred: Run, photos: Path, tmp_path: Path, lost: bool
) -> None:
    run = stopped(photos, tmp_path / "run", MEAN)
    if lost:
        (run / "mean_image.safetensors").unlink()
    resumed = train(photos, out=run, resume=True)
    assert losses(run) == losses(centred.path)
    assert resumed.bundle.identity == centred.bundle.identity


def test_another_mean_image_is_not_taken_for_the_run_s(photos: Path, tmp_path: Path) -> None:
    run = stopped(photos, tmp_path / "run", MEAN)
    file = run / "mean_image.safetensors"
    save_file({"mean_image": load_file(file)["mean_image"] + np.float32(1e-3)}, file)
    with pytest.raises(UserError, match=r"mean_image\.safetensors is not the mean image"):
        train(photos, out=run, resume=True)
    file.write_bytes(b"no tensors")
    with pytest.raises(UserError, match=r"mean_image\.safetensors is damaged"):
        train(photos, out=run, resume=True)


def test_a_tampered_mean_image_of_the_bundle_is_refused_by_name(centred: Run, tmp_path: Path) -> None:
    shutil.copytree(centred.bundle.path, tmp_path / "model")
    file = tmp_path / "model" / "mean_image.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    with pytest.raises(UserError, match=r"mean_image\.safetensors does not match the hash"):
        Bundle.open(tmp_path)


def test_unreadable_images_are_left_out_of_the_mean(tmp_path: Path) -> None:
    data = write_colours(tmp_path / "photos", 8)
    split = scan(data, purpose="train").split("train")
    split.path(3).write_text("no picture")
    files = pixels.Files(split, Preprocessing(16, 16))
    found = pixels.with_mean_image(
        files.preprocessing, files, split, tmp_path / "mean.safetensors", workers=2, observer=journal.ignore
    )
    readable = [np.asarray(Image.open(split.path(row))) for row in range(len(split)) if row != 3]
    assert found.mean_image is not None
    np.testing.assert_allclose(found.mean_image, np.mean(readable, axis=0) / 255, atol=1e-6)


def test_colour_axes_are_those_of_the_training_images_and_recorded(lit: Run) -> None:
    recorded = Recipe.from_dict(load(lit.path / "recipe.toml")).augmentation
    colours = centre_crops(lit.path, 24, 16).reshape(-1, 3) / 255
    values, vectors = np.linalg.eigh(np.cov(colours.T, bias=True))
    axes = np.array(recorded.colour_axes).reshape(3, 3)
    np.testing.assert_allclose(np.linalg.norm(axes, axis=1), values[::-1], rtol=1e-9)
    np.testing.assert_allclose(np.abs(axes), np.abs((vectors * values).T[::-1]), atol=1e-9)
    assert Recipe.from_dict(lit.bundle.contents.recipe).augmentation == recorded


def test_a_lit_run_resumes_with_its_recorded_axes_to_the_same_end(
    lit: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stopped(photos, tmp_path / "run", LIT)

    def measured_again(*arguments: object) -> tuple[float, ...]:
        raise AssertionError("axes are in recipe.toml")

    monkeypatch.setattr(defaults, "colour_axes", measured_again)
    resumed = train(photos, out=run, resume=True)
    assert losses(run) == losses(lit.path)
    assert resumed.bundle.identity == lit.bundle.identity


def test_a_lit_run_that_lost_its_axes_before_its_first_checkpoint_says_so(photos: Path, tmp_path: Path) -> None:
    run = stopped(photos, tmp_path / "run", LIT, at=1)
    shutil.rmtree(run / "checkpoints")
    lines = (run / "recipe.toml").read_text().splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith("colour_axes")]
    assert len(kept) == len(lines) - 1
    (run / "recipe.toml").write_text("".join(kept))
    with pytest.raises(UserError, match="colour_axes"):
        train(photos, out=run, resume=True)


def test_a_lit_run_is_the_same_without_the_cache_and_another_one_without_the_light(
    lit: Run, photos: Path, tmp_path: Path
) -> None:
    again = train(photos, out=tmp_path / "again", **{**LIT, "cache_gib": 0.0, "workers": 3})
    assert losses(again.path) == losses(lit.path)
    dark = {**LIT, "augmentation": {**LIT["augmentation"], "lighting": 0.0}}
    assert losses(train(photos, out=tmp_path / "dark", **dark).path) != losses(lit.path)


def test_axes_that_were_given_are_kept(photos: Path, tmp_path: Path) -> None:
    axes = [0.1, 0.1, 0.1, 0.01, 0.0, -0.01, 0.0, 0.0, 0.0]
    fields = {**LIT, "epochs": 1, "augmentation": {**LIT["augmentation"], "colour_axes": axes}}
    run = train(photos, out=tmp_path / "run", **fields)
    assert load(run.path / "recipe.toml")["augmentation"]["colour_axes"] == axes


@pytest.mark.parametrize("cache_gib", [0.0, 0.1])
def test_train_resize_separates_the_sources_and_their_caches(photos: Path, cache_gib: float) -> None:
    manifest = scan(photos, purpose="train")
    splits = [manifest.split("train"), manifest.split("val")]
    wide, narrow = Preprocessing(16, 24), Preprocessing(16, 18)
    options: dict[str, Any] = {"cache_gib": cache_gib, "workers": 1, "observer": journal.ignore}
    sources, notes = pixels.open_sources(splits, [wide, narrow], **options)
    assert not notes
    assert [source.read(0).shape for source in sources] == [(24, 24, 3), (18, 18, 3)]
    assert all(isinstance(source, PixelCache) == (cache_gib > 0) for source in sources)
    alike, _ = pixels.open_sources(splits, [narrow, narrow], **options)
    assert [source.read(0).shape for source in alike] == [(18, 18, 3), (18, 18, 3)]
    for source, split, preprocessing in zip(sources, splits, (wide, narrow), strict=True):
        expected = Loader(pixels.Files(split, preprocessing), split, preprocessing, batch_size=64).sequential()
        found = Loader(source, split, preprocessing, batch_size=64).sequential()
        assert np.array_equal(next(iter(found)).pixels, next(iter(expected)).pixels)


def test_a_budget_too_small_for_both_caches_is_not_spent_on_one_that_clears_the_other(photos: Path) -> None:
    manifest = scan(photos, purpose="train")
    splits = [manifest.split("train"), manifest.split("val")]
    both = [Preprocessing(16, 24), Preprocessing(16, 18)]
    train_bytes, validation_bytes = (3 * len(split) * each.resize**2 for split, each in zip(splits, both, strict=True))

    def opened(budget: int) -> tuple[list[bool], int]:
        sources, notes = pixels.open_sources(
            splits, both, cache_gib=(budget + 8) / 2**30, workers=1, observer=journal.ignore
        )
        return [isinstance(source, PixelCache) for source in sources], len(notes)

    assert opened(train_bytes + validation_bytes // 2) == ([False, True], 1)
    for _ in range(2):
        assert opened(train_bytes + validation_bytes) == ([True, True], 0)
    folder = durable.cache_directory() / "pixels"
    assert sum(file.stat().st_size for file in folder.glob("*/pixels.bin")) == train_bytes + validation_bytes


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"augmentation": {"crop": "shorter-side", "shorter_side": [8, 16]}}, "shorter side is 8.*at least data"),
        ({"augmentation": {"crop": "shorter-side", "shorter_side": [16, 24]}}, "enlarged.*data.train_resize to 24"),
        ({"augmentation": {"lighting": 0.1, "colour_axes": [0.1]}}, "has 1 numbers.*need 9"),
        ({"augmentation": {"lighting": 0.1, "colour_axes": [0.1] * 9}, "channels": 1}, "has 9 numbers.*need 1"),
        ({"augmentation": {"lighting": 0.1, "colour_axes": [0.1] * 4}}, "colour_axes is"),
        ({"data": {"train_resize": 12}}, "data.train_resize is 12"),
    ],
)
def test_what_does_not_fit_together_is_refused_before_anything_is_written(
    photos: Path, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    if fields.get("channels") == 1:
        fields = {**fields, "data": {"mean": [0.4], "std": [0.2]}}
    with pytest.raises(UserError, match=f"(?s){message}"):
        train(photos, out=tmp_path / "run", **{**TINY, **fields})
    assert not (tmp_path / "run").exists()


def test_another_image_size_than_the_recipe_s_keeps_the_shares_of_all_crops(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(
        "[data]\nimage_size = 224\nresize = 256\ntrain_resize = 480\n"
        '[augmentation]\ncrop = "shorter-side"\nshorter_side = [256, 480]\n'
    )
    said = merge_said(file, {"image_size": 112})
    assert said["data"] == {"image_size": 112, "resize": 128, "train_resize": 240}
    assert said["augmentation"]["shorter_side"] == [128, 240]
    said = merge_said(
        file, {"image_size": 112, "data": {"train_resize": 300}, "augmentation": {"shorter_side": [120, 300]}}
    )
    assert said["data"] == {"image_size": 112, "resize": 128, "train_resize": 300}
    assert said["augmentation"]["shorter_side"] == [120, 300]
    assert merge_said(file, {})["augmentation"]["shorter_side"] == [256, 480]
