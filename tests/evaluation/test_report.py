"""The page of an evaluation: whole, true, readable at 2 to 1,000 classes; slices, comparison, calibration in use."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import resnext
from browser import PHONE, browsing, visit
from making import TINY, write_colours
from resnext import catalog
from resnext.bundle import Bundle
from resnext.cli import run
from resnext.data.preprocessing import Preprocessing
from resnext.evaluation import calibration, metrics, report
from resnext.evaluation.metrics import Scores
from resnext.evaluation.report import Evaluated
from resnext.layers import Network
from resnext.training import validation


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images under classes and sites, with a CSV of them."""
    folder = write_colours(tmp_path_factory.mktemp("data") / "photos", 30)
    rows = ["path,label,split,site"]
    for path in sorted(folder.rglob("*.png")):
        number = int(path.stem)
        split = "test" if number < 10 else "train"
        rows.append(
            f"photos/{path.parent.name}/{path.name},{path.parent.name},{split},{'north' if number % 2 else 'south'}"
        )
    (folder.parent / "images.csv").write_text("\n".join(rows) + "\n")
    return folder.parent / "images.csv"


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("runs") / "run"
    words = {**TINY, "epochs": 1, "learning_rate": 0.01}
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in words.items() if key != "resize"]
    assert run(["train", str(data), "--out", str(place), *flags]) == 0
    return place


def test_training_writes_the_page_of_its_run(trained: Path) -> None:
    page = (trained / "report" / "index.html").read_text()
    assert_self_contained(page)
    for words in ("Learning", "The images", "What is taken for what", "recipe.toml", "What it is least sure of"):
        assert words in page
    told = json.loads((trained / "report" / "measures.json").read_text())
    scores = Bundle.open(trained).contents.results
    assert (told["images"], told["top1"]) == (scores["images"], scores["top1"])
    table = pq.read_table(trained / "report" / "predictions.parquet").to_pylist()
    assert len(table) == told["images"]
    assert np.mean([row["right"] for row in table]) == pytest.approx(told["top1"])


