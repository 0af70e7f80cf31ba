"""The plan of a run: where, on what, how, decided and checked before anything is written."""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from resnext import bundle, catalog, durable
from resnext.data import check, named
from resnext.data.manifest import Manifest, scan
from resnext.engine import choose_device
from resnext.errors import UserError
from resnext.training import automatic, defaults, distributed, imbalance, journal, owner, pretrained, recipe
from resnext.training.distributed import ALONE, Group
from resnext.training.journal import Observer
from resnext.training.recipe import Recipe
from resnext.training.said import form_fields, merge_said

RECIPE, MANIFEST, JOURNAL, MODEL, CHECKPOINTS, MEAN_IMAGE = (
    "recipe.toml",
    "manifest.parquet",
    "journal.jsonl",
    "model",
    "checkpoints",
    bundle.MEAN_IMAGE,
)


@dataclass(frozen=True)
class Plan:
    """Everything a run needs before the first step: where, on what, how, and what to tell the user about it.

    `resumed`: it goes on from what is there. `finished`: it came to its end before, and nothing is left to do.
    """

    path: Path
    manifest: Manifest
    recipe: Recipe
    notes: tuple[str, ...]
    resumed: bool
    finished: bool = False

    @property
    def model(self) -> Path:
        """The directory of the run's bundle."""
        return self.path / MODEL

    @property
    def checkpoints(self) -> Path:
        """The directory of the run's checkpoints."""
        return self.path / CHECKPOINTS

    def to_bytes(self) -> bytes:
        """Return the plan as bytes, from which `from_bytes` makes an equal one in another process."""
        told = {
            "path": str(self.path),
            "recipe": self.recipe.to_dict(),
            "notes": self.notes,
            "resumed": self.resumed,
            "finished": self.finished,
        }
        with tempfile.TemporaryDirectory() as folder:
            self.manifest.write(Path(folder) / MANIFEST)
            return json.dumps(told).encode() + b"\n" + (Path(folder) / MANIFEST).read_bytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Plan:
        """Return the plan that `to_bytes` gave."""
        head, _, manifest = data.partition(b"\n")
        told = json.loads(head)
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / MANIFEST).write_bytes(manifest)
            return cls(
                Path(told["path"]),
                Manifest.read(Path(folder) / MANIFEST),
                Recipe.from_dict(told["recipe"]),
                tuple(told["notes"]),
                told["resumed"],
                told["finished"],
            )


@dataclass(frozen=True)
class Wish:
    """Where a run is to be and whether it goes on: `resume` from what is there; with `automatic` only if anything is.

    `place` None means `runs/NAME`.
    """

    place: str | Path | None = None
    resume: bool = False
    automatic: bool = False


def plan(
    data: str | Path,
    *,
    wish: Wish,
    recipe: str | Path | None,
    fields: dict[str, Any],
    manifest: Manifest | None = None,
    group: Group = ALONE,
    observer: Observer = journal.ignore,
) -> Plan:
    """Scan the data, complete the recipe and refuse what cannot work, without writing anything.

    `observer` is told how far reading the data has come.
    """
    said = merge_said(recipe, fields)
    goes_on = wish.resume or wish.automatic or distributed.restarted()
    place = Path(wish.place) if wish.place is not None else default_place(data, resume=goes_on)
    owner.refuse_owned(place)
    if wish.resume or (goes_on and is_begun(place)):
        fine = not wish.resume or distributed.restarted()
        return _plan_resumed(place, data, said, fields.get("form"), finished_is_fine=fine)
    refuse_occupied(place)
    said, told = pretrained.resolve(said)
    if manifest is None:
        validation = said.get("data", {}).get("validation", 0.1)
        manifest = scan(
            data, purpose="train", seed=said.get("seed", 0), validation=validation, progress=journal.progress(observer)
        )
    complete, reasons = _complete(manifest, said, from_file=recipe is not None)
    if fields.get("scaling") == "linear" and group.size > 1:
        complete, reason = _scaled(complete, group.size)
        reasons.append(reason)
    balanced = "balanced" in (complete.class_weights, complete.sampling)
    notes = (*told, *manifest.notes, *check.brief(manifest, balanced=balanced), *reasons)
    return Plan(place, manifest, complete, notes, resumed=False)


def _scaled(complete: Recipe, processes: int) -> tuple[Recipe, str]:
    """Multiply batch and learning rate by the number of processes (P. Goyal and others, arXiv:1706.02677 section 2)."""
    rate = complete.optimizer.learning_rate * processes
    optimizer = complete.optimizer.model_copy(update={"learning_rate": rate})
    scaled = complete.model_copy(update={"batch_size": complete.batch_size * processes, "optimizer": optimizer})
    return scaled, (
        f"Scaled to {processes} processes: batches of {scaled.batch_size} images and a learning rate of {rate:g}, each "
        f"{processes} times that of one process."
    )


