"""Files that cannot be read: the run goes on without them, names them, and is resumed to the same bits all the same."""

from __future__ import annotations

import random
from pathlib import Path

from faults import runs, setups
from making import write_colours
from resnext.training import journal

SHARE = 0.01
CLASSES, IMAGES = 3, 100


def test_one_percent_of_unreadable_files(tmp_path: Path, generator: random.Random) -> None:
    photos = write_colours(tmp_path / "photos", IMAGES, size=12)
    files = sorted(photos.rglob("*.png"))
    poisoned = set(generator.sample(files, int(SHARE * CLASSES * IMAGES)))
    for file, damage in zip(sorted(poisoned), (b"", file_head(files[0]), b"no image at all"), strict=True):
        file.write_bytes(damage)
    bearing = {**setups.DATA, "max_unreadable": 0.05}  # of each split, in which the share may be larger than in all
    raw = {**setups.EVERYTHING, "epochs": 2, "batch_size": 32, "data": bearing}
    setup = setups.make("poisoned", tmp_path / "setup", photos, raw)
    whole = runs.uninterrupted(setup, tmp_path / "whole")
    assert runs.unreadable(whole.place) == {str(file) for file in poisoned}
    steps = [event for event in runs.account(whole.place) if event["event"] == "step"]
    start = next(journal.read(whole.place / "journal.jsonl"))
    trained = {event["path"] for event in journal.read(whole.place / "journal.jsonl") if event["event"] == "unreadable"}
    assert sum(event["images"] for event in steps) == 2 * (start["train_images"] - len(trained))
    trial = runs.killed_until_done(whole, tmp_path / "trial", generator)
    assert trial.finish() == []


def file_head(file: Path) -> bytes:
    return file.read_bytes()[:90]


# The guards of a step against NaN and Inf are tested in tests/training/test_divergence.py; a run that is killed while
# steps are being skipped belongs here.
