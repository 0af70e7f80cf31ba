"""A race as people and programs read it: cells of a table, JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from resnext import durable, machine
from resnext.benchmarking.contenders import BASE, OURS, PRECISIONS
from resnext.benchmarking.figures import Figures, ratio
from resnext.benchmarking.race import Race

SCHEMA = 1
INPUTS = (
    "Peers take normalised float32 images N×C×H×W, made outside the timing, as their users do; "
    "ours takes uint8 pixels N×H×W×C, and normalising them is inside its timing."
)
PACKAGES = ("openvino", "nncf", "onnxruntime", "onnx")
COLUMNS = (
    "contender",
    "batch × streams",
    "img/s",
    "range",
    "ours is",
    f"× {BASE.name.removeprefix('torch ')}",
    "ms p50",
    "ms p95",
    "peak MiB",
    "agreement",
    "remark",
)
RIGHT = tuple(range(1, 10))
NONE = "–"


def ours(race: Race, precision: str) -> Figures | None:
    """Return our figures of a precision; None where we do not take part in it."""
    return _find(race, lambda one: one.contender.peer == OURS and one.contender.precision == precision)


def base(race: Race) -> Figures | None:
    """Return the figures of eager torch in fp32 and NCHW; None where it does not take part."""
    return _find(race, lambda one: one.contender == BASE)


def table(race: Race) -> list[tuple[str, ...]]:
    """Return one row of cells, as `COLUMNS` names them, for each contender: by precision, ours first."""
    ordered = sorted(race.figures, key=lambda one: PRECISIONS.index(one.contender.precision))
    return [_row(race, one) for one in ordered]


def markdown(rows: Sequence[Sequence[str]], columns: Sequence[str] = COLUMNS) -> str:
    """Return a table in Markdown; the first and the last column are aligned to the left, numbers to the right."""
    rules = ["---", *("---:" for _ in columns[2:]), "---"]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (columns, rules, *rows))


def to_dict(race: Race, command: Sequence[str]) -> dict[str, Any]:
    """Return the race as JSON holds it, with everything that its figures depend on."""
    plan = race.plan
    return {
        "schema": SCHEMA,
        "subject": plan.what,
        "network": race.network,
        "image_size": race.image_size,
        "command": list(command),
        "seed": plan.seed,
        "rounds": plan.rounds,
        "seconds": plan.seconds,
        "threads": plan.threads or machine.cores(),
        "machine": machine.description(),
        "software": software(),
        "inputs": INPUTS,
        "notes": list(race.notes),
        "contenders": [_contender(race, one) for one in race.figures],
    }


def write(race: Race, folder: Path, command: Sequence[str]) -> Path:
    """Write `benchmark.json` into a folder, which is made where it is not there; return its place."""
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / "benchmark.json"
    durable.write_text(place, json.dumps(to_dict(race, command), indent=2, ensure_ascii=False) + "\n")
    return place


def software() -> dict[str, str]:
    """Return the versions of Python and of every library that takes part and is installed."""
    versions = machine.software()
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _find(race: Race, wanted: Any) -> Figures | None:
    return next(filter(wanted, race.figures), None)


def _contender(race: Race, one: Figures) -> dict[str, Any]:
    told: dict[str, Any] = {"name": one.contender.name, **one.contender.to_dict(), "failure": one.failure or None}
    if one.failure:
        return told
    low, high = one.spread
    reference = base(race)
    return told | {
        "images_a_second": {"median": one.rate, "min": low, "max": high, "rounds": list(one.rates)},
        "milliseconds": {"p50": one.latency(0.5), "p95": one.latency(0.95), "images": len(one.latencies)},
        "peak_memory_mib": one.memory_mib,
        "ours_is": ratio(ours(race, one.contender.precision), one),
        "times_base": None if reference is None else ratio(one, reference),
        "agreement": one.agreement,
        "likeness": one.likeness,
        "same_function": one.same_function,
        "settings": one.settings,
        "tried": list(one.tried),
    }


def _row(race: Race, one: Figures) -> tuple[str, ...]:
    if one.failure:
        return (one.contender.name, *[NONE] * 9, f"did not run: {one.failure}")
    is_ours, reference = one.contender.peer == OURS, base(race)
    low, high = one.spread
    settings = one.settings or {}
    return (
        one.contender.name,
        f"{settings.get('batch', NONE)} × {settings.get('streams', 1)}",
        rate(one.rate),
        f"{rate(low)} to {rate(high)}",
        NONE if is_ours else times(ratio(ours(race, one.contender.precision), one)),
        times(None if reference is None else ratio(one, reference)),
        milliseconds(one.latency(0.5)),
        milliseconds(one.latency(0.95)),
        f"{one.memory_mib:,.0f}",
        f"{one.agreement:.3f}",
        "" if one.same_function else f"computes something else (correlation {one.likeness:.3f})",
    )


def rate(images: float) -> str:
    """Write images a second in three or four digits."""
    return f"{images:.1f}" if images < 100 else f"{images:,.0f}"


def times(factor: float | None) -> str:
    """Write a ratio in three digits."""
    if factor is None:
        return NONE
    return f"{factor:.2f} ×" if factor < 10 else f"{factor:.1f} ×"


def milliseconds(value: float | None) -> str:
    """Write milliseconds in about three digits."""
    if value is None:
        return NONE
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"
