"""What a run's bundle says of itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from resnext import bundle, catalog
from resnext.data.preprocessing import Preprocessing
from resnext.training.recipe import Recipe

if TYPE_CHECKING:
    from resnext.training.plan import Plan


def bundle_contents(planned: Plan, preprocessing: Preprocessing, results: dict[str, Any]) -> bundle.Contents:
    """Return what the run's bundle says of itself, with these results."""
    licence = planned.recipe.transfer.licence
    origin: dict[str, Any] = {"licence": f"{licence} They were trained further here."} if licence else {}
    return bundle.Contents(
        **origin,
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
