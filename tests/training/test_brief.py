"""Before a run begins, it says what is wrong with its data."""

from __future__ import annotations

from pathlib import Path

from making import TINY, write_colours
from resnext.training.plan import Wish, plan


def test_a_plan_says_what_the_doctor_says_in_short(tmp_path: Path) -> None:
    data = write_colours(tmp_path / "photos", 24)
    for file in sorted((data / "red").iterdir())[4:]:
        file.unlink()
    notes = plan(data, wish=Wish(tmp_path / "run"), recipe=None, fields=dict(TINY)).notes
    assert any("has 7.3 times the images of the smallest, 'red'" in note for note in notes)
    assert any("1 of 3 classes have fewer than 20 training images" in note for note in notes)
    assert any(note.startswith("validation:") for note in notes)
    assert not any("Leak" in note for note in notes)