def assert_self_contained(page: str) -> None:
    addresses = re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?([^\"')\s>]+)", page)
    assert all(each.startswith(("data:", "#")) for each in addresses), addresses[:3]
    assert "<script" not in page
    assert len(page) < 10_000_000
    assert all(re.search(r'alt="[^"]+"', tag) for tag in re.findall(r"<img[^>]*>", page))


def test_evaluate_reports_slices_and_compares(
    trained: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line = ["evaluate", str(trained), str(data), "--slice-by", "site", "--against", str(trained)]
    assert run([*line, "--report", str(tmp_path / "page"), "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    plain = resnext.evaluate(trained, data)
    assert (told["images"], told["top1"]) == (30, plain.top1)
    slices = {each["name"]: each for each in told["slices"]}
    assert slices.keys() == {"north", "south"}
    right = {name: [] for name in slices}  # type: ignore[var-annotated]
    for path, place in zip(plain.paths, plain.place, strict=True):
        right["north" if int(Path(path).stem) % 2 else "south"].append(place == 0)
    assert all(slices[name]["top1"] == pytest.approx(np.mean(hits)) for name, hits in right.items())
    assert told["against"]["p_value"] is None
    assert told["against"]["agree"] == 1
    page = Path(told["report"][0]).read_text()
    assert "Slices, the weakest first" in page
    assert run(line) == 0
    out = capfd.readouterr().out
    assert "both have the same images right" in out
    assert "north" in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--slice-by", "sight"], "has no such column. Did you mean 'site'"),
        (["--slice-by", "3"], "folders deep"),
        (["--slice-by", "site", "--crops", "10"], "Leave out --crops"),
        (["--against", "nowhere"], "There is no nowhere"),
    ],
)
def test_what_cannot_be_examined_is_said(
    trained: Path, data: Path, capfd: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert run(["evaluate", str(trained), str(data), *flags]) == 2
    err = capfd.readouterr().err
    assert message in err
    assert len(err.strip().splitlines()) <= 3


def test_folders_are_slices_too(trained: Path, data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", str(trained), str(data.parent / "photos"), "--slice-by", "1", "--json"]) == 0
    assert {each["name"] for each in json.loads(capfd.readouterr().out)["slices"]} == {"blue", "green", "red"}


def made(classes: int, images: int, folder: Path) -> Evaluated:
    """An evaluation of so many classes with about a quarter of mistakes."""
    generator = np.random.default_rng(classes)
    labels = np.arange(images) % classes
    logits = generator.normal(0, 1, (images, classes)).astype(np.float32)
    logits[np.arange(images), labels] += np.float32(np.sqrt(2 * np.log(classes)) + 0.7)
    path = folder / "one.png"
    Image.fromarray(generator.integers(0, 256, (40, 40, 3), np.uint8)).save(path)
    _, predicted, probability, place, losses = metrics.score_batch(logits, labels)
    scores = Scores(
        classes=tuple(f"class number {index} <b>" for index in range(classes)),
        paths=(str(path),) * images,
        labels=labels,
        predicted=predicted,
        probability=probability,
        place=place,
        losses=losses,
        logits=logits,
    )
    torch.manual_seed(0)
    network = catalog.create("cifar_resnet8", num_classes=classes).eval()
    assert isinstance(network, Network)
    return Evaluated("A title", "images", scores, network, Preprocessing(32, 32), 1.3, "others")


@pytest.mark.parametrize("classes", [2, 10, 100, 1000])
def test_a_page_serves_any_number_of_classes(classes: int, tmp_path: Path) -> None:
    evaluated = made(classes, 2_000, tmp_path)
    files = report.write(evaluated, tmp_path / "page")
    page = files[0].read_text()
    assert_self_contained(page)
    assert "<b>" not in page
    assert ("too many to draw" in page) == (classes > 100)
    assert "class number 1 " in page
    pictures = re.findall(r"data:image/jpeg;base64,([^\"]+)", page)
    assert len(pictures) >= 24
    with Image.open(io.BytesIO(base64.b64decode(pictures[0]))) as picture:
        assert picture.size == (160, 160)
    told = json.loads(files[1].read_text())
    assert told["expected_calibration_error"] != told["expected_calibration_error_before"]


def test_a_page_can_be_read_anywhere_and_asks_for_nothing(tmp_path: Path, trained: Path) -> None:
    file = report.write(made(10, 2_000, tmp_path), tmp_path / "page")[0]
    with browsing() as browser:
        for page in (file, trained / "report" / "index.html"):
            seen = [visit(browser, page, width=width, dark=dark) for width, dark in ((1200, False), (PHONE, True))]
            for each in seen:
                assert each.errors == []
                assert all(url.startswith(("file:", "data:")) for url in each.requests)
                assert each.requests[0] == page.resolve().as_uri()
                assert not [url for url in each.requests[1:] if url.startswith("file:")]
                assert each.overflow <= 0
            assert seen[0].background != seen[1].background


def scores_with(logits: np.ndarray, labels: np.ndarray) -> Scores:
    columns = dict(
        zip(("labels", "predicted", "probability", "place", "losses"), metrics.score_batch(logits, labels), strict=True)
    )
    names = tuple(str(index) for index in range(logits.shape[1]))
    return Scores(classes=names, paths=("x",) * len(labels), logits=logits, **columns)


def test_too_few_images_or_mistakes_are_not_calibrated_on() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 400)
    logits = 5 * generator.normal(0, 1, (400, 3)).astype(np.float32)
    logits[np.arange(400), labels] += 5
    told = validation.calibrated(scores_with(logits, labels))
    assert told["temperature"] > 1.5
    assert {"0.8", "0.9"} <= told["thresholds"].keys()
    assert validation.calibrated(scores_with(logits[:90], labels[:90])) == {}
    perfect = 9 * np.eye(3, dtype=np.float32)[labels]
    assert validation.calibrated(scores_with(perfect, labels)) == {}


def test_predictions_are_calibrated_and_may_abstain(
    trained: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from dataclasses import replace

    from resnext import bundle

    opened = Bundle.open(trained)
    fitted: dict[str, Any] = {
        "temperature": 2.5,
        "thresholds": {"0.9": {"threshold": 0.4, "coverage": 0.5, "precision": 0.91}},
        "data": "the validation images of its run",
    }
    bundle.write(
        tmp_path / "calibrated", replace(opened.contents, calibration=fitted), opened.read("model.safetensors")
    )
    photos = [str(path) for path in sorted((data.parent / "photos" / "red").iterdir())[:6]]
    assert run(["predict", str(trained), *photos, "--engine", "torch", "--json"]) == 0
    before = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    line = ["predict", str(tmp_path / "calibrated"), *photos, "--wanted-precision", "0.9", "--engine", "torch"]
    assert run([*line, "--json"]) == 0
    out, err = capfd.readouterr()
    after = [json.loads(row) for row in out.splitlines()]
    assert "Probabilities are calibrated: temperature 2.50" in err
    for cold, warm in zip(before, after, strict=True):
        assert [each["label"] for each in cold["ranked"]] == [each["label"] for each in warm["ranked"]]
        shares = np.array([each["probability"] for each in cold["ranked"]])
        expected = calibration.softmax(np.log(shares)[None], 2.5)[0]
        assert [each["probability"] for each in warm["ranked"]] == pytest.approx(expected, rel=1e-4)
        assert warm["abstained"] == (warm["probability"] < 0.4)
        assert "abstained" not in cold
    assert Bundle.open(tmp_path / "calibrated").identity == opened.identity
    assert run([*line[:-4], "--wanted-precision", "0.7"]) == 2
    assert "has no threshold for a precision of 0.7. It has 0.9." in capfd.readouterr().err


def test_a_damaged_temperature_is_refused(trained: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from resnext import bundle

    opened = Bundle.open(trained)
    contents = replace(opened.contents, calibration={"temperature": -1})
    with pytest.raises(resnext.UserError, match="is damaged"):
        bundle.write(tmp_path / "broken", contents, opened.read("model.safetensors"))
