"""Which images calibrate and prove an optimised form: disjoint, held-out ones first, never a test split's."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from making import COLOURS, write_colours
from resnext import bundle as bundles
from resnext.bundle import Bundle, Contents
from resnext.data.images import read_image
from resnext.data.manifest import scan
from resnext.data.preprocessing import Preprocessing
from resnext.errors import UserError
from resnext.inference import proof
from resnext.inference.proof import Images, gather

PREPROCESSING = Preprocessing(image_size=12, resize=14)


def written(
    place: Path,
    *,
    classes: tuple[str, ...] = tuple(COLOURS),
    data: Path | None = None,
    golden: int = 0,
) -> Bundle:
    """Write a run's bundle; with `data`, the run's manifest beside it."""
    weights = {"weight": np.zeros(1, np.float32)}
    contents = Contents("cifar_resnet8", {}, classes, PREPROCESSING)
    shape = (golden, 12, 12, 3)
    pixels = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    saved = (pixels, np.zeros((golden, len(classes)), np.float32)) if golden else None
    place.mkdir(parents=True, exist_ok=True)
    if data is not None:
        scan(data, seed=0, validation=0.3).write(place / "manifest.parquet")
    return bundles.write(place / "model", contents, weights, saved)


def paths(images: Images) -> tuple[set[Path], set[Path]]:
    first, second = images.calibration.paths, images.proof.paths
    assert len(set(first)) == len(first) == len(images.calibration)
    assert len(set(second)) == len(second) == len(images.proof)
    assert not set(first) & set(second)
    return set(first), set(second)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Want few images, so that few files do."""
    for name, value in {
        "CALIBRATION": 9,
        "CALIBRATION_LEAST": 3,
        "PROOF_LABELLED": 20,
        "PROOF_UNLABELLED": 15,
        "IMAGES_FOR_ACCURACY": 18,
        "IMAGES_FOR_AGREEMENT": 10,
        "BATCH": 4,
    }.items():
        monkeypatch.setattr(proof, name, value)


def test_what_is_wanted_suffices_for_the_gates() -> None:
    assert proof.PROOF_LABELLED > proof.IMAGES_FOR_ACCURACY == 2_000
    assert proof.PROOF_UNLABELLED > proof.IMAGES_FOR_AGREEMENT == 500


@pytest.mark.usefixtures("small")
def test_the_runs_own_images_training_for_calibration_and_held_out_for_proof(tmp_path: Path) -> None:
    data = write_colours(tmp_path / "photos", 25)
    bundle = written(tmp_path / "run", data=data)
    manifest = scan(data, seed=0, validation=0.3)
    split = {
        name: {manifest.split(name).path(i) for i in range(len(manifest.split(name)))} for name in ("train", "val")
    }
    images = gather(bundle, None)
    calibration, proving = paths(images)
    assert (len(calibration), len(proving)) == (9, 20)
    assert calibration <= split["train"]
    assert proving <= split["val"]
    assert Counter(path.parent.name for path in calibration) == dict.fromkeys(COLOURS, 3)
    assert images.labelled
    assert str(tmp_path / "run") in images.source
    assert images.notes == ()
    assert {precision: images.refusal(precision) for precision in ("fp32", "bf16", "int8")} == dict.fromkeys(
        ("fp32", "bf16", "int8")
    )


@pytest.mark.usefixtures("small")
def test_pixels_and_labels_come_by_the_straight_line_and_again_when_asked_again(tmp_path: Path) -> None:
    data = write_colours(tmp_path / "photos", 25, size=20)
    order = ("red", "blue", "green", "grey")  # a bundle's order is its own
    images = gather(written(tmp_path / "run", classes=order), data)
    for _ in range(2):
        pixels = np.concatenate([pixels for pixels, _ in images.proof])
        labels = np.concatenate([labels for _, labels in images.proof if labels is not None])
        assert pixels.dtype == np.uint8
        assert pixels.shape == (20, 12, 12, 3)
        assert [order[label] for label in labels] == [path.parent.name for path in images.proof.paths]
        for path, one in zip(images.proof.paths, pixels, strict=True):
            assert np.array_equal(one, PREPROCESSING.pixels(read_image(path, channels=3)))
        calibrating = list(images.calibration)
        assert sum(map(len, calibrating)) == 9
        assert max(map(len, calibrating)) <= 4


