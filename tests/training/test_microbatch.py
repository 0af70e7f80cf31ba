"""A batch that memory does not hold is computed in parts: the same update, fewer images at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from making import TINY, write_colours
from resnext import catalog, machine
from resnext.data.loader import Batch
from resnext.errors import UserError
from resnext.training import checkpoint, journal, microbatch
from resnext.training.recipe import Recipe
from resnext.training.run import train
from resnext.training.step import TrainingStep

COUNT, CLASSES = 12, 3


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colours(tmp_path_factory.mktemp("photos"), 24)


def step_of(network: str, size: int, **fields: Any) -> TrainingStep:
    told = {
        "network": network,
        "epochs": 1,
        "batch_size": COUNT,
        "data": {"image_size": size, "resize": size, "mean": [0.5] * 3, "std": [0.25] * 3},
        "optimizer": {"learning_rate": 0.1},
        "machine": {"precision": "fp32", "form": "plain"},
    }
    recipe = Recipe.from_dict({**told, **fields})
    torch.manual_seed(0)
    made = catalog.create(network, num_classes=CLASSES, in_channels=3, **recipe.options)
    return TrainingStep(made.train(), recipe, recipe.data.preprocessing(), CLASSES)


def batch_of(size: int) -> Batch:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (COUNT, size, size, 3), np.uint8)
    return Batch(np.arange(COUNT), pixels, generator.integers(0, CLASSES, COUNT), 0)


@pytest.mark.parametrize("most", [2, 3, 5, 7, 11, 12])
def test_without_batch_norm_the_update_is_that_of_the_whole_batch(most: int) -> None:
    options = {"dropout": 0.0}
    whole, parted = (step_of("alexnet_one_tower", 64, options=options) for _ in range(2))
    parted.micro_batch = most
    outcomes = [step(batch_of(64), 0, 0, 0.1, count_errors=True) for step in (whole, parted)]
    assert outcomes[0].loss == pytest.approx(outcomes[1].loss, rel=1e-5)
    assert outcomes[0].errors == outcomes[1].errors
    assert outcomes[1].images == COUNT
    for name, value in whole.network.state_dict().items():
        torch.testing.assert_close(parted.network.state_dict()[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("count", [2, 3, 7, 12, 129])
@pytest.mark.parametrize("most", [2, 3, 5, 64, None])
def test_parts_cover_the_batch_and_none_is_a_single_image(count: int, most: int | None) -> None:
    parts = [*microbatch.parts(count, most)]
    assert [row for part in parts for row in range(part.start, part.stop)] == [*range(count)]
    sizes = [part.stop - part.start for part in parts]
    assert min(sizes) >= 2
    assert max(sizes) <= max(3, most or count)


def exhausting(monkeypatch: pytest.MonkeyPatch, most: int, error: BaseException) -> list[int]:
    """Let memory hold `most` images at once; return the numbers of images that were tried."""
    tried: list[int] = []
    original = TrainingStep._loss

    def loss(self: TrainingStep, outputs: Any, targets: torch.Tensor) -> torch.Tensor:
        tried.append(len(targets))
        if len(targets) > most:
            raise error
        return original(self, outputs, targets)

    monkeypatch.setattr(TrainingStep, "_loss", loss)
    return tried


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_exhausted_memory_halves_what_is_computed_at_once(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    tried = exhausting(monkeypatch, 4, error)
    step, asked = (step_of("cifar_resnet8", 16) for _ in range(2))
    outcome = step(batch_of(16), 0, 0, 0.1)
    assert tried == [12, 6, 3, 3, 3, 3]
    assert (outcome.images, outcome.skipped, step.micro_batch) == (COUNT, "", 3)
    asked.micro_batch = 3
    asked(batch_of(16), 0, 0, 0.1)
    for name, value in asked.network.state_dict().items():
        assert torch.equal(step.network.state_dict()[name], value), f"{name}: what was tried in vain left a trace"


def test_other_errors_are_not_taken_for_exhausted_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    exhausting(monkeypatch, 4, RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="do not fit"):
        step_of("cifar_resnet8", 16)(batch_of(16), 0, 0, 0.1)


def test_memory_for_not_even_two_images_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    exhausting(monkeypatch, 0, MemoryError())
    with pytest.raises(UserError, match="smaller --image-size"):
        step_of("cifar_resnet8", 16)(batch_of(16), 0, 0, 0.1)


def test_the_micro_batch_stands_in_the_checkpoint_and_the_journal(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exhausting(monkeypatch, 4, MemoryError())
    monkeypatch.setattr(microbatch, "settle", lambda *arguments, **more: None)
    run = train(photos, out=tmp_path / "run", **{**TINY, "epochs": 1})
    (told,) = [event for event in journal.read(run.path / "journal.jsonl") if event["event"] == "micro-batch"]
    assert (told["step"], told["images"]) == (0, 4)
    assert "Batch norm sees 4 images at a time" in told["text"]
    loaded = checkpoint.load_newest(run.path / "checkpoints")
    assert loaded is not None
    assert loaded[1]["micro_batch"] == 4
    events: list[dict[str, Any]] = []
    train(photos, out=run.path, resume=True, observer=events.append, **{**TINY, "epochs": 2})
    assert not [event for event in events if event["event"] == "micro-batch"], "it is taken up, not found out again"


def test_a_resumed_run_does_not_measure_again(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rehearsed: list[int] = []
    original = TrainingStep.rehearse
    monkeypatch.setattr(TrainingStep, "rehearse", lambda self, n: (rehearsed.append(n), original(self, n))[1])
    run = train(photos, out=tmp_path / "run", **{**TINY, "epochs": 1})
    assert rehearsed == [2]
    train(photos, out=run.path, resume=True, **{**TINY, "epochs": 2})
    assert rehearsed == [2]
    less = machine.memory_bytes() - 1
    monkeypatch.setattr(machine, "memory_bytes", lambda: less)
    train(photos, out=run.path, resume=True, **{**TINY, "epochs": 3})
    assert rehearsed == [2, 2]


def test_what_the_recipe_says_is_kept(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = exhausting(monkeypatch, 100, MemoryError())
    train(photos, out=tmp_path / "run", micro_batch=5, **{**TINY, "epochs": 1})
    assert max(tried) <= 5


LIMITED = """
import json, sys
sys.path.insert(0, sys.argv[1])
from test_microbatch import step_of
from resnext import machine
from resnext.training import memory, microbatch
from resnext.training.distributed import ALONE

