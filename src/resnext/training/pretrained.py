"""Weights that a run begins with: found when it is planned, and put in its network when it begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from resnext import durable
from resnext.errors import UserError
from resnext.training import recipe as recipes
from resnext.training.recipe import Recipe
from resnext.weights import elsewhere, licences, published
from resnext.weights.spec import Spec

AUTO, NONE = "auto", "none"


@dataclass(frozen=True)
class Defaults:
    """How weights are taught new classes, by the number of training images up to which it holds."""

    images: float
    epochs: int
    transfer: dict[str, Any]
    learning_rate: float
    """For batches of 32."""

    def head_epochs(self, epochs: int) -> int:
        """Return how many of so many epochs are the classifier's alone: of fewer than proposed at most half."""
        proposed = int(self.transfer["head_epochs"])
        return proposed if epochs >= self.epochs else min(proposed, epochs // 2)


# Few images cannot move millions of weights anywhere good: the fewer, the more stays as it came.
DEFAULTS = (
    Defaults(400, 30, {"head_epochs": 20, "rate_decay": 0.5, "frozen_norm": True}, 0.002),
    Defaults(4_000, 20, {"head_epochs": 8, "rate_decay": 0.7, "frozen_norm": True}, 0.005),
    Defaults(float("inf"), 12, {"head_epochs": 2, "rate_decay": 0.8, "frozen_norm": False}, 0.01),
)


def resolve(said: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return what the caller said with the weights that it means, and what to tell the user of them.

    Network, options, image size and preprocessing are those that the weights were published with, where the caller did
    not say. Nothing is changed where no weights are wanted, or it is not yet said which. Raises UserError where they
    cannot be had.
    """
    wanted = said.get("transfer", {}).get("weights", "")
    if wanted == NONE:
        return {**said, "transfer": {**said["transfer"], "weights": ""}}, []
    if wanted in ("", AUTO):
        return said, []
    found = elsewhere.opened(published.find(Spec.parse(wanted)), said.get("network"))
    proposal: dict[str, Any] = {
        "network": found.network,
        "options": found.options,
        "data": _data(found, said.get("data", {})),
    }
    filled = {
        "weights": found.about.source,
        "sha256": durable.sha256(found.about.file),
        "licence": licences.text(found.about.licence, found.about.source),
    }
    merged = recipes.merge(proposal, said, {"transfer": filled})
    warning = [found.warning] if found.warning else []
    return merged, [*warning, f"Begins with the weights of {found.about.source}."]


def as_recorded(said: dict[str, Any], recorded: dict[str, Any]) -> dict[str, Any]:
    """Return what the caller of a run that goes on said, with the weights as its recipe has them where both mean one.

    The caller may say "auto", or leave the tag out, as when the run began.
    """
    wanted, used = (each.get("transfer", {}).get("weights", "") for each in (said, recorded))
    same = wanted in (used, AUTO) or used.startswith(f"{wanted}.") or (wanted == NONE and not used)
    if not wanted or not same:
        return said
    return {**said, "transfer": {**said["transfer"], "weights": used}}


def _data(found: elsewhere.Weights, said: dict[str, Any]) -> dict[str, Any]:
    """Return what is done to images before these weights, for the size and the channels that the caller may have said.

    At another size the crop keeps its share of the resized image. Another number of channels is normalised by the mean
    of those that the weights know.
    """
    data = found.preprocessing.to_dict()
    if size := said.get("image_size"):
        data["resize"] = round(data["resize"] * size / data["image_size"])
    if (channels := said.get("channels", data["channels"])) != data["channels"]:
        for name in ("mean", "std"):
            data[name] = [round(sum(data[name]) / len(data[name]), 4)] * channels
    return data


def suiting(images: int) -> Defaults:
    """Return the defaults of fine-tuning on so many images."""
    return next(each for each in DEFAULTS if images <= each.images)


def fine_tuned(proposal: dict[str, Any], said: dict[str, Any], images: int) -> tuple[dict[str, Any], str]:
    """Return a proposal for random weights as one that suits fine-tuning on so many images, and why, in words.

    What the caller said stays in force; of fewer epochs than proposed at most half are the classifier's alone.
    """
    suits = suiting(images)
    batch_size = said.get("batch_size", proposal["batch_size"])
    epochs = said.get("epochs", suits.epochs)
    transfer = {**suits.transfer, "head_epochs": suits.head_epochs(epochs)}
    rate = float(f"{suits.learning_rate * batch_size / 32:.3g}")
    changed = {"epochs": epochs, "transfer": transfer, "optimizer": {"learning_rate": rate}, "label_smoothing": 0.1}
    chosen = {**transfer, **said.get("transfer", {})}
    why = (
        f"Fine-tuning on {images:,} images: {chosen['head_epochs']} epochs of the classifier alone, then "
        f"{epochs - chosen['head_epochs']} of all layers, each stage at {chosen['rate_decay']:g} of the rate of the "
        f"one behind it{', batch norm as it came' if chosen['frozen_norm'] else ''}."
    )
    return recipes.merge(proposal, changed), why


def load(network: nn.Module, recipe: Recipe) -> list[str]:
    """Put the weights that a recipe names in a network; return what to tell the user.

    Raises UserError where they cannot be had, are others than when the run was planned, or do not fit.
    """
    transfer = recipe.transfer
    found = elsewhere.find(transfer.weights, recipe.network)
    if durable.sha256(found.about.file) != transfer.sha256:
        raise UserError(
            f"{found.about.source} is another file than when this run was planned.\n"
            "Put that one back, or start a new run with another --out."
        )
    if not found.load_into(network, new_classes=True):
        return []
    return ["The classifier is new: the weights' own is for other classes."]
