"""What a network is made of, by its name or by the bundle that holds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from resnext import complexity
from resnext.bundle import Bundle


def describe(
    what: str, *, image_size: int | None = None, num_classes: int | None = None, in_channels: int | None = None
) -> dict[str, Any]:
    """Describe a network of the catalogue, or the network of a bundle.

    Sizes that are None are the published ones and 3 channels, or those of the bundle.
    For a bundle the dict has `bundle` too: path, identity, classes, preprocessing, results, recipe.
    """
    given = {"image_size": image_size, "num_classes": num_classes, "in_channels": in_channels}
    sizes = {size: value for size, value in given.items() if value is not None}
    if not Path(what).is_dir():
        return complexity.describe(what, **sizes)
    opened = Bundle.open(what)
    contents = opened.contents
    sizes = {
        "image_size": contents.preprocessing.image_size,
        "num_classes": len(contents.classes),
        "in_channels": contents.preprocessing.channels,
    } | sizes
    told = complexity.describe(contents.network, **sizes, **contents.options)
    told["bundle"] = {
        "path": str(opened.path),
        "identity": opened.identity,
        "classes": list(contents.classes),
        "preprocessing": contents.preprocessing.to_dict(),
        "results": contents.results,
        "recipe": contents.recipe,
        "licence": contents.licence,
        "software": opened.software,
        "machine": opened.machine,
    }
    return told
