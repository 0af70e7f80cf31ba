"""`resnext optimize`: the fastest engine for a bundle, proved, and kept in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from resnext.cli.output import Output, note, print_json, print_table
from resnext.cli.progress import Display

SHOWN = 12
COLUMNS = ("engine", "precision", "groups merged", "maps stacked", "batch", "streams", "img/s", "")


@Parameter(name="*")
@dataclass(frozen=True)
class Looking:
    """How long, and how strictly."""

    minutes: float = 2.0
    """Time for tuning; the proof comes on top."""
    unproved: Annotated[bool, Parameter(negative="")] = False
    """Accept int8 although there are too few images to prove it; the bundle then says so."""
    retune: Annotated[bool, Parameter(negative="")] = False
    """Time again what was chosen before on this machine."""
    seed: int = 0
    """Draws the images."""


def optimize(
    bundle: Path,
    /,
    *,
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto",
    calibration: str | None = None,
    looking: Looking = Looking(),
    output: Output = Output(),
) -> None:
    """Make a bundle fast on this machine, and prove on real images that its answers stay.

    Example: resnext optimize runs/flowers --precision int8

    Parameters
    ----------
    bundle
        A bundle or a run. `predict` and `evaluate` use the engine from then on, on machines like this one.
    precision
        auto is bf16 where the processor has it in hardware, else fp32; int8 is the fastest and needs images.
    calibration
        Images that calibrate and prove it: as for training, or a folder of images without labels. Those of the
        bundle's own run where it is not given; never its test images.
    """
    from resnext.inference.optimisation import Effort, optimize

    with Display() as display:
        done = optimize(
            bundle, precision=precision, calibration=calibration, effort=Effort(**vars(looking)), say=display.say
        )
    for line in done.notes:
        note(line)
    if output.json:
        print_json(done.to_dict())
        return
    rows = sorted(done.choice.tried, key=lambda row: (not row.get("final"), -row["images_a_second"]))
    print_table(COLUMNS, [_cells(row) for row in rows[:SHOWN]], right=(4, 5, 6))
    gain = done.choice.rate / done.choice.plain_rate
    note(
        f"{done.record.name}{', unproved' if done.record.unproved else ''}: {done.choice.rate:.1f} img/s, "
        f"{gain:.2f} × the plain engine.\n{done.certificate.summary}\n{done.verdict.reason}"
    )


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    batch = row.get("batch", "compiled" if row.get("compile") else "eager")
    timed = "in turns" if row.get("final") else ""
    stacked = f"up to {row['stacked']}×{row['stacked']}" if row.get("stacked") else "none"
    how = row["engine"], row["precision"], row["merging"], stacked, str(batch), str(row.get("streams", ""))
    return *how, f"{row['images_a_second']:.1f}", timed
