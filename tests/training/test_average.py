"""A run with a moving average of its weights: that is what is validated, and what the bundle holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from making import TINY, write_colours
from resnext.training import checkpoint, journal
from resnext.training.run import train


def test_the_bundle_holds_the_average_of_the_best_epoch_s_checkpoint(tmp_path: Path) -> None:
    photos = write_colours(tmp_path / "photos", 10)
    # As many epochs as checkpoints are kept.
    run = train(photos, out=tmp_path / "run", ema_decay=0.9, precision="fp32", **{**TINY, "epochs": checkpoint.KEEP})
    epochs = [event for event in journal.read(run.path / "journal.jsonl") if event["event"] == "epoch"]
    best = max(epochs, key=lambda event: (event["top1"], -event["loss"]))
    assert run.scores["epoch"] == best["epoch"]
    state = load_file(run.path / "checkpoints" / f"step-{best['step'] + 1}" / checkpoint.TENSORS)
    weights = run.bundle.read("model.safetensors")
    assert {name for name in state if name.startswith("average/")} == {f"average/{name}" for name in weights}
    for name, value in weights.items():
        assert np.array_equal(value, state[f"average/{name}"]), name
    assert not np.array_equal(weights["head.fc.weight"], state["network/head.fc.weight"])
    assert run.scores["loss"] == pytest.approx(best["loss"], rel=1e-4)
