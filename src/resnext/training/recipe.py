"""The recipe: how a run goes, complete, as TOML.

A recipe is merged from three layers: what suits the data and the machine (`training/defaults.py`), a recipe file,
and what the caller says. Unknown keys are refused with the nearest known one.
"""

from __future__ import annotations

import json
import math
import tomllib
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from resnext.data.augmentation import Augmentation
from resnext.errors import UserError, did_you_mean
from resnext.training.sections import STRICT, Data, Initialisation, Machine, Optimizer, Schedule, Transfer

SECTIONS_IN_PACKAGE = Path(__file__).parents[1] / "recipes"
SECTIONS_IN_CHECKOUT = Path(__file__).parents[3] / "recipes"

# Flags and keywords that name a field of a section.
FLAT = {
    "image_size": "data",
    "resize": "data",
    "channels": "data",
    "validation": "data",
    "cache_gib": "data",
    "max_unreadable": "data",
    "flip": "augmentation",
    "learning_rate": "optimizer",
    "weight_decay": "optimizer",
    "weights": "transfer",
    "precision": "machine",
    "device": "machine",
    "workers": "machine",
    "compile": "machine",
    "checkpoint_every": "machine",
    "micro_batch": "machine",
}


class Recipe(BaseModel):
    """One complete run: everything that decides what is learned, apart from the data."""

    model_config = STRICT
    network: str
    options: dict[str, str | int | float | bool | tuple[int, ...] | tuple[float, ...]] = Field(default_factory=dict)
    epochs: int = Field(ge=1, le=100_000)
    batch_size: int = Field(ge=2, le=65_536)
    seed: int = Field(default=0, ge=0, lt=2**63)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    class_weights: Literal["none", "balanced"] = Field(
        default="none", description="what an image's loss counts: 1, or the more the fewer images its class has"
    )
    sampling: Literal["shuffled", "balanced"] = Field(
        default="shuffled", description="an epoch holds each image once, or each class equally often"
    )
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    batch_norm: Literal["local", "synchronised"] = Field(
        default="local", description="whose images batch norm sees: those of one process, or of all"
    )
    initialisation: Initialisation | None = Field(default=None, description="None: as the network's paper has it")
    data: Data
    augmentation: Augmentation = Field(default_factory=Augmentation)
    optimizer: Optimizer
    schedule: Schedule = Field(default_factory=Schedule)
    transfer: Transfer = Field(default_factory=Transfer)
    machine: Machine = Field(default_factory=Machine)

    @model_validator(mode="after")
    def _mixed_images_have_no_error(self) -> Recipe:
        if self.schedule.warmup_until_error is not None and self.augmentation.mixes:
            raise UserError(
                "warmup_until_error counts training errors, and mixup and cutmix give images two classes at once. "
                "Warm up for warmup_epochs instead, or set mixup and cutmix to 0."
            )
        return self

    @model_validator(mode="after")
    def _classes_are_balanced_once(self) -> Recipe:
        if self.class_weights == "balanced" and self.sampling == "balanced":
            raise UserError(
                'sampling "balanced" shows each class equally often already; class_weights "balanced" besides would '
                "count rare classes more than common ones. Take one of the two."
            )
        return self

    def deciding(self) -> dict[str, Any]:
        """Return what decides what is learned until any epoch, apart from the data: the recipe of a resumed run."""
        told = self.to_dict()
        data = {key: value for key, value in told["data"].items() if key not in ("max_unreadable", "cache_gib")}
        return {key: value for key, value in told.items() if key not in ("machine", "epochs")} | {"data": data}

    @classmethod
    def from_dict(cls, raw: dict[str, Any], *, source: str = "the recipe") -> Recipe:
        """Validate a nested dict; raises UserError that names the wrong key or value, and the nearest key."""
        refuse_unknown_keys(raw, source=source)
        recipe = _validated(raw, source)
        for name in ("num_classes", "in_channels"):
            if name in recipe.options:
                raise UserError(f"{source}: options.{name} follows from the data. Leave it out.")
        recipe.data.preprocessing()
        return recipe

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as nested dicts of plain values; fields that are off (None) are left out."""
        dumped: dict[str, Any] = self.model_dump(mode="json", exclude_none=True)
        return dumped

    def to_toml(self) -> str:
        """Return the recipe as TOML that `load` reads back to an equal recipe."""
        return to_toml(self.to_dict())


def coerce(said: dict[str, Any]) -> dict[str, Any]:
    """Return part of a recipe with every value of its field's type; raises UserError for one that cannot be."""
    return _picked(_validated(merge(_ANY_COMPLETE, said), "the recipe").to_dict(), said)


