"""What the caller said of a run: a recipe file, flags or keywords, merged and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from resnext import catalog
from resnext.training import recipe

NOT_OF_THE_RECIPE = ("form", "scaling")
"""Keywords that say how the recipe is to be completed, and do not stand in it."""


def merge_said(recipe_name: str | Path | None, fields: dict[str, Any]) -> dict[str, Any]:
    """Merge a recipe file with keywords, which win; raises UserError for what no recipe can have."""
    nested = recipe.nest({name: value for name, value in fields.items() if name not in NOT_OF_THE_RECIPE})
    recipe.refuse_unknown_keys(nested, source="train")
    written = recipe.load(recipe_name) if recipe_name is not None else {}
    said = recipe.coerce(recipe.merge(written, nested))
    _keep_shares(said, written, nested)
    if "network" in said:
        catalog.resolve(said["network"])
    return recipe.merge(said, form_fields(fields.get("form"), said))


def form_fields(form: str | None, said: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe fields that `--form` means: "auto" leaves it to a stopwatch, a block form takes it away.

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
