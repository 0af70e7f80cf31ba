"""Damaged checkpoints and bundles: each is noticed before a weight is used, and an older checkpoint takes its place."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from faults import damage, runs
from faults.runs import Reference, Trial
from resnext import bundle
from resnext.bundle import Bundle
from resnext.cli import run as command_line
from resnext.errors import UserError
from resnext.training import checkpoint

CORRUPTIONS = 200
FILES = (checkpoint.TENSORS, checkpoint.STATE, checkpoint.MANIFEST)
OLDER, NEWER = 7, 8


def state(step: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    numbers = torch.Generator().manual_seed(step)
    tensors = {name: torch.randn(40, 50, generator=numbers) for name in ("network/a", "optimizer/0/b", "average/a")}
    return tensors, {"step": step, "position": {"epoch": step, "best": {"top1": step / 100}}}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    for step in (OLDER, NEWER):
        checkpoint.save(folder, step, *state(step))
    return folder


def damaged(folder: Path, number: int, generator: random.Random) -> tuple[str, bool]:
    """Damage the newer of two checkpoints; return how, and whether the older one is damaged too."""
    older, newer = folder / f"step-{OLDER}", folder / f"step-{NEWER}"
    kinds: list[Callable[[], tuple[str, bool]]] = [
        *(
            lambda file=file, act=act: (act(newer / file, generator), False)
            for file in FILES
            for act in damage.TO_A_FILE
        ),
        *(lambda file=file: (damage.swap(older / file, newer / file), True) for file in FILES),
        lambda: (damage.swap(newer / checkpoint.TENSORS, newer / checkpoint.STATE), False),
        lambda: (damage.garbage(newer / checkpoint.MANIFEST, generator), False),
    ]
    return kinds[number % len(kinds)]()


def outcome(folder: Path) -> Any:
    """Return the step of what was loaded, and of those that were passed over; or what was said."""
    try:
        loaded = checkpoint.load_newest(folder)
    except UserError as error:
        return str(error)
    assert loaded is not None
    tensors, told, skipped = loaded
    expected, also = state(told["step"])
    assert told == also
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], value) for name, value in expected.items())
    return told["step"], [line.partition(" was passed over: ")[0] for line in skipped]


def test_every_corruption_of_a_checkpoint_is_noticed(written: Path, tmp_path: Path, generator: random.Random) -> None:
    for number in range(CORRUPTIONS):
        folder = tmp_path / str(number)
        shutil.copytree(written, folder)
        what, both = damaged(folder, number, generator)
        found = outcome(folder)
        if both:
            assert "No checkpoint is whole" in found, what
            assert f"step-{OLDER}" in found, what
            assert f"step-{NEWER}" in found, what
        else:
            assert found == (OLDER, [str(folder / f"step-{NEWER}")]), what


@pytest.mark.parametrize("number", range(len(damage.GARBAGE)))
@pytest.mark.parametrize("file", [checkpoint.MANIFEST, checkpoint.STATE])
def test_garbage_is_passed_over(written: Path, tmp_path: Path, file: str, number: int) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(written, folder)
    (folder / f"step-{NEWER}" / file).write_bytes(damage.GARBAGE[number])
    assert outcome(folder) == (OLDER, [str(folder / f"step-{NEWER}")])


def test_a_checkpoint_under_the_name_of_another_is_not_taken_for_it(written: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(written, folder)
    damage.swap(folder / f"step-{OLDER}", folder / f"step-{NEWER}")
    assert "No checkpoint is whole" in outcome(folder)


def test_a_hash_that_is_not_checked_is_noticed_by_these_tests(
    written: Path, tmp_path: Path, generator: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(place: Path) -> list[bytes]:
        return [(place / name).read_bytes() for name in (checkpoint.TENSORS, checkpoint.STATE)]

    monkeypatch.setattr(checkpoint, "_read", read)
    shutil.copytree(written, tmp_path / "checkpoints")
    data = bytearray((tmp_path / "checkpoints" / f"step-{NEWER}" / checkpoint.TENSORS).read_bytes())
    data[-1] ^= 1
    (tmp_path / "checkpoints" / f"step-{NEWER}" / checkpoint.TENSORS).write_bytes(data)
    with pytest.raises(AssertionError):
        outcome(tmp_path / "checkpoints")


@pytest.fixture
def stopped(reference: Callable[[str], Reference], place: Path) -> Trial:
    whole = reference("plain")
    trial = runs.killed_at_point(whole, place, 3 * len(whole.passed) // 4)
    assert trial.hits == 1
    assert len(checkpoint.listed(trial.run / "checkpoints")) >= 2
    return trial


@pytest.mark.parametrize("file", [checkpoint.TENSORS, checkpoint.MANIFEST])
def test_a_run_with_a_damaged_checkpoint_names_it_and_comes_to_the_same_end(
    file: str, stopped: Trial, generator: random.Random
) -> None:
    newest = checkpoint.listed(stopped.run / "checkpoints")[-1]
    generator.choice(damage.TO_A_FILE)(newest / file, generator)
    assert stopped.finish() == []
    notes = " ".join(note for event in events(stopped.run, "resume") for note in event["notes"])
    assert f"{newest} was passed over" in notes


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    told = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    return [event for event in told if event["event"] == kind]


def test_a_run_without_a_whole_checkpoint_refuses_and_says_so(stopped: Trial) -> None:
    before = Bundle.open(stopped.run).identity
    for place in checkpoint.listed(stopped.run / "checkpoints"):
        damage.zero(place / checkpoint.TENSORS, random.Random(0))
    child = stopped.start(resume="by hand")
    assert child.end() == 2
    assert "No checkpoint is whole" in child.said()
    assert Bundle.open(stopped.run).identity == before


def test_every_corruption_of_a_bundle_is_noticed(
    reference: Callable[[str], Reference], tmp_path: Path, generator: random.Random
) -> None:
    """`verify` names the file; what would compute with it refuses. bundle.json is below."""
    model = reference("plain").place / "model"
    files = sorted(Bundle.open(model).files)
    assert {bundle.WEIGHTS, bundle.GOLDEN, bundle.CARD} <= set(files)
    for number in range(CORRUPTIONS // 2):
        copy = tmp_path / str(number)
        shutil.copytree(model, copy)
        file = files[number % len(files)]
        act = damage.TO_A_FILE[number // len(files) % len(damage.TO_A_FILE)]
        what = act(copy / file, generator)
        opened = Bundle.open(copy)
        assert any(problem.startswith(file) for problem in opened.verify()), what
        if file != bundle.CARD:
            with pytest.raises(UserError, match=file):
                opened.read(file)
        if file == bundle.WEIGHTS:
            with pytest.raises(UserError, match=file):
                opened.build()


def test_every_corruption_of_a_description_is_noticed(
    reference: Callable[[str], Reference], tmp_path: Path, generator: random.Random
) -> None:
    model = reference("plain").place / "model"
    whole = json.loads((model / bundle.DESCRIPTION).read_text())
    for number in range(CORRUPTIONS // 2):
        shutil.copytree(model, tmp_path / str(number))
        file = tmp_path / str(number) / bundle.DESCRIPTION
        acts = (*damage.TO_A_FILE, damage.garbage)
        what = acts[number % len(acts)](file, generator)
        try:
            Bundle.open(tmp_path / str(number))
        except UserError:
            continue
        assert json.loads(file.read_text()) == whole, what  # the line's end alone was lost


def test_the_command_line_refuses_a_damaged_bundle(
    reference: Callable[[str], Reference], tmp_path: Path, generator: random.Random, capsys: pytest.CaptureFixture[str]
) -> None:
    model = reference("plain").place / "model"
    photos = reference("plain").setup.photos
    shutil.copytree(model, tmp_path / "model")
    damage.flip(tmp_path / "model" / bundle.WEIGHTS, generator)
    assert command_line(["verify", str(tmp_path / "model")]) == 2
    assert command_line(["evaluate", str(tmp_path / "model"), str(photos)]) == 2
    assert command_line(["predict", str(tmp_path / "model"), str(photos / "red" / "0.png")]) == 2
    assert capsys.readouterr().err.count("model.safetensors") >= 3