def _complete(manifest: Manifest, said: dict[str, Any], *, from_file: bool) -> tuple[Recipe, list[str]]:
    """Fill in what the caller left open; what a file leaves out of a section that it has is off."""
    split = manifest.split("train")
    device, looks = choose_device(said.get("machine", {}).get("device", "auto")), defaults.sample(split)
    reasons: list[str] = []
    if automatic.is_asked(said) or automatic.serve(said, looks, from_file=from_file):
        said, reasons = automatic.choose(said, len(split), device)
    proposal, why_these = defaults.propose(len(split), len(manifest.classes), looks, device, said)
    reasons += why_these
    if said.get("transfer", {}).get("weights"):
        proposal, why = pretrained.fine_tuned(proposal, said, len(split))
        reasons.append(why)
    if from_file:
        proposal = {key: value for key, value in proposal.items() if key == "data" or key not in said}
        proposal.pop("label_smoothing", None)
    complete = Recipe.from_dict(recipe.merge(proposal, said))
    import torch

    from resnext.training.gates import refuse_compiling

    with torch.device("meta"):
        network = catalog.create(
            complete.network,
            num_classes=len(manifest.classes),
            in_channels=complete.data.channels,
            **complete.options,
        )
    if complete.machine.compile == "on":
        refuse_compiling(network)
    for image_size in (complete.data.image_size, *complete.data.early_size):
        cast(Any, network).check_image_size(image_size)
    complete.data.refuse_misfits(complete.augmentation)
    if complete.augmentation.lighting and not complete.augmentation.colour_axes:
        axes = defaults.colour_axes(split, complete.data.training_preprocessing())
        lit = dataclasses.replace(complete.augmentation, colour_axes=axes)
        complete = complete.model_copy(update={"augmentation": lit})
    return complete, [*reasons, *imbalance.said(complete, split)]


def _plan_resumed(
    place: Path, data: str | Path, said: dict[str, Any], form: str | None, *, finished_is_fine: bool
) -> Plan:
    if not (place / RECIPE).is_file() or not (place / MANIFEST).is_file():
        raise UserError(f"{place} holds no run to resume. Leave out --resume, or give the run's directory as --out.")
    raw = recipe.load(place / RECIPE)
    said = pretrained.as_recorded(said, raw)
    recorded = Recipe.from_dict(raw, source=str(place / RECIPE))
    asked = recipe.merge(raw, said, form_fields(form, raw))
    complete = Recipe.from_dict(asked, source=str(place / RECIPE))
    if complete.augmentation.lighting and not complete.augmentation.colour_axes:
        raise UserError(
            f"{place / RECIPE} has lost augmentation.colour_axes, which were measured when the run began. "
            "Put the file back as it was, or start a new run with another --out."
        )
    before, now = recorded.deciding(), complete.deciding()
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise UserError(
                f"{place} was begun with another {name} than now asked for. Resume without it, "
                "or start a new run with another --out. (On resuming, only epochs and machine can change.)"
            )
    finished = journal.is_finished(place / JOURNAL) and complete.epochs <= recorded.epochs
    if finished and not finished_is_fine:
        raise UserError(
            f"{place} is finished ({recorded.epochs} epochs). Use more --epochs to extend it, or another --out."
        )
    manifest, path = Manifest.read(place / MANIFEST), Path(data).expanduser()
    here = path if path.is_dir() else path.parent
    if str(data) not in named.NAMES and (not path.exists() or here.resolve() != manifest.root.resolve()):
        raise UserError(
            f"{place} was begun with the data in {manifest.root}, not {data}. Give those, or another --out."
        )
    return Plan(place, manifest, complete, (), resumed=True, finished=finished)


def is_begun(place: Path) -> bool:
    """Whether a run was begun here: it has a recipe and a manifest, which are written before anything else."""
    return (place / RECIPE).is_file() and (place / MANIFEST).is_file()


def refuse_occupied(place: Path) -> None:
    """Raise UserError where a new run must not be written: a run is there, or something else is.

    What a run leaves that was killed before it was begun is nothing.
    """
    if not place.exists() or (place.is_dir() and all(_is_nothing(entry.name) for entry in place.iterdir())):
        return
    if not place.is_dir():
        raise UserError(f"{place} is a file. Choose another directory with --out.")
    if journal.is_finished(place / JOURNAL):
        raise UserError(
            f"{place} already holds a finished run; it was left as it is. "
            "Choose another --out, or --resume with more --epochs."
        )
    if is_begun(place):
        raise UserError(f"{place} holds a run that is not finished. Go on with --resume, or choose another --out.")
    raise UserError(f"{place} is not empty and holds no run. Choose another directory with --out.")


def _is_nothing(name: str) -> bool:
    """Whether a file of this name says nothing: the lock, and a manifest without the recipe that follows it."""
    return name in (owner.LOCK, MANIFEST) or durable.is_beside(name)


def default_place(data: str | Path, *, resume: bool) -> Path:
    """Return `runs/NAME`, named after the data; `runs/NAME-2` and so on where earlier runs are.

    To resume means the newest of them.
    """
    name = re.sub(r"[^\w.-]+", "-", Path(data).resolve().stem if Path(data).exists() else str(data)) or "run"
    number = 1
    while (Path("runs") / _numbered(name, number)).exists():
        number += 1
    return Path("runs") / _numbered(name, max(1, number - 1) if resume else number)


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}-{number}"
