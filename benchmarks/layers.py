"""Where does the time of an OpenVINO engine go, layer by layer, and what would the machine allow?

    python benchmarks/layers.py [--network resnext50_32x4d] [--precision int8] [--batch 8] [--minutes 2]

The network as it stands and rewritten as the tuner chooses, its groups merged and its maps stacked, in one stream,
profiled by OpenVINO itself (which costs a little, so that the sums are above what an engine needs). Layers are summed
by stage and kind. The machine's limit is the rate at which it computes a dense 3×3 convolution of 256 channels in this
precision, the best it does on the shapes of this network, applied to the multiply-adds that the grouped network needs:
zeros that merging adds, data movement and all that is not a convolution are not in it.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from environment import print_environment
from torch import nn

from resnext import catalog, complexity, machine
from resnext.data.preprocessing import Preprocessing
from resnext.inference import quantization, tuning
from resnext.inference.engines import openvino
from resnext.inference.engines.openvino import Settings
from resnext.inference.options import Workshop, describe

if TYPE_CHECKING:
    from resnext.inference.engines.openvino import Graph

CALIBRATING = 16
CHANNELS, SIDE = 256, 28
"""Of the convolution that measures the machine's rate."""


def graph_of(network: nn.Module, preprocessing: Preprocessing, precision: str) -> Graph:
    """Convert a network, and quantise it on random pixels where that is asked for: speed does not depend on them."""
    graph = openvino.convert(network, preprocessing)
    if precision != "int8":
        return graph
    side = preprocessing.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (CALIBRATING, side, side, preprocessing.channels), np.uint8)
    return quantization.quantise(graph, iter([pixels]), CALIBRATING)


def dense_rate(settings: Settings) -> float:
    """Return the multiply-adds a second, 10⁹ of them, of a dense 3×3 convolution with others before and behind it."""
    convs = [nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False) for _ in range(4)]
    network = nn.Sequential(nn.Conv2d(3, CHANNELS, 1), *convs, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    times = openvino.layer_times(graph_of(network, Preprocessing(SIDE, SIDE), settings.precision), settings)
    macs = settings.batch * CHANNELS * CHANNELS * 9 * SIDE * SIDE
    return macs / min(times[str(place)] for place in range(2, 5)) / 1e6


def kind_of(name: str, kinds: Mapping[str, str]) -> str:
    """Return the row of the table that a layer counts in."""
    if name not in kinds:
        return "everything else (pooling, sums, reorders, normalisation, conversions)"
    stage = re.match(r"stem|stage\d|head", name)
    return f"{stage[0] if stage else name.partition('.')[0]} {kinds[name]}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnext50_32x4d")
    parser.add_argument("--precision", default="int8", choices=["fp32", "bf16", "int8"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=2.0)
    options = parser.parse_args()
    torch.manual_seed(0)
    network = catalog.create(options.network).eval()
    side = catalog.resolve(options.network).image_size
    preprocessing = Preprocessing(side, side)
    workshop = Workshop(network, preprocessing, graph_of(network, preprocessing, options.precision))
    choice = tuning.tune(workshop, options.precision, minutes=options.minutes)
    settings = Settings(options.precision, options.batch, 1, machine.cores())
    graphs = workshop.graph_of({}), workshop.graph_of(choice.option.merged, choice.option.stacked)
    profiles = [openvino.layer_times(graph, settings) for graph in graphs]
    costs = {layer.name: layer for layer in complexity.count(network, side).layers}
    convs = {name: one for name, one in network.named_modules() if isinstance(one, nn.Conv2d | nn.Linear)}
    kinds = {
        name: "linear"
        if isinstance(one, nn.Linear)
        else f"{one.kernel_size[0]}×{one.kernel_size[1]}{' grouped' if one.groups > 1 else ''}"
        for name, one in convs.items()
    }
    rows = defaultdict[str, list[float]](lambda: [0.0, 0.0, 0.0])
    for column, times in enumerate(profiles, 1):
        for name, milliseconds in times.items():
            rows[kind_of(name, kinds)][column] += milliseconds / options.batch
    for name in convs:
        rows[kind_of(name, kinds)][0] += costs[name].macs / 1e6
    rate = dense_rate(settings)
    print_environment()
    how = f"batch {options.batch}, one stream, {settings.threads} threads"
    print(f"{options.network}, {side} px, OpenVINO {options.precision}, {how}")
    print(f"the tuner's choice: {describe(choice.option)}, {choice.rate:.1f} img/s; plain {choice.plain_rate:.1f}")
    print("groups merged: " + ", ".join(f"{name} ×{factor}" for name, factor in choice.option.merged.items()), "\n")
    print("| layers | 10⁶ multiply-adds | ms an image, as it stands | ms, rewritten | 10⁹ multiply-adds/s, rewritten |")
    print("|---|---:|---:|---:|---:|")
    total = [sum(row[column] for row in rows.values()) for column in range(3)]
    for name, (macs, first, second) in [*sorted(rows.items()), ("**all**", total)]:
        speed = f"{macs / second:.0f}" if macs and second else ""
        print(f"| {name} | {macs:.0f} | {first:.2f} | {second:.2f} | {speed} |")
    limit = total[0] / rate
    print(
        f"\ndense 3×3 of {CHANNELS} channels: {rate:.0f} · 10⁹ multiply-adds/s, so that {limit:.2f} ms an image "
        f"({1e3 / limit:.0f} img/s) are the machine's limit; rewritten it is at {limit / total[2]:.2f} of it."
    )


if __name__ == "__main__":
    main()
