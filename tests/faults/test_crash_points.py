"""A process that dies, or a machine that loses its power, between any two steps of a save loses nothing that was good.

The points are not listed here: a save is done once, and wherever it passes a crash point, or is about to change a
directory, what a killed process would leave is looked at, and what a disk without power might.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from faults.disk import Disk
from resnext import bundle, durable
from resnext.bundle import Bundle
from resnext.data.preprocessing import Preprocessing
from resnext.errors import UserError
from resnext.training import checkpoint
from resnext.training.journal import Journal, read

VIEWS = 8
"""Power losses that are imagined at each point."""

CHANGES = ("mkdir", "rename", "replace", "rmdir", "unlink")
"""What changes a directory; at each call a process may be killed just before it."""


@dataclass
class Saving:
    """What is left of `root` at every step of what is done there, as `look` sees it."""

    root: Path
    scratch: Path
    look: Callable[[Path], Any]
    seed: int = 0
    seen: list[tuple[str, str, Any]] = field(default_factory=list)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look at every point within this block, and once more at its end, under the name "end"."""
        disk, changing = Disk(self.root), [False]
        generator = random.Random(self.seed)

        def look(name: str) -> None:
            changing[0] = True  # what looking does itself is not looked at
            shutil.copytree(self.root, self.scratch / "killed")
            self._note(name, "killed", self.scratch / "killed")
            for _ in range(VIEWS):
                disk.after_power_loss(self.scratch / "cut", generator)
                self._note(name, "cut off", self.scratch / "cut")
            changing[0] = False

        def before(name: str, change: Callable[..., Any]) -> Callable[..., Any]:
            def changed(*arguments: Any, **more: Any) -> Any:
                if not changing[0]:
                    look(f"before {name}")
                return change(*arguments, **more)

            return changed

        with ExitStack() as stack:
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            stack.enter_context(disk.watched())
            stack.callback(disk.close)
            patch.setattr(durable, "crash_point", look)
            for name in CHANGES:
                patch.setattr(os, name, before(name, getattr(os, name)))
            yield
            look("end")

    def _note(self, point: str, how: str, left: Path) -> None:
        self.seen.append((point, how, self.look(left)))
        shutil.rmtree(left)

    def points(self) -> set[str]:
        """Return the names of the points that were passed."""
        return {point for point, _, _ in self.seen}

    def assert_never_neither(self, old: Any, new: Any) -> None:
        """Assert that at every point the old or the new is there, and at the end the new one."""
        for point, how, found in self.seen:
            expected = (new,) if point == "end" else (old, new)
            assert found in expected, f"{how} at {point} (seed {self.seed}): {found}"


def state(step: int) -> dict[str, torch.Tensor]:
    return {"a": torch.full((40, 30), float(step)), "b": torch.tensor(step)}


def newest(root: Path) -> Any:
    """Return the step of what is loaded, once its tensors were found to be those of that step; None: there is none."""
    try:
        loaded = checkpoint.load_newest(root / "checkpoints")
    except UserError as error:
        return str(error)
    if loaded is None:
        return None
    tensors, told, _ = loaded
    assert all(torch.equal(tensors[name], value) for name, value in state(told["value"]).items())
    return told["value"]


def save(root: Path, step: int, value: int | None = None) -> None:
    value = step if value is None else value
    checkpoint.save(root / "checkpoints", step, state(value), {"value": value})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


IN_A_SAVE = {
    "directory-cleared",
    "directory-made",
    "checkpoint-tensors",
    "checkpoint-state",
    "checkpoint-manifest",
    "directory-filled",
    "directory-file-synced",
    "directory-synced",
    "directory-in-place",
    "directory-settled",
    "directory-old-gone",
}


def test_the_first_checkpoint_is_there_or_not(root: Path, tmp_path: Path) -> None:
    saving = Saving(root, tmp_path, newest)
    with saving.watched():
        save(root, 1)
    assert saving.points() >= IN_A_SAVE
    saving.assert_never_neither(None, 1)


def test_a_later_checkpoint_leaves_the_one_before_until_it_is_there(root: Path, tmp_path: Path) -> None:
    for step in (1, 2):
        save(root, step)
    saving = Saving(root, tmp_path, newest)
    with saving.watched():
        save(root, 3)
    assert saving.points() >= IN_A_SAVE | {"checkpoint-verified", "checkpoint-rotated", "before unlink"}
    saving.assert_never_neither(2, 3)
    assert {found for _, _, found in saving.seen} == {2, 3}


def test_what_a_killed_save_left_is_cleared_without_loss(root: Path, tmp_path: Path) -> None:
    for step in (1, 2):
        save(root, step)
    shutil.copytree(root / "checkpoints" / "step-2", root / "checkpoints" / "step-3.new")
    saving = Saving(root, tmp_path, newest)
    with saving.watched():
        save(root, 3)
    saving.assert_never_neither(2, 3)
    assert not list((root / "checkpoints").glob("*.new"))


