"""A checkpoint says where it was computed, and a run that goes on elsewhere says what that means."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from making import TINY, write_colours
from resnext import durable
from resnext.errors import UserError
from resnext.training import checkpoint, environment
from resnext.training.plan import MANIFEST
from resnext.training.run import train
from resnext.training.stopping import Interrupted


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colours(tmp_path_factory.mktemp("photos"), 8)


@pytest.fixture
def stopped(photos: Path, tmp_path: Path) -> Path:
    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 3:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        train(photos, out=tmp_path / "run", observer=stop, **TINY)
    return tmp_path / "run"


def notes(photos: Path, run: Path) -> list[str]:
    events: list[dict[str, Any]] = []
    train(photos, out=run, resume=True, observer=events.append)
    told: list[str] = next(event["notes"] for event in events if event["event"] == "resume")
    return told


def change(run: Path, **changed: Any) -> None:
    """Change what the newest checkpoint says of the place where it was written."""
    newest = checkpoint.listed(run / "checkpoints")[-1]
    state = json.loads((newest / checkpoint.STATE).read_text())
    assert changed.keys() <= state["environment"].keys()
    state["environment"] |= changed
    (newest / checkpoint.STATE).write_text(json.dumps(state))
    hashes = {name: durable.sha256(newest / name) for name in (checkpoint.TENSORS, checkpoint.STATE)}
    (newest / checkpoint.MANIFEST).write_text(json.dumps(hashes))


def test_the_checkpoint_names_processor_torch_threads_and_processes(stopped: Path) -> None:
    loaded = checkpoint.load_newest(stopped / "checkpoints")
    assert loaded is not None
    place = loaded[1]["environment"]
    assert place["torch"].startswith(torch.__version__)
    assert place["threads"] == torch.get_num_threads()
    assert place["processes"] == 1
    assert place["processor"]


def test_on_the_same_place_nothing_is_said(photos: Path, stopped: Path) -> None:
    assert not [note for note in notes(photos, stopped) if "elsewhere" in note]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"threads": 64}, "number of torch's threads 64 there"),
        ({"torch": "2.10.0 (abc)"}, "torch build 2.10.0 (abc) there"),
        ({"processor": "Another", "flags_sha256": "0"}, "processor Another there"),
        ({"processes": 4}, "number of processes 4 there, 1 here"),
    ],
)
def test_a_difference_is_named_with_what_it_means(
    photos: Path, stopped: Path, changed: dict[str, Any], words: str
) -> None:
    change(stopped, **changed)
    (note,) = (note for note in notes(photos, stopped) if "elsewhere" in note)
    assert words in note
    assert "not bit for bit" in note
    assert ("Batch norm now sees other parts" in note) == ("processes" in changed)


def test_checkpoints_of_versions_that_recorded_nothing_say_nothing() -> None:
    assert environment.differences(None, environment.describe(torch.device("cpu"), 1)) is None


def test_a_label_that_is_no_class_is_refused_by_its_image(photos: Path, stopped: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(stopped / MANIFEST)
    labels = table["label"].to_pylist()
    row = table["split"].to_pylist().index("train")
    labels[row] = 3
    wrong = table.set_column(table.schema.get_field_index("label"), "label", pa.array(labels, pa.int32()))
    pq.write_table(wrong, stopped / MANIFEST)
    with pytest.raises(UserError, match=r"has the label 3, but there are 3 classes") as caught:
        train(photos, out=stopped, resume=True)
    assert table["path"].to_pylist()[row] in str(caught.value)
