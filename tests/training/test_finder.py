"""The learning rate finder: where it looks, what it suggests, what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from making import TINY, write_colours
from resnext.cli import run
from resnext.errors import UserError
from resnext.training import finder
from resnext.training.plan import Wish, plan


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colours(tmp_path_factory.mktemp("photos"), 24)


def test_the_suggestion_trains_and_nothing_of_the_trial_is_left(photos: Path, tmp_path: Path) -> None:
    fields = {key: value for key, value in TINY.items() if key != "learning_rate"}
    planned = plan(photos, wish=Wish(tmp_path / "run"), recipe=None, fields=fields)
    found = finder.find(planned, lambda event: None)
    assert found.rates[0] == 1e-6
    assert np.allclose(np.diff(np.log(found.rates)), np.log(1e7) / 149)
    assert min(found.losses) < 0.8 * found.losses[0]  # it learned on the way
    assert 1e-4 < found.suggestion < 5
    assert found.suggestion <= found.rates[int(np.argmin(found.losses))]
    assert not (tmp_path / "run").exists()
    again = finder.find(planned, lambda event: None)
    assert again == found


def test_the_steepest_place_of_a_curve_is_found() -> None:
    rates = list(np.geomspace(1e-4, 1, 41))
    losses = [2 - 1.5 / (1 + np.exp(-(number - 20))) + max(0, number - 30) for number in range(41)]
    assert finder._steepest(rates, losses) == pytest.approx(rates[20], rel=0.02)
    with pytest.raises(UserError, match="fell at no rate"):
        finder._steepest(rates, list(np.linspace(1, 2, 41)))


def test_the_command_writes_the_curve_and_its_picture(
    photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in TINY.items() if key != "resize"]
    out = tmp_path / "run"
    code = run(["train", str(photos), f"--out={out}", *flags, "--find-learning-rate", "--json"])
    told = json.loads(capfd.readouterr().out)
    assert code == 0
    curve, picture = map(Path, told["files"])
    assert curve.parent == picture.parent == tmp_path / "run-learning-rate"
    assert json.loads(curve.read_text())["suggestion"] == told["learning_rate"]
    with Image.open(picture) as image:
        assert image.size == (840, 540)
    assert not out.exists()
    assert run(["train", str(photos), f"--out={out}", "--resume", "--find-learning-rate"]) == 2
    assert "trains nothing" in capfd.readouterr().err
