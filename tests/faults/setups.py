"""What is trained: tiny runs that save all the time, with everything on that has a state of its own."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from making import write_colours
from resnext import durable
from resnext.training import checkpoint, recipe

SAVES = 1e-9
"""Minutes between checkpoints: shorter than any step, so that each is followed by a save."""

DATA = {"image_size": 16, "resize": 16, "cache_gib": 0.1, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
MACHINE = {"form": "plain", "checkpoint_every": SAVES, "workers": 0, "precision": "fp32"}

PLAIN: dict[str, Any] = {
    "network": "cifar_resnet8",
    "epochs": 3,
    "batch_size": 8,
    "ema_decay": 0.9,
    "data": DATA,
    "optimizer": {"learning_rate": 0.02},
    "augmentation": {"crop": "pad", "padding": 2, "flip": 0.5},
    "machine": MACHINE,
}

EVERYTHING: dict[str, Any] = {
    **PLAIN,
    "options": {"final_survival": 0.5},
    "label_smoothing": 0.1,
    "optimizer": {"learning_rate": 0.02, "clip_norm": 2.0},
    "augmentation": {**PLAIN["augmentation"], "mixup": 0.2, "cutmix": 1.0, "erasing": 0.3},
    "schedule": {"name": "plateau", "patience": 1, "threshold": 0.99, "factor": 0.5},
    "machine": {**MACHINE, "workers": 2},
}

WARM_UP: dict[str, Any] = {
    **PLAIN,
    "options": {"drop_path": 0.3},
    "optimizer": {"name": "rmsprop", "learning_rate": 0.02, "rho": 0.9, "epsilon": 1.0},
    "schedule": {"name": "step", "milestones": [2.5], "warmup_rate": 0.1, "warmup_until_error": 0.9},
    "machine": {**MACHINE, "workers": 2},
}

MERGED: dict[str, Any] = {
    **PLAIN,
    "network": "cifar_resnext11_4x4d",
    "data": {**DATA, "image_size": 8, "resize": 8},
    "epochs": 6,  # of 9 steps: the stopwatch chooses for 50 or more
    "options": {"drop_path": 0.2},
    "augmentation": {**PLAIN["augmentation"], "mixup": 0.2},
    "machine": {**MACHINE, "form": "auto", "checkpoint_every": 0.002},
}

BFLOAT16: dict[str, Any] = {
    **PLAIN,
    "optimizer": {"name": "adamw", "learning_rate": 0.003, "decay": "weights"},
    "machine": {**MACHINE, "precision": "bf16", "workers": 1},
}

RARELY_SAVING: dict[str, Any] = {
    **PLAIN,
    "epochs": 2,
    "batch_size": 2,  # many steps, so that a journal's buffer is full before an epoch ends
    "machine": {**MACHINE, "checkpoint_every": 10.0},
}

SEVERAL: dict[str, Any] = {
    **EVERYTHING,
    "epochs": 6,
    "batch_size": 16,
    "machine": {**MACHINE, "workers": 1, "checkpoint_every": 0.005},
}

RECIPES = {
    "plain": PLAIN,  # no loader workers
    "everything": EVERYTHING,  # 2 loader workers, EMA, mixup, cutmix, stochastic depth
    "warm-up": WARM_UP,  # 2 loader workers, EMA, drop path, a schedule with a history
    "merged": MERGED,  # merged groups, EMA, mixup, drop path
    "bfloat16": BFLOAT16,
    "several": SEVERAL,  # for several processes
    "rarely-saving": RARELY_SAVING,
}


@dataclass(frozen=True)
class Setup:
    """A run to be: its recipe, its images and where its runs lie. `begun` is a run to start from, instead of none."""

    name: str
    photos: Path
    folder: Path
    raw: dict[str, Any]
    begun: Path | None = None

    def arguments(self, place: Path, *flags: str) -> list[str]:
        """Return the words after `resnext` that train it in `place`."""
        file = self.folder / f"{self.name}.toml"
        return ["train", str(self.photos), f"--recipe={file}", f"--out={place}", "--json", "--no-report", *flags]

    def changed(self, name: str, **sections: Any) -> Setup:
        """Return this setup with other values in its recipe, under another name."""
        return make(name, self.folder, self.photos, recipe.merge(self.raw, sections))


def make(name: str, folder: Path, photos: Path | None = None, raw: dict[str, Any] | None = None) -> Setup:
    """Write a setup's recipe, and images where there are none, below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    if photos is None and not (photos := folder / "photos").exists():
        write_colours(photos, 24)
    raw = RECIPES[name] if raw is None else raw
    (folder / f"{name}.toml").write_text(recipe.to_toml(raw))
    return Setup(name, photos, folder, raw)


def with_merging(setup: Setup, place: Path) -> Setup:
    """Return a setup that starts from a copy of `place`, a run that stopped early, with merging on for certain.

    A run chooses its form by stopwatch, and noise may let two runs of one seed choose differently. So the choice is
    made once, and all runs go on from the checkpoint in which it stands. Where the stopwatch merged nothing the
    checkpoint is rewritten, hashes and all, as if it had.
    """
    for checkpoint_place in checkpoint.listed(place / "checkpoints"):
        state = json.loads((checkpoint_place / checkpoint.STATE).read_text())
        if not state["forms"]["merged"]:
            state["forms"]["merged"] = dict.fromkeys(_grouped(setup), 2)
            (checkpoint_place / checkpoint.STATE).write_text(json.dumps(state))
            told = json.loads((checkpoint_place / checkpoint.MANIFEST).read_text())
            told[checkpoint.STATE] = durable.sha256(checkpoint_place / checkpoint.STATE)
            (checkpoint_place / checkpoint.MANIFEST).write_text(json.dumps(told))
    return replace(setup, begun=place)


def _grouped(setup: Setup) -> list[str]:
    from resnext import catalog
    from resnext.equivalence import merging

    return list(merging.mergeable(catalog.create(setup.raw["network"], num_classes=3, **setup.raw["options"])))


def environment(cache: Path) -> dict[str, str]:
    """Return the environment of a process that trains: one thread, and a cache of its own.

    One thread, as the thread count belongs to what makes runs equal, and several processes share the machine here.
    """
    ours = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "src")]
    path = os.pathsep.join([*ours, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "OMP_NUM_THREADS": "1", "RESNEXT_CACHE": str(cache), "PYTHONPATH": path}