def _picked(whole: dict[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    nested = {key for key, value in said.items() if isinstance(value, dict) and key != "options"}
    return {key: _picked(whole[key], said[key]) if key in nested else whole[key] for key in said if key in whole}


_ANY_COMPLETE: dict[str, Any] = {
    "network": "",
    "epochs": 1,
    "batch_size": 2,
    "data": {"image_size": 4096, "resize": 8192, "mean": [0.0], "std": [1.0]},
    "optimizer": {"learning_rate": 1.0},
}


def _validated(raw: dict[str, Any], source: str) -> Recipe:
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "value_error" and isinstance(first.get("ctx", {}).get("error"), UserError):
            raise UserError(f"{source}: {first['ctx']['error']}") from error
        if first["loc"][0] == "options" and len(first["loc"]) > 1:
            option = f"options.{first['loc'][1]}"
            raise UserError(f"{source}: {option}: give a finite number, a word, true or false, or numbers.") from error
        place = ".".join(str(part) for part in first["loc"])
        given = "" if first["type"] == "missing" else f" (given: {first['input']!r})"
        raise UserError(f"{source}: {place}: {first['msg']}{given}. Correct it.") from error


def load(name_or_path: str | Path) -> dict[str, Any]:
    """Read a recipe file, or a recipe of this package by its name (`cifar10_quick`), as nested dicts.

    Raises UserError for a missing file, for text that is not TOML and for unknown keys.
    """
    path = Path(name_or_path)
    if not path.is_file():
        shipped = published()
        if str(name_or_path) not in shipped:
            raise UserError(
                f"There is no recipe {str(name_or_path)!r}: neither a file nor one of this package's."
                + (did_you_mean(str(name_or_path), shipped) or f" Those are: {', '.join(shipped)}.")
            )
        path = shipped[str(name_or_path)]
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML: {error}. Correct the file.") from error
    refuse_unknown_keys(raw, source=str(path))
    return raw


def published() -> dict[str, Path]:
    """Return the recipes that come with this package, by name."""
    folder = SECTIONS_IN_PACKAGE if SECTIONS_IN_PACKAGE.is_dir() else SECTIONS_IN_CHECKOUT
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def nest(flat: dict[str, Any]) -> dict[str, Any]:
    """Put flat keywords (`image_size=64`) into their sections; keywords that are None are left out."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        if value is None:
            continue
        if name in FLAT:
            nested.setdefault(FLAT[name], {})[name] = value
        elif isinstance(value, dict):
            nested[name] = {**nested.get(name, {}), **value}
        else:
            nested[name] = value
    return nested


def merge(*layers: dict[str, Any]) -> dict[str, Any]:
    """Merge nested dicts; later layers win, key by key."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, dict) and isinstance(merged.get(key), dict)
            merged[key] = merge(merged[key], value) if both else value
    return merged


def refuse_unknown_keys(raw: dict[str, Any], *, source: str, model: Any = Recipe, inside: str = "") -> None:
    """Raise UserError for the first key that a recipe does not have, with the nearest one it has."""
    known = _fields(model)
    for key, value in raw.items():
        if key not in known:
            raise UserError(
                f"{source}: unknown key {inside + key!r}."
                + (did_you_mean(key, known) or f" {inside or 'A recipe'} has: {', '.join(known)}.")
            )
        section = known[key]
        if section is None or key == "options":
            continue
        if not isinstance(value, dict):
            raise UserError(f"{source}: {inside + key} is a section; write [{inside + key}] and its keys below it.")
        refuse_unknown_keys(value, source=source, model=section, inside=f"{inside}{key}.")


def _fields(model: Any) -> dict[str, Any]:
    """Map each field of a section to its own model where it is a section, else to None."""
    if is_dataclass(model):
        return {each.name: None for each in fields(model)}
    return {
        name: annotation
        if isinstance(annotation := info.annotation, type)
        and (is_dataclass(annotation) or issubclass(annotation, BaseModel))
        else None
        for name, info in model.model_fields.items()
    }


def to_toml(tree: dict[str, Any], inside: str = "") -> str:
    """Write nested dicts of strings, numbers, booleans and lists as TOML, plain values before sections."""
    lines = [f"{key} = {_toml_value(value)}" for key, value in tree.items() if not isinstance(value, dict)]
    text = "\n".join(lines) + "\n" if lines else ""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            text += f"\n[{inside}{key}]\n" + to_toml(value, f"{inside}{key}.").lstrip("\n")
    return text


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    # A JSON string is a TOML basic string, except that JSON leaves DEL unescaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
