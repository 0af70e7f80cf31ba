"""Weights that nobody named: whether they serve, and which suit the data, the machine, and what can be had."""

from __future__ import annotations

from typing import Any

from resnext import catalog
from resnext.errors import UserError
from resnext.training import defaults, pretrained
from resnext.training.defaults import Sample
from resnext.weights import architectures, published
from resnext.weights.spec import Spec

CANDIDATES = (
    Spec("torchvision", "resnext50_32x4d"),
    Spec("torchvision", "resnet50"),
    Spec("torchvision", "resnet18"),
)
"""The best first."""

FREE = ("network", "options", "transfer")
"""Sections of a recipe: who fills one in has decided with what a run begins."""


def is_asked(said: dict[str, Any]) -> bool:
    """Whether the caller wants weights chosen."""
    return bool(said.get("transfer", {}).get("weights") == pretrained.AUTO)


def serve(said: dict[str, Any], looks: Sample, *, from_file: bool) -> bool:
    """Whether a run begins with weights made elsewhere although nobody said so.

    It does for photos, unless a recipe or the caller decides what is trained. Networks for images as small as CIFAR's
    have no such weights.
    """
    return not from_file and looks.side > defaults.SMALL_IMAGE and not any(said.get(name) for name in FREE)


def choose(said: dict[str, Any], images: int, device: str) -> tuple[dict[str, Any], list[str]]:
    """Return what the caller said with the weights that suit so many images, and what to tell the user of them.

    Taken are those that promise the best result of a run within half an hour: what is in a cache, or else what can be
    fetched; then what is in a cache and takes longer; then none.
    """
    specs = _candidates(said.get("network"))
    if not specs:
        return _without(said, f"There are no weights for {said['network']} that are known here")
    minutes = {spec: _minutes(spec, said, images, device) for spec in specs}
    quick = [spec for spec in specs if minutes[spec] <= defaults.MINUTES] or [min(specs, key=lambda s: minutes[s])]
    here = {spec: cached for spec in specs if (cached := published.cached(spec))}
    taken, failure = next((here[spec] for spec in quick if spec in here), None), ""
    if taken is None:
        try:
            taken = Spec.parse(published.find(quick[0]).source)
        except UserError as error:
            failure = str(error).splitlines()[0].rstrip(".")
            taken = next((here[spec] for spec in specs if spec in here), None)
    if taken is None:
        return _without(said, f"No weights are in the cache, and none can be fetched ({failure})")
    spec = Spec(taken.kind, taken.name)
    filled, notes = pretrained.resolve({**said, "transfer": {**said.get("transfer", {}), "weights": str(taken)}})
    how = "they are in the cache" if spec in here else "they could be fetched"
    why = f"Weights chosen as {how} and suit photos; about {minutes[spec]:.0f} minutes (--weights none: random ones)."
    return filled, [*notes, why]


def _candidates(network: str | None) -> list[Spec]:
    if network is None:
        return list(CANDIDATES)
    return [Spec("torchvision", name) for name, ours in architectures.OURS["torchvision"].items() if ours == network]


def _without(said: dict[str, Any], why: str) -> tuple[dict[str, Any], list[str]]:
    transfer = {**said.get("transfer", {}), "weights": ""}
    return {**said, "transfer": transfer}, [f"{why}. It begins with random ones."]


def _minutes(spec: Spec, said: dict[str, Any], images: int, device: str) -> float:
    """Return how long fine-tuning will take about: two views of each image once, then all layers in each epoch."""
    suits = pretrained.suiting(images)
    epochs = said.get("epochs", suits.epochs)
    passes = 2 + 3 * (epochs - suits.head_epochs(epochs))
    resolved = catalog.resolve(architectures.OURS["torchvision"][spec.name])
    assert resolved.variant is not None
    side = said.get("data", {}).get("image_size", resolved.image_size)
    macs: float = resolved.variant.macs * (side / resolved.image_size) ** 2
    return float(macs * images * passes / defaults.throughput(device, said) / 60)