@pytest.mark.usefixtures("small")
def test_the_seed_decides(tmp_path: Path) -> None:
    data = write_colours(tmp_path / "photos", 25)
    bundle = written(tmp_path / "run", data=data)
    for calibration in (None, data):
        first, again, other = (gather(bundle, calibration, seed=seed) for seed in (3, 3, 4))
        assert first.calibration.paths == again.calibration.paths
        assert first.proof.paths == again.proof.paths
        assert paths(first) != paths(other)


@pytest.mark.usefixtures("small")
def test_no_image_of_a_test_split(tmp_path: Path) -> None:
    data = tmp_path / "photos"
    for number, name in enumerate(("train", "val", "test")):
        write_colours(data / name, 8, seed=number)
    bundle = written(tmp_path / "run")
    images = gather(bundle, data)
    calibration, proving = paths(images)
    assert {path.parent.parent.name for path in calibration} == {"train"}
    assert Counter(path.parent.parent.name for path in proving) == {"val": 20}
    shutil.rmtree(data / "train")
    for path in set.union(*paths(gather(bundle, data))):
        assert path.parent.parent.name == "val"
    flat = data / "test" / "red"
    (tmp_path / "photos.csv").write_text(f"path,label\n{flat / '1.png'},red\n{data / 'val' / 'red' / '1.png'},red\n")
    for test in (data / "test", flat, tmp_path / "photos.csv"):
        with pytest.raises(UserError, match="holds test images"):
            gather(bundle, test)
    shutil.rmtree(data / "val")
    with pytest.raises(UserError, match="holds test images"):
        gather(bundle, data)


@pytest.mark.usefixtures("small")
def test_a_csv_file_and_its_splits(tmp_path: Path) -> None:
    write_colours(tmp_path, 12)
    files = sorted(tmp_path.rglob("*.png"))

    def table(name: str, splits: list[str]) -> Path:
        with (tmp_path / name).open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["path", "label", "split"])
            rows.writerows([file, file.parent.name, splits[i % len(splits)]] for i, file in enumerate(files))
        return tmp_path / name

    bundle = written(tmp_path / "run")
    images = gather(bundle, table("photos.csv", ["train", "test", "val"]))
    calibration, proving = paths(images)
    assert not (calibration | proving) & set(files[1::3])
    assert set(files[2::3]) <= proving
    assert "training images" in images.notes[0]
    with pytest.raises(UserError, match="no training images"):
        gather(bundle, table("tests.csv", ["test"]))


@pytest.mark.usefixtures("small")
def test_training_images_fill_up_and_that_is_said(tmp_path: Path) -> None:
    data = write_colours(tmp_path / "photos", 15)  # 45 images, 12 of them held out by the run
    bundle = written(tmp_path / "run", data=data)
    manifest = scan(data, seed=0, validation=0.3)
    held_out = {manifest.split("val").path(i) for i in range(len(manifest.split("val")))}
    for calibration in (None, data):  # the run's images are known, however they are named
        images = gather(bundle, calibration)
        first, second = paths(images)
        assert not first & held_out
        assert held_out <= second
        assert images.notes == (
            f"{20 - len(held_out)} of 20 proof images are training images, for want of others: accuracy on them "
            "flatters both sides alike",
        )
        assert set(images.proof.paths[: len(held_out)]) == held_out


@pytest.mark.usefixtures("small")
def test_few_images_are_shared_and_that_is_said(tmp_path: Path) -> None:
    images = gather(written(tmp_path / "run"), write_colours(tmp_path / "photos", 4))
    assert (len(images.calibration), len(images.proof)) == (3, 9)
    assert [note.split(",")[0] for note in images.notes] == ["3 images for calibration", "9 images for proof"]
    images = gather(written(tmp_path / "run"), write_colours(tmp_path / "photos", 6))
    assert (len(images.calibration), len(images.proof)) == (4, 14)
    assert "14 labelled images for proof, fewer than the 18" in images.notes[1]
    images = gather(written(tmp_path / "run"), write_colours(tmp_path / "photos", 7))
    assert (len(images.calibration), len(images.proof)) == (3, 18)  # and not 5 and 16: the proof comes first
    images = gather(written(tmp_path / "run", classes=("blue", "green", "oak", "red")), tmp_path / "photos")
    assert "has no image of 'oak'" in images.notes[0]


