"""One straight line: the same image gives the same label whichever way it comes in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import resnext
from making import TINY, write_colours
from resnext.errors import ImageError
from resnext.evaluation.views import DenseEngine
from resnext.inference import evaluation
from resnext.inference.classifier import Classifier, Prediction, Unreadable
from resnext.inference.files import load, predict_files
from resnext.training.run import train

SMALL = {**TINY, "epochs": 1, "image_size": 24, "resize": 28}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inference")
    return train(write_colours(folder / "photos", 12, size=40), out=folder / "run", **SMALL).path


@pytest.fixture(scope="module")
def classifier(run: Path) -> Classifier:
    return resnext.load(run)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    pixels = np.random.default_rng(3).integers(0, 256, (50, 60, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_path_text_bytes_picture_and_array_are_the_same_image(classifier: Classifier, photo: Path) -> None:
    picture = Image.open(photo)
    forms = [photo, str(photo), photo.read_bytes(), picture, np.asarray(picture)]
    first, *others = [classifier(form) for form in forms]
    assert [other.ranked for other in others] == [first.ranked] * 4
    assert first.path == str(photo)
    assert {label for label, _ in first.ranked} == {"blue", "green", "red"}
    assert classifier(photo, top=1).ranked == first.ranked[:1]


def test_a_list_gives_a_list_and_agrees_with_single_calls(classifier: Classifier, photo: Path) -> None:
    assert classifier([]) == []
    together = classifier([photo, photo, photo])
    assert isinstance(together, list)
    for prediction in together:
        assert prediction.probability == pytest.approx(classifier(photo).probability, abs=1e-5)


def test_other_modes_are_converted(classifier: Classifier, photo: Path) -> None:
    grey = Image.open(photo).convert("L")
    as_rgb = grey.convert("RGB")
    assert classifier(grey).ranked == classifier(as_rgb).ranked
    assert classifier(np.asarray(grey)).ranked == classifier(as_rgb).ranked


def test_a_picture_in_memory_is_read_as_its_file_is(classifier: Classifier, tmp_path: Path) -> None:
    pixels = np.random.default_rng(4).integers(0, 256, (40, 60, 4), np.uint8)
    turned = Image.Exif()
    turned[274] = 6
    Image.fromarray(pixels[..., :3]).save(tmp_path / "turned.jpg", exif=turned)
    Image.fromarray(pixels).save(tmp_path / "alpha.png")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    for file in sorted(tmp_path.iterdir()):
        with Image.open(file) as picture:
            assert classifier(picture).ranked == classifier(file).ranked, file


def test_arrays_that_are_no_images_are_refused(classifier: Classifier) -> None:
    for array in (np.zeros((8, 8, 3)), np.zeros((8, 8, 2), np.uint8), np.zeros((2, 8, 8, 3), np.uint8)):
        with pytest.raises(resnext.UserError, match="is no image"):
            classifier(array)


def test_evaluation_says_when_the_images_were_trained_on(run: Path, tmp_path: Path) -> None:
    assert any("36 of these 36 images" in note for note in resnext.evaluate(run, run.parent / "photos").notes)
    assert resnext.evaluate(run, write_colours(tmp_path / "new", 2)).notes == ()


def test_unreadable_bytes_are_an_image_error(classifier: Classifier) -> None:
    with pytest.raises(ImageError):
        classifier(b"no image")
    with pytest.raises(ImageError, match=r"nowhere\.png"):
        classifier("nowhere.png")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_predict_gives_the_labels_and_probabilities_that_evaluate_counted(
    run: Path, tmp_path: Path, precision: str
) -> None:
    test = write_colours(tmp_path / "test", 37, size=33, seed=7)
    scores = resnext.evaluate(run, test, precision=precision)
    assert scores.images == 111
    counted = {
        path: (scores.classes[label], share)
        for path, label, share in zip(scores.paths, scores.predicted, scores.probability, strict=True)
    }
    classifier = load(run, precision=precision)
    predicted = list(predict_files(classifier, [test]))
    assert len(predicted) == 111
    # Other batch mates and another batch size must not matter in fp32; in bf16 sizes have their own rounding.
    some = sorted(counted, key=lambda path: path[::-1])[:45]
    others = predict_files(classifier, some) if precision == "fp32" else []
    for each in [*predicted, *others]:
        assert isinstance(each, Prediction)
        label, share = counted[str(each.path)]
        assert each.label == label
        assert each.probability == pytest.approx(share, abs=1e-5)
        assert dict(each.ranked).keys() == set(scores.classes)


def test_dense_evaluation_runs_in_the_precision_asked_for(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test = write_colours(tmp_path / "test", 3, size=33, seed=7)
    engines: list[DenseEngine] = []

    class Noted(DenseEngine):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            engines.append(self)

    monkeypatch.setattr(evaluation, "DenseEngine", Noted)
    exact, rounded = (resnext.evaluate(run, test, scales=[24, 32], precision=name) for name in ("fp32", "bf16"))
    assert [engine.engine.precision for engine in engines] == ["fp32", "bf16"]
    assert not np.array_equal(rounded.losses, exact.losses)
    np.testing.assert_allclose(rounded.losses, exact.losses, rtol=0.1, atol=0.05)


def test_evaluation_names_what_it_left_out(run: Path, tmp_path: Path) -> None:
    test = write_colours(tmp_path / "test", 4)
    (test / "red" / "bad.jpg").write_bytes(b"\xff\xd8\xff broken")
    with pytest.raises(resnext.UserError, match="--max-unreadable"):
        resnext.evaluate(run, test)
    scores = resnext.evaluate(run, test, max_unreadable=0.5)
    assert scores.images == 12
    assert [Path(path).name for path, _ in scores.skipped] == ["bad.jpg"]
    assert scores.to_dict()["skipped"][0]["error"]


def test_labels_are_matched_by_name_when_a_class_is_missing(run: Path, tmp_path: Path) -> None:
    test = write_colours(tmp_path / "test", 6)
    for file in (test / "blue").iterdir():
        file.unlink()
    (test / "blue").rmdir()
    scores = resnext.evaluate(run, test)
    assert scores.per_class()["blue"]["images"] == 0
    assert scores.per_class()["red"]["images"] == 6
    whole = resnext.evaluate(run, write_colours(tmp_path / "whole", 6))
    assert whole.per_class()["red"] == scores.per_class()["red"]


def test_folders_are_walked_in_natural_order_without_hidden_files(
    classifier: Classifier, photo: Path, tmp_path: Path
) -> None:
    for name in ("b/10.png", "b/9.png", "a.png", ".hidden/x.png", "b/.y.png", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(photo.read_bytes())
    found = [each.path for each in predict_files(classifier, [tmp_path])]
    assert found == [str(tmp_path / name) for name in ("a.png", "b/9.png", "b/10.png")]


def test_an_unreadable_file_keeps_its_place(classifier: Classifier, photo: Path, tmp_path: Path) -> None:
    files = []
    for number in range(70):  # more than two batches
        file = tmp_path / f"{number}.png"
        file.write_bytes(b"broken" if number in (0, 31, 32, 33, 69) else photo.read_bytes())
        files.append(file)
    results = list(predict_files(classifier, files))
    assert [each.path for each in results] == [str(file) for file in files]
    assert [n for n, each in enumerate(results) if isinstance(each, Unreadable)] == [0, 31, 32, 33, 69]


def test_preprocessing_is_the_bundle_s(classifier: Classifier, photo: Path) -> None:
    with Image.open(photo) as picture:
        shorter = picture.resize((34, 28), Image.Resampling.BILINEAR)  # 60×50 → shorter side 28
    cropped = np.asarray(shorter)[2:26, 5:29]
    expected = classifier.engine(cropped[None].copy())
    ours = classifier.engine(classifier.preprocessing.pixels(Image.open(photo))[None])
    np.testing.assert_array_equal(ours, expected)
