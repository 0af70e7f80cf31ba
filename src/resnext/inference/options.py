"""What an engine of one network can be made of: how its graph is rewritten, compiled and run, and who builds it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from resnext import machine
from resnext.engine import Engine
from resnext.inference.engines import openvino
from resnext.inference.engines.openvino import OpenVINOEngine, Precision, Settings

if TYPE_CHECKING:
    import torch

    from resnext.data.preprocessing import Preprocessing
    from resnext.inference.engines.openvino import Graph

BATCHES = (4, 1, 16, 8, 2, 32)
"""Images of a piece, in the order of trial."""


@dataclass(frozen=True)
class Option:
    """An engine that could be built.

    `settings` are the fields of `Settings`, or the keywords of `CompiledEngine`. How it is rewritten: `merged` says how
    many groups of a layer are one, which is called `merging`; maps of `stacked` × `stacked` pixels and smaller ones are
    stacked for 1×1 convolutions, 0 if none are.
    """

    kind: Literal["openvino", "torch"]
    settings: Mapping[str, Any]
    merged: Mapping[str, int] = field(default_factory=dict)
    merging: str = "none"
    stacked: int = 0

    @property
    def row(self) -> dict[str, Any]:
        """What a table says of it."""
        told = {"engine": self.kind, "precision": self.settings["precision"], "merging": self.merging}
        told["stacked"] = self.stacked
        names = ("batch", "streams", "threads", "rest", "compile", "device", "shared")
        return told | {name: self.settings[name] for name in names if name in self.settings}


class Workshop:
    """Builds the engines of one network: `graph` is None where OpenVINO takes no part, and may be quantised."""

    def __init__(
        self, network: torch.nn.Module, preprocessing: Preprocessing, graph: Graph | None, *, device: str = "cpu"
    ) -> None:
        self.network = network
        self.preprocessing = preprocessing
        self.graph = graph
        self.device = device
        self._rewritten: dict[str, Graph] = {}

    def graph_of(self, merged: Mapping[str, int], stacked: int = 0) -> Graph:
        """Return the graph with groups merged and maps stacked, which is made once."""
        assert self.graph is not None
        chosen = {name: factor for name, factor in merged.items() if factor > 1}
        key = json.dumps([chosen, stacked], sort_keys=True)
        if key not in self._rewritten:
            graph = openvino.merge_groups(self.graph, chosen) if chosen else self.graph
            self._rewritten[key] = openvino.stack_maps(graph, stacked) if stacked else graph
        return self._rewritten[key]

    def engine(self, option: Option) -> Engine:
        """Build an option's engine."""
        if option.kind == "openvino":
            graph = self.graph_of(option.merged, option.stacked)
            return OpenVINOEngine.from_model(graph, Settings(**option.settings))
        from resnext.inference.engines.compiled import CompiledEngine

        return CompiledEngine(self.network, self.preprocessing, merged=option.merged, **option.settings)


def factor_for(groups: int, channels: int, width: int) -> int:
    """Return how many groups of so many channels to merge: as many as divide them and stay within `width`."""
    return max(
        factor
        for factor in range(1, groups + 1)
        if groups % factor == 0 and (factor * channels <= width or factor == 1)
    )


def openvino_settings(precision: Precision) -> list[Settings]:
    """Return settings worth a trial on this machine, the likeliest first."""
    cores = machine.cores()
    streams = sorted(
        {cores, 1, *(count for count in (2, 4, 8, 16) if count < cores and cores % count == 0)}, reverse=True
    )
    rest: Literal["fp32", "bf16"] = "bf16" if precision == "int8" and machine.has_fast_bfloat16() else "fp32"
    return [Settings(precision, batch, count, cores, rest) for batch in BATCHES for count in streams]


def torch_options(precision: Precision, device: str) -> list[Option]:
    """Return torch's engines: rewritten but not compiled, and compiled."""
    shapes = [1, 8, 32] if device == "cpu" else [1, 8, 64, 256]
    settings = {"precision": precision, "device": device, "batch_shapes": shapes, "shared": False}
    return [Option("torch", {**settings, "compile": compiled}) for compiled in (False, True)]


def describe(option: Option) -> str:
    """Say what an option is."""
    row = option.row
    if option.kind == "torch":
        how = "compiled" if row["compile"] else "eager"
        return f"torch {row['precision']} {how} on {row['device']}, merged: {option.merging}"
    rest = f" with {row['rest']}" if row["precision"] == "int8" else ""
    stacked = f", maps stacked up to {option.stacked}×{option.stacked}" if option.stacked else ""
    return (
        f"OpenVINO {row['precision']}{rest}, batch {row['batch']} × {row['streams']} streams, "
        f"merged: {option.merging}{stacked}"
    )
