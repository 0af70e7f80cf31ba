"""A run: from a folder of images to a bundle, in one directory that can be stopped and taken up again."""

from __future__ import annotations

import dataclasses
import errno
import re
import shlex
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from resnext import bundle, catalog, durable, machine
from resnext.bundle import Bundle
from resnext.data import check, named
from resnext.data.manifest import Manifest, scan
from resnext.data.preprocessing import Preprocessing
from resnext.engine import choose_device
from resnext.errors import UserError
from resnext.training import defaults, journal, memory, owner, recipe
from resnext.training.journal import Journal, Observer
from resnext.training.recipe import Recipe

RECIPE, MANIFEST, JOURNAL, MODEL, CHECKPOINTS, MEAN_IMAGE = (
    "recipe.toml",
    "manifest.parquet",
    "journal.jsonl",
    "model",
    "checkpoints",
    bundle.MEAN_IMAGE,
)


@dataclass(frozen=True)
class Run:
    """A finished run: its directory, its bundle (best on validation) and what that scored on validation."""

    path: Path
    bundle: Bundle
    scores: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """Everything a run needs before the first step: where, on what, how, and what to tell the user about it."""

    path: Path
    manifest: Manifest
    recipe: Recipe
    notes: tuple[str, ...]
    resumed: bool


def train(
    data: str | Path,
    /,
    *,
    out: str | Path | None = None,
    recipe: str | Path | None = None,
    resume: bool = False,
    observer: Observer = journal.ignore,
    **fields: Any,
) -> Run:
    """Train a classifier on a folder of images, a CSV or a named data set, and return its run.

    `out` is the run's directory (default `runs/NAME`); `recipe` a TOML file or the name of a recipe of this
    package; `fields` are recipe fields (`network`, `epochs`, `image_size`, …, or whole sections as dicts) and `form`
    ("auto", "a", "b" or "c", as the flag of that name), and win over it. `observer` is called with every event that
    the journal gets. Raises UserError for whatever the caller can mend; an interrupted run raises
    `training.loop.Interrupted` after its state was saved.
    """
    return execute(plan(data, out=out, recipe=recipe, resume=resume, fields=fields), observer)


def plan(
    data: str | Path,
    *,
    out: str | Path | None,
    recipe: str | Path | None,
    resume: bool,
    fields: dict[str, Any],
    manifest: Manifest | None = None,
) -> Plan:
    """Scan the data, complete the recipe and refuse what cannot work, without writing anything."""
    said = merge_said(recipe, fields)
    place = Path(out) if out is not None else default_place(data, resume=resume)
    owner.refuse_owned(place)
    if resume:
        return _plan_resumed(place, data, said, fields.get("form"))
    refuse_occupied(place)
    if manifest is None:
        validation = said.get("data", {}).get("validation", 0.1)
        manifest = scan(data, purpose="train", seed=said.get("seed", 0), validation=validation)
    complete, reasons = _complete(manifest, said, from_file=recipe is not None)
    return Plan(place, manifest, complete, (*manifest.notes, *check.brief(manifest), *reasons), resumed=False)


def merge_said(recipe_name: str | Path | None, fields: dict[str, Any]) -> dict[str, Any]:
    """Merge a recipe file with keywords, which win; raises UserError for what no recipe can have."""
    nested = recipe.nest({name: value for name, value in fields.items() if name != "form"})
    recipe.refuse_unknown_keys(nested, source="train")
    written = recipe.load(recipe_name) if recipe_name is not None else {}
    said = recipe.coerce(recipe.merge(written, nested))
    _keep_shares(said, written, nested)
    if "network" in said:
        catalog.resolve(said["network"])
    return recipe.merge(said, _form_fields(fields.get("form"), said))