def test_a_checkpoint_of_a_step_that_has_one_takes_its_place(root: Path, tmp_path: Path) -> None:
    save(root, 1, value=1)
    saving = Saving(root, tmp_path, newest)
    with saving.watched():
        save(root, 1, value=2)
    assert "directory-old-aside" in saving.points()
    saving.assert_never_neither(1, 2)


def contents() -> bundle.Contents:
    preprocessing = Preprocessing(image_size=16, resize=16)
    return bundle.Contents("cifar_resnet8", {}, ("a", "b"), preprocessing)


def write_bundle(root: Path, value: float) -> str:
    golden = np.zeros((1, 16, 16, 3), np.uint8), np.full((1, 2), value, np.float32)
    return bundle.write(root / "model", contents(), {"w": np.full(500, value, np.float32)}, golden).identity


def identity(root: Path) -> Any:
    """Return the identity of the bundle that is found, once every file of it was hashed."""
    try:
        opened = Bundle.open(root)
    except UserError as error:
        return str(error)
    return opened.identity if opened.verify() == [] else opened.verify()


def test_a_bundle_that_is_replaced_is_the_old_one_or_the_new_one(root: Path, tmp_path: Path) -> None:
    old = write_bundle(root, 1.0)
    saving = Saving(root, tmp_path, identity)
    with saving.watched():
        new = write_bundle(root, 2.0)
    assert saving.points() >= {"directory-old-aside", "directory-in-place", "directory-settled", "directory-old-gone"}
    saving.assert_never_neither(old, new)


def test_a_bundle_is_replaced_after_a_crash_between_its_two_renames(root: Path, tmp_path: Path) -> None:
    old = write_bundle(root, 1.0)
    (root / "model").rename(root / "model.old")
    durable.sync_path(root)
    saving = Saving(root, tmp_path, identity)
    with saving.watched():
        new = write_bundle(root, 2.0)
    assert "directory-old-back" in saving.points()
    saving.assert_never_neither(old, new)


def test_a_file_that_is_replaced_is_the_old_one_or_the_new_one(root: Path, tmp_path: Path) -> None:
    def text(left: Path) -> Any:
        with suppress(FileNotFoundError):
            return (left / "recipe.toml").read_text()
        return None

    durable.write_text(root / "recipe.toml", "old" * 1000)
    saving = Saving(root, tmp_path, text)
    with saving.watched():
        durable.write_text(root / "recipe.toml", "new" * 2000)
    assert saving.points() >= {"bytes-written", "bytes-synced", "bytes-in-place", "bytes-settled"}
    saving.assert_never_neither("old" * 1000, "new" * 2000)


def test_a_synced_journal_keeps_what_was_told_until_then(root: Path, tmp_path: Path) -> None:
    def steps(left: Path) -> Any:
        path = left / "journal.jsonl"
        return [event["step"] for event in read(path)] if path.exists() else None

    saving = Saving(root, tmp_path, steps)
    with saving.watched():
        written = Journal(root / "journal.jsonl")
        for step in range(3):
            written({"event": "step", "step": step})
        written.sync()
    assert {point for point, _, _ in saving.seen} == {"end"}
    with written:
        saving.assert_never_neither(None, [0, 1, 2])


def skip_sync(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(durable, "sync_path", lambda path: None)


def skip_sync_of_directories(patch: pytest.MonkeyPatch) -> None:
    sync = durable.sync_path
    patch.setattr(durable, "sync_path", lambda path: None if path.is_dir() else sync(path))


def skip_sync_of_files(patch: pytest.MonkeyPatch) -> None:
    sync = durable.sync_path
    patch.setattr(durable, "sync_path", lambda path: sync(path) if path.is_dir() else None)


def remove_first(patch: pytest.MonkeyPatch) -> None:
    """Remove what is to be replaced before the new one is there."""

    @contextmanager
    def new_directory(path: Path) -> Iterator[Path]:
        for left in path.parent.glob("step-*"):
            shutil.rmtree(left)
        with real(path) as beside:
            yield beside

    real = durable.new_directory
    patch.setattr(durable, "new_directory", new_directory)


@pytest.mark.parametrize("plant", [skip_sync, skip_sync_of_directories, skip_sync_of_files, remove_first])
def test_a_planted_bug_is_seen(root: Path, tmp_path: Path, plant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2):
        save(root, step)
    saving = Saving(root, tmp_path, newest)
    plant(monkeypatch)
    with saving.watched():
        save(root, 3)
    with pytest.raises(AssertionError, match=r"killed at|cut off at"):
        saving.assert_never_neither(2, 3)
