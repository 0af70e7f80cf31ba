"""The straight line on real photographs: a thousand of CIFAR-10's."""

from __future__ import annotations

from pathlib import Path

import pytest

import resnext
from resnext.data.manifest import scan
from resnext.inference.classifier import Prediction
from resnext.inference.files import load, predict_files
from resnext.training.run import train


def test_it_learns_and_predict_counts_what_evaluate_counts(cifar10: Path, tmp_path: Path) -> None:
    fields = {"network": "cifar_resnet8", "epochs": 8, "batch_size": 32, "learning_rate": 0.05, "image_size": 32}
    run = train(cifar10, out=tmp_path / "run", **fields)
    assert len(scan(cifar10).split("test")) == 0  # never listed in training
    scores = resnext.evaluate(run.path, cifar10)
    assert scores.images == 200
    assert scores.top1 > 0.2  # chance is 0.1; 0.35 is usual
    predicted = predict_files(load(run.path), [cifar10 / "test"])
    correct = [each.label == Path(str(each.path)).parent.name for each in predicted if isinstance(each, Prediction)]
    assert len(correct) == 200
    assert sum(correct) / 200 == pytest.approx(scores.top1)