@pytest.mark.usefixtures("small")
def test_a_folder_of_images_without_labels(tmp_path: Path) -> None:
    data = write_colours(tmp_path / "colours", 12)
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, file in enumerate(sorted(data.rglob("*.png"))):
        shutil.copy(file, flat / f"{number}.png")
    (flat / "notes.txt").write_text("no image")
    images = gather(written(tmp_path / "run"), flat)
    paths(images)
    assert not images.labelled
    assert (len(images.calibration), len(images.proof)) == (9, 15)
    assert [labels for _, labels in images.proof] == [None] * 4
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.csv").write_text("path,label\n")
    for empty in ("empty", "empty.csv"):
        with pytest.raises(UserError, match="holds no images"):
            gather(written(tmp_path / "run"), tmp_path / empty)


def test_images_of_other_classes_are_refused_with_both_names(tmp_path: Path) -> None:
    data = write_colours(tmp_path / "photos", 2)
    bundle = written(tmp_path / "run", classes=("gren", "oak", "yew"))
    with pytest.raises(UserError, match="images of 'blue', 'green', 'red', but") as refused:
        gather(bundle, data)
    assert "'gren', 'oak', 'yew'" in str(refused.value)
    assert len(str(refused.value).splitlines()) <= 3


def test_data_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        gather(written(tmp_path / "run"), tmp_path / "nowhere")


def test_images_that_were_moved_leave_the_golden_ones(tmp_path: Path) -> None:
    data = write_colours(tmp_path / "photos", 4)
    bundle = written(tmp_path / "run", data=data, golden=5)
    data.rename(tmp_path / "elsewhere")
    images = gather(bundle, None)
    assert (len(images.calibration), len(images.proof), images.labelled) == (0, 5, False)
    assert images.refusal("fp32") is None
    for precision in ("bf16", "int8"):
        refusal = images.refusal(precision) or ""
        assert f"are no longer in {data}" in refusal
        assert "--calibration DATA" in refusal
    ((pixels, labels),) = images.proof
    assert labels is None
    assert np.array_equal(pixels, bundle.read(bundles.GOLDEN)["pixels"])
    assert list(images.calibration) == []


def test_no_images_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--calibration DATA") as refused:
        gather(written(tmp_path / "run"), None)
    assert "no --calibration was given" in str(refused.value)


def test_the_manifest_of_another_run_does_not_serve(tmp_path: Path) -> None:
    data = write_colours(tmp_path / "photos", 4)
    bundle = written(tmp_path / "run", classes=("oak", "yew"), data=data, golden=2)
    assert "its classes are not the bundle's" in gather(bundle, None).lacking


@pytest.mark.usefixtures("small")
def test_files_that_cannot_be_read_are_left_out_counted_and_named(tmp_path: Path) -> None:
    data = write_colours(tmp_path / "photos", 12)
    for number, file in enumerate((data / "red").iterdir()):
        file.write_bytes(b"no image %d" % number)
    images = gather(written(tmp_path / "run"), data)
    assert images.notes == ()
    drawn = set.union(*paths(images))
    lost = {path for path in drawn if path.parent.name == "red"}
    assert len(lost) > 4
    assert sum(map(len, images.calibration)) + sum(len(pixels) for pixels, _ in images.proof) == len(drawn - lost)
    assert {Path(path) for path in images.calibration.unreadable | images.proof.unreadable} == lost
    (note,) = images.notes
    assert f"{len(lost)} of 29 images" in note
    assert str(images.calibration.paths[0].parent.parent / "red") in note


@pytest.mark.usefixtures("small")
def test_copies_of_calibration_images_prove_nothing(tmp_path: Path) -> None:
    data = write_colours(tmp_path / "photos", 5)
    for file in sorted(data.rglob("*.png")):
        shutil.copy(file, file.with_name(f"copy of {file.name}"))
    images = gather(written(tmp_path / "run"), data)
    first, second = paths(images)
    bytes_of_calibration = {path.read_bytes() for path in first}
    assert not bytes_of_calibration & {path.read_bytes() for path in second}
    assert any("copies" in note for note in images.notes)


def test_one_image_calibrates_nothing(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (20, 20)).save(tmp_path / "photos" / "one.png")
    images = gather(written(tmp_path / "run"), tmp_path / "photos")
    assert (len(images.calibration), len(images.proof)) == (0, 1)
    assert "a single image" in (images.refusal("int8") or "")
