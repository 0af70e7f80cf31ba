"""`resnext describe`: what a network is made of, or what a bundle holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from resnext.cli.output import Output, print_json, print_table


def describe(
    what: str,
    /,
    *,
    image_size: int | None = None,
    classes: int | None = None,
    channels: int | None = None,
    output: Output = Output(),
) -> None:
    """Tell parameters, multiply-adds and shapes of a network, by stage and layer, or what a bundle holds.

    Example: resnext describe resnext50_32x4d --image-size 320

    Parameters
    ----------
    what
        The name of a network, or a bundle or run.
    image_size
        Side of the input in pixels; as published where it is not given.
    classes
        Number of classes; as published where it is not given.
    channels
        Channels of the input; 3 where it is not given.
    """
    from resnext.inference.describe import describe as tell

    told = tell(what, image_size=image_size, num_classes=classes, in_channels=channels)
    if output.json:
        print_json(told)
        return
    if "bundle" in told:
        _print_bundle(told["bundle"])
    _print_network(told)


def _print_network(told: dict[str, Any]) -> None:
    print(f"{told['name']}  ({told['paper']})")
    print(f"{told['parameters']:,} parameters, {told['macs']:,} multiply-adds at {told['image_size']} pixels")
    print(f"depth {told['depth']}, {told['activations']:,} activations\n")
    print_table(
        ("stage", "output", "parameters", "multiply-adds", "activations"),
        [
            (
                s["name"],
                "×".join(map(str, s["output"])),
                f"{s['parameters']:,}",
                f"{s['macs']:,}",
                f"{s['activations']:,}",
            )
            for s in told["stages"]
        ],
        right=(2, 3, 4),
    )


def _print_bundle(told: dict[str, Any]) -> None:
    print(f"{Path(told['path'])}  identity {told['identity'][:16]}")
    print(
        f"{len(told['classes'])} classes: {', '.join(told['classes'][:20])}{' …' if len(told['classes']) > 20 else ''}"
    )
    results = told["results"]
    if {"top1", "images", "data"} <= results.keys() and isinstance(results["top1"], float):
        print(f"top-1 {results['top1']:.4f} on {results['images']} images: {results['data']}")
    print()
