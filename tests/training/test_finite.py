"""A network whose numbers run away is not kept, and its user is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from making import TINY, write_colours
from resnext import train
from resnext.errors import UserError


def test_a_network_that_puts_out_no_numbers_is_not_kept(tmp_path: Path) -> None:
    photos = write_colours(tmp_path / "photos", 12, size=20)
    with pytest.raises(UserError, match="was not finite") as caught:
        train(photos, out=tmp_path / "run", **{**TINY, "learning_rate": 1e15, "epochs": 1, "batch_size": 64})
    assert "--learning-rate" in str(caught.value)
    assert not (tmp_path / "run" / "model").exists()
