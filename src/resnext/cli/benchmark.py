"""`resnext benchmark`: ours and its peers side by side on this machine."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import Parameter

from resnext.cli.lists import names, numbers
from resnext.cli.output import Output, note, print_json, print_table
from resnext.cli.progress import Display
from resnext.errors import UserError

if TYPE_CHECKING:
    from resnext.benchmarking.race import Race


@Parameter(name="*")
@dataclass(frozen=True)
class Field:
    """Who takes part, and how."""

    against: str = "eager,compile,onnxruntime,openvino"
    """Peers: some of eager, compile, onnxruntime, openvino."""
    precision: str | None = None
    """Some of fp32, bf16, int8; that of the bundle's engine, or else all, where it is not given."""
    batch: str = "1,4,16"
    """Batch sizes that may be tried; every contender is timed at its best."""
    threads: int | None = None
    """Threads of every contender; one a core where it is not given."""


@Parameter(name="*")
@dataclass(frozen=True)
class Effort:
    """How long."""

    rounds: int = 7
    """Turns of every contender."""
    seconds: float = 1.0
    """Length of a turn."""
    minutes: float = 1.0
    """Time for tuning ours, a precision, where there is no engine."""
    seed: int = 0


@Parameter(name="*")
@dataclass(frozen=True)
class Images:
    """What is shown to the networks."""

    image_size: int | None = None
    """Side in pixels; for a network by its name, as published where it is not given."""
    calibration: str | None = None
    """Images that calibrate int8, as for optimize; a bundle's own, or crops of two photos, where it is not given."""


def benchmark(
    what: str,
    /,
    *,
    out: Path | None = None,
    field: Field = Field(),
    effort: Effort = Effort(),
    images: Images = Images(),
    output: Output = Output(),
) -> None:
    """Time a bundle, or a network with fresh weights, beside PyTorch, ONNX Runtime and OpenVINO.

    Example: resnext benchmark resnext50_32x4d --against eager,openvino --precision bf16

    Each contender runs in a process of its own, at its best batch size and streams, and all take turns. Where a
    bundle has no optimised engine of a precision, ours is tuned on the spot; that is thrown away afterwards.

    Parameters
    ----------
    what
        A bundle, a run, or the name of a network.
    out
        Folder for benchmark.json and benchmark.png; runs/benchmark-NAME where it is not given.
    """
    from resnext.benchmarking import race

    plan = race.Plan(
        what,
        against=names(field.against),
        precisions=None if field.precision is None else names(field.precision),
        batches=tuple(sorted(numbers("batch", field.batch))),
        threads=field.threads,
        **vars(effort),
        **vars(images),
    )
    folder = out or _place(what)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder}: {error.strerror}. Choose another folder.") from error
    with Display() as display:

        def tell(what: str, done: int, total: int) -> None:
            if what == race.TURNS:
                display.bar(what, done, total)
            else:
                display.say(f"{what[:1].upper()}{what[1:]} ({done + 1} of {total})")

        done = race.run(plan, tell)
    _show(done, folder, output)


def _place(what: str) -> Path:
    return Path("runs") / f"benchmark-{Path(what).resolve().name if Path(what).is_dir() else what}"


def _show(done: Race, folder: Path, output: Output) -> None:
    """Write the figures and the chart, and print the table."""
    from resnext.benchmarking import chart, report

    for line in done.notes:
        note(line)
    command = ["resnext", *sys.argv[1:]]
    place = report.write(done, folder, command)
    try:
        chart.draw(done, folder / "benchmark.png")
    except UserError as why:
        note(str(why))
    if output.json:
        print_json(report.to_dict(done, command))
        return
    print_table(report.COLUMNS, report.table(done), right=report.RIGHT)
    note(f"{report.INPUTS}\nAll figures: {shlex.quote(str(place))}")
