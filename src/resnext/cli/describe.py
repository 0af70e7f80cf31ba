"""`resnext describe`: what a network is made of, or what a bundle holds."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from resnext.cli.output import Output, print_json, print_table


def describe(
    what: str,
    /,
    *,
    image_size: int | None = None,
    classes: int | None = None,
    channels: int | None = None,
    layers: Annotated[bool, Parameter(negative="")] = False,
    output: Output = Output(),
) -> None:
    """Tell parameters, multiply-adds and shapes of a network, by stage and layer, or what a bundle holds.

    Example: resnext describe resnext50_32x4d --image-size 320 --layers

    Parameters
    ----------
    what
        The name of a network, or a bundle or run.
    image_size
        Side of the input in pixels; as published, or as in the bundle, where it is not given.
    classes
        Number of classes; as published, or as in the bundle, where it is not given.
    channels
        Channels of the input; 3, or as in the bundle, where it is not given.
    layers
        Show every layer as well; --json always does.
    """
    with _without_collector():
        from resnext.inference.describe import describe as tell

        told = tell(what, image_size=image_size, num_classes=classes, in_channels=channels)
        if output.json:
            print_json(told)
            return
        if "bundle" in told:
            _print_bundle(told["bundle"])
        _print_network(told)
        _print_costs("stage", told["stages"])
        if layers:
            print()
            _print_costs("layer", told["layers"])


@contextmanager
def _without_collector() -> Iterator[None]:
    """Keep Python's garbage collector from looking, again and again, through all that torch and networks hold.

    It finds nothing there, and takes a tenth of the command's time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _print_network(told: dict[str, Any]) -> None:
    print(f"{told['name']}  ({told['paper']})")
    print(f"{told['parameters']:,} parameters, {told['macs']:,} multiply-adds at {told['image_size']} pixels")
    if told["training_parameters"] != told["parameters"]:
        print(f"{told['training_parameters']:,} parameters in training, with the auxiliary heads")
    print(f"depth {told['depth']}, {told['activations']:,} activations\n")


def _print_costs(what: str, costs: list[dict[str, Any]]) -> None:
    """Print one row a stage or layer; layers have a kind."""
    kind = ("kind",) if "kind" in costs[0] else ()
    numbers = ("parameters", "macs", "activations")
    rows = [
        (
            cost["name"],
            *(cost[key] for key in kind),
            "×".join(map(str, cost["output"])),
            *(f"{cost[key]:,}" for key in numbers),
        )
        for cost in costs
    ]
    columns = (what, *kind, "output", "parameters", "multiply-adds", "activations")
    print_table(columns, rows, right=range(len(columns) - len(numbers), len(columns)))


def _print_bundle(told: dict[str, Any]) -> None:
    print(f"{Path(told['path'])}  identity {told['identity'][:16]}")
    print(
        f"{len(told['classes'])} classes: {', '.join(told['classes'][:20])}{' …' if len(told['classes']) > 20 else ''}"
    )
    results = told["results"]
    if {"top1", "images", "data"} <= results.keys() and isinstance(results["top1"], float):
        print(f"top-1 {results['top1']:.4f} on {results['images']} images: {results['data']}")
    print()
