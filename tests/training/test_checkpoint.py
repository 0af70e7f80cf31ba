"""Checkpoints: whole or not at all, the newest whole one wins."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from resnext import durable
from resnext.training import checkpoint

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3)}


def test_round_trip_keeps_bits_and_state(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 5, TENSORS, {"epoch": 1})
    loaded = checkpoint.load_newest(tmp_path)
    assert loaded is not None
    tensors, state, skipped = loaded
    assert all(torch.equal(tensors[name], value) for name, value in TENSORS.items())
    assert (state, skipped) == ({"epoch": 1}, [])


def test_only_the_newest_two_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 10):
        checkpoint.save(tmp_path, step, TENSORS, {"step": step})
    assert [place.name for place in checkpoint.listed(tmp_path)] == ["step-2", "step-10"]


@pytest.mark.parametrize("file", [checkpoint.TENSORS, checkpoint.STATE, checkpoint.MANIFEST])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_checkpoint_is_passed_over_by_name(tmp_path: Path, file: str, damage: str) -> None:
    checkpoint.save(tmp_path, 1, TENSORS, {"step": 1})
    path = checkpoint.save(tmp_path, 2, TENSORS, {"step": 2}) / file
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 4
        path.write_bytes(bytes(data))
    elif damage == "truncate":
        path.write_bytes(bytes(data[:-3]))
    else:
        path.unlink()
    loaded = checkpoint.load_newest(tmp_path)
    assert loaded is not None
    _, state, skipped = loaded
    assert state == {"step": 1}
    assert len(skipped) == 1
    assert "step-2" in skipped[0]


def test_a_full_disk_leaves_the_last_good_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path, 1, TENSORS, {"step": 1})

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(durable, "sync_path", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path, 2, TENSORS, {"step": 2})
    monkeypatch.undo()
    loaded = checkpoint.load_newest(tmp_path)
    assert loaded is not None
    assert loaded[1] == {"step": 1}
    assert [place.name for place in tmp_path.iterdir()] == ["step-1"]


def test_what_does_not_read_back_as_it_was_written_takes_no_other_s_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that loses what it was given must not cost the state before."""
    for step in (1, 2):
        checkpoint.save(tmp_path, step, TENSORS, {"step": step})
    new_directory = durable.new_directory

    @contextmanager
    def forgetful(path: Path) -> Iterator[Path]:
        with new_directory(path) as beside:
            yield beside
        (path / "state.safetensors").write_bytes(b"")

    monkeypatch.setattr(checkpoint.durable, "new_directory", forgetful)
    for step in (3, 4):
        checkpoint.save(tmp_path, step, TENSORS, {"step": step})
    loaded = checkpoint.load_newest(tmp_path)
    assert loaded is not None
    assert loaded[1] == {"step": 2}
    assert len(loaded[2]) == 2