def _form_fields(form: str | None, said: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that `--form` means: "auto" leaves the choice to a stopwatch, a block form takes it away.

    The network's own form, (c) where it has no other, needs no option; any other is one.
    """
    if form is None or form == "auto":
        return {} if form is None else {"machine": {"form": "auto"}}
    config = catalog.resolve(said["network"]).config if "network" in said else None
    own = said.get("options", {}).get("form", getattr(config, "form", "c"))
    return {"machine": {"form": "plain"}, **({} if form == own else {"options": {"form": form}})}


def _keep_shares(said: dict[str, Any], written: dict[str, Any], nested: dict[str, Any]) -> None:
    """Where the caller's image size is not the recipe file's, let the crop keep its share of the resized image."""
    if any("image_size" not in layer.get("data", {}) for layer in (written, nested)):
        return

    before: int = written["data"]["image_size"]
    now: int = said["data"]["image_size"]

    def scaled(length: int) -> int:
        return round(length * now / before)

    for name in written["data"].keys() & {"resize", "train_resize"} - nested["data"].keys():
        said["data"][name] = scaled(written["data"][name])
    sides = written.get("augmentation", {}).get("shorter_side")
    if sides is not None and "shorter_side" not in nested.get("augmentation", {}):
        said["augmentation"]["shorter_side"] = [scaled(side) for side in sides]


def _complete(manifest: Manifest, said: dict[str, Any], *, from_file: bool) -> tuple[Recipe, list[str]]:
    """Fill in what the caller left open; what a file leaves out of a section that it has is off."""
    split = manifest.split("train")
    device = choose_device(said.get("machine", {}).get("device", "auto"))
    proposal, reasons = defaults.propose(len(split), len(manifest.classes), defaults.sample(split), device, said)
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
    for image_size in (complete.data.image_size, complete.data.early_size):
        if image_size is not None:
            cast(Any, network).check_image_size(image_size)
    complete.data.refuse_misfits(complete.augmentation)
    if complete.augmentation.lighting and not complete.augmentation.colour_axes:
        axes = defaults.colour_axes(split, complete.data.training_preprocessing())
        lit = dataclasses.replace(complete.augmentation, colour_axes=axes)
        complete = complete.model_copy(update={"augmentation": lit})
    return complete, reasons


def _plan_resumed(place: Path, data: str | Path, said: dict[str, Any], form: str | None) -> Plan:
    if not (place / RECIPE).is_file() or not (place / MANIFEST).is_file():
        raise UserError(f"{place} holds no run to resume. Leave out --resume, or give the run's directory as --out.")
    raw = recipe.load(place / RECIPE)
    recorded = Recipe.from_dict(raw, source=str(place / RECIPE))
    asked = recipe.merge(raw, said, _form_fields(form, raw))
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
    if journal.is_finished(place / JOURNAL) and complete.epochs <= recorded.epochs:
        raise UserError(
            f"{place} is finished ({recorded.epochs} epochs). Use more --epochs to extend it, or another --out."
        )
    manifest, path = Manifest.read(place / MANIFEST), Path(data).expanduser()
    here = path if path.is_dir() else path.parent
    if str(data) not in named.NAMES and (not path.exists() or here.resolve() != manifest.root.resolve()):
        raise UserError(
            f"{place} was begun with the data in {manifest.root}, not {data}. Give those, or another --out."
        )
    return Plan(place, manifest, complete, (), resumed=True)


def execute(planned: Plan, observer: Observer = journal.ignore) -> Run:
    """Carry a plan out, as the directory's one owner: write it, train, keep the best bundle, measure it once more."""
    from resnext.training.loop import Interrupted
    from resnext.training.session import Session

    place = planned.path
    try:
        place.mkdir(parents=True, exist_ok=True)
        with owner.owned(place), memory.kept(choose_device(planned.recipe.machine.device)):
            if not planned.resumed:
                refuse_occupied(place)  # once more: another may have begun since the plan was made
                planned.manifest.write(place / MANIFEST)
                durable.write_text(place / RECIPE, planned.recipe.to_toml())
            session = Session(planned, observer)
            with Journal(place / JOURNAL, step=session.step_number if planned.resumed else None) as written:
                return _execute(planned, session, _tell_both(written, observer))
    except (Interrupted, KeyboardInterrupt) as stop:
        number = stop.signal_number if isinstance(stop, Interrupted) else signal.SIGINT
        raise Interrupted(number, how_to_resume(number, place)) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"The disk with {place} is full. The last state that was saved is intact; free some space "
                "and go on with --resume."
            ) from error
        raise


def how_to_resume(signal_number: int, place: Path) -> str:
    """Say what stopped a run and how it goes on."""
    return (
        f"Stopped by {signal.Signals(signal_number).name}. What was saved is in {place}; go on with the same command "
        f"and --out {shlex.quote(str(place))} --resume."
    )


def _execute(planned: Plan, session: Any, tell: Observer) -> Run:
    started = time.perf_counter()
    manifest = planned.manifest
    tell(
        {
            "event": "resume" if planned.resumed else "start",
            "run": str(planned.path),
            "at_step": session.step_number,
            "network": planned.recipe.network,
            "classes": len(manifest.classes),
            "train_images": len(manifest.split("train")),
            "validation_images": len(manifest.split("val")),
            "notes": [*planned.notes, *session.notes],
            "pixels": session.pixel_notes,
            "device": session.description,
            "forms": session.forms.to_dict(),
            "machine": machine.description(),
            "software": machine.software(),
        }
    )
    if planned.resumed:
        durable.write_text(planned.path / RECIPE, planned.recipe.to_toml())
    session.train(tell)
    scores = session.measure_best()
    kept = Bundle.open(planned.path / MODEL)
    tell(
        {
            "event": "end",
            "bundle": str(kept.path),
            "identity": kept.identity,
            "seconds": round(time.perf_counter() - started, 1),
            **{key: scores[key] for key in ("images", "top1", "top5", "top1_interval", "loss")},
        }
    )
    return Run(planned.path, kept, scores)


def _tell_both(written: Journal, observer: Observer) -> Callable[[journal.Event], None]:
    def tell(event: journal.Event) -> None:
        if event["event"] not in ("progress", "estimate", "stopping"):
            written(event)
        observer(event)

    return tell


def refuse_occupied(place: Path) -> None:
    """Raise UserError where a new run must not be written: a run is there, or something else is."""
    if not place.exists() or (place.is_dir() and all(entry.name == owner.LOCK for entry in place.iterdir())):
        return
    if not place.is_dir():
        raise UserError(f"{place} is a file. Choose another directory with --out.")
    if journal.is_finished(place / JOURNAL):
        raise UserError(
            f"{place} already holds a finished run; it was left as it is. "
            "Choose another --out, or --resume with more --epochs."
        )
    if (place / RECIPE).exists() and (place / MANIFEST).exists():
        raise UserError(f"{place} holds a run that is not finished. Go on with --resume, or choose another --out.")
    raise UserError(f"{place} is not empty and holds no run. Choose another directory with --out.")


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


def bundle_contents(planned: Plan, preprocessing: Preprocessing, results: dict[str, Any]) -> bundle.Contents:
    """Return what the run's bundle says of itself, with these results."""
    return bundle.Contents(
        network=planned.recipe.network,
        options=_options_at_inference(planned.recipe),
        classes=tuple(planned.manifest.classes),
        preprocessing=preprocessing,
        recipe=planned.recipe.to_dict(),
        results=results,
    )


def _options_at_inference(of: Recipe) -> dict[str, Any]:
    """Return the network's options without auxiliary classifiers, which are for training alone."""
    has_auxiliary = hasattr(catalog.resolve(of.network).config, "auxiliary")
    return {**of.options, "auxiliary": False} if has_auxiliary else dict(of.options)