limit = int(sys.argv[2])
machine.memory_bytes = lambda: limit
with memory.kept("cpu"):
    step = step_of("cifar_resnet20", 32, batch_size=1024)
    said = microbatch.settle(step, 1024, ALONE)
    settled, tried = step.micro_batch, microbatch._status("VmHWM")
    microbatch._forget_peak()
    step.rehearse(settled or 1024)
    print(json.dumps([settled, said, tried, microbatch._status("VmHWM")]))
"""


def limited(limit: int) -> list[Any]:
    line = [sys.executable, "-c", LIMITED, str(Path(__file__).parent), str(limit)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(line, capture_output=True, text=True, check=True, timeout=200, env=environment)
    told: list[Any] = json.loads(done.stdout)
    return told


def test_on_a_cpu_the_batch_is_cut_before_the_kernel_kills() -> None:
    limit = 3 * 2**29  # torch and the network alone need half of it, the whole batch nearly twice as much
    settled, said, tried, peak = limited(limit)
    assert settled is not None
    assert 32 <= settled < 1024, "the peak of the whole batch is above the limit, that of a few images far below"
    assert f"Batches of 1024 images are computed in parts of {settled}" in said
    assert tried < limit, "measuring itself stays below the limit"
    assert peak < microbatch.SHARE * limit


def test_where_memory_is_ample_a_batch_stays_whole() -> None:
    settled, said, _, peak = limited(64 * 2**30)
    assert (settled, said) == (None, None)
    assert peak > 2 * 2**30, "else the test with a limit is none"


def test_a_rehearsal_leaves_no_trace() -> None:
    step = step_of("cifar_resnet8", 16)
    before = {name: value.clone() for name, value in step.tensors().items()}
    step.rehearse(4)
    assert all(torch.equal(before[name], value) for name, value in step.tensors().items())
    assert all(parameter.grad is None for parameter in step.network.parameters())
