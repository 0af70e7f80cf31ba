"""Vectors of images: what they are, and the file that they are written to."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import resnext
from making import TINY, write_colours
from resnext.cli import run
from resnext.training.run import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embed")
    train(write_colours(folder / "photos", 16), out=folder / "run", **{**TINY, "epochs": 2})
    write_colours(folder / "new", 5, seed=4)
    return folder


def test_a_vector_is_what_the_classifier_gets(trained: Path) -> None:
    classifier = resnext.load(trained / "run")
    paths = sorted((trained / "new").rglob("*.png"))
    vectors = classifier.embed(list(paths))
    assert vectors.shape == (15, 64)
    assert vectors.dtype == np.float32
    fc = classifier.network.get_submodule("head.fc")
    with torch.inference_mode():
        logits = fc(torch.from_numpy(vectors)).numpy()
    labels = [prediction.label for prediction in classifier(list(paths))]
    assert [classifier.classes[index] for index in logits.argmax(1)] == labels
    assert np.array_equal(classifier.embed(paths[3]), classifier.embed([paths[3]])[0])


def test_vectors_of_one_colour_point_the_same_way(trained: Path) -> None:
    classifier = resnext.load(trained / "run")
    paths = sorted((trained / "new").rglob("*.png"))
    vectors = classifier.embed(list(paths))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    alike = vectors @ vectors.T - 2 * np.eye(len(vectors))
    assert all(paths[nearest].parent == path.parent for path, nearest in zip(paths, alike.argmax(1), strict=True))


def test_the_command_writes_a_row_an_image(trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (trained / "new" / "broken.png").write_bytes(b"no image")
    out = tmp_path / "vectors.parquet"
    code = run(["embed", str(trained / "run"), str(trained / "new"), "--out", str(out), "--json"])
    captured = capfd.readouterr()
    (trained / "new" / "broken.png").unlink()
    assert code == 0
    told = json.loads(captured.out)
    assert (told["images"], told["width"]) == (15, 64)
    assert [each["path"] for each in told["unreadable"]] == [str(trained / "new" / "broken.png")]
    assert "broken.png" in captured.err
    table = pq.read_table(out)
    assert table.column_names == ["path", "vector"]
    classifier = resnext.load(trained / "run")
    rows = table.to_pylist()
    assert [row["path"] for row in rows] == sorted(row["path"] for row in rows)
    for row in rows:
        np.testing.assert_allclose(row["vector"], classifier.embed(row["path"]), rtol=0, atol=1e-5)
    assert table.schema.metadata[b"identity"].decode() == classifier.bundle.identity


def test_mistakes_leave_nothing(trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    for paths, out, message in (
        ([str(bad)], tmp_path / "v.parquet", "Not one of 1 images could be read"),
        ([str(trained / "new")], tmp_path / "no" / "v.parquet", "cannot be written"),
        ([str(tmp_path / "empty")], tmp_path / "v.parquet", "Not one of 1 images"),
    ):
        assert run(["embed", str(trained / "run"), *paths, "--out", str(out)]) == 2
        assert message in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["bad.png"]
