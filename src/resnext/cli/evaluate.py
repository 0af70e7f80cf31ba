"""`resnext evaluate`: what a bundle scores on labelled images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import Parameter

from resnext.cli.inference import Inference
from resnext.cli.output import Output, note, print_json, print_table
from resnext.cli.progress import Display
from resnext.errors import UserError

if TYPE_CHECKING:
    from resnext.evaluation.metrics import Scores

WORST = 20


@Parameter(name="*")
@dataclass(frozen=True)
class Seen:
    """What is seen of each image."""

    crops: int = 1
    """1, the centre of each image, or 10: its corners, its centre, and their mirror images."""
    scales: str | None = None
    """Sides in pixels, such as 224,256,384: whole images, the shorter side at each of these, and mirrored."""
    max_unreadable: float = 0.01
    """Share of images that may be unreadable; they are named and counted."""


@Parameter(name="*")
@dataclass(frozen=True)
class Detail:
    """What is asked beyond the scores."""

    report: Path | None = None
    """Folder for a page with pictures, and for all figures as JSON and Parquet."""
    slice_by: str | None = None
    """A column of DATA's CSV, or a number: the folder of each image so deep below DATA, from 1."""
    against: Path | None = None
    """Another bundle: is one better on these images, and where do they differ?"""


def evaluate(
    bundle: Path,
    data: str,
    /,
    *,
    seen: Seen = Seen(),
    detail: Detail = Detail(),
    on: Inference = Inference(),
    output: Output = Output(),
) -> None:
    """Score a bundle or a run on labelled images: top-1, top-5, loss, and each class.

    Example: resnext evaluate runs/flowers photos/

    The best numbers of papers are averages over several views of each image, which takes longer; add --crops 10, or
    --scales 224,256,384.

    Parameters
    ----------
    bundle
        A bundle or a run.
    data
        Data as `train` takes them; their test split where there is one.
    """
    from resnext.inference.evaluation import evaluate as score

    if detail != Detail():
        _in_detail(bundle, data, seen, detail, on, output)
        return
    with Display() as display:
        scores = score(
            bundle,
            data,
            crops=seen.crops,
            scales=_numbers(seen.scales),
            max_unreadable=seen.max_unreadable,
            progress=lambda done, total: display.bar("evaluating", done, total),
            device=on.device,
            precision=on.in_torch,
        )
    for line in scores.notes:
        note(line)
    if output.json:
        print_json(scores.to_dict())
        return
    _print(scores)


def _in_detail(bundle: Path, data: str, seen: Seen, detail: Detail, on: Inference, output: Output) -> None:
    from resnext.inference.files import load
    from resnext.inference.reporting import Wanted, examine

    if seen.crops != 1 or seen.scales is not None:
        raise UserError("Reports, slices and comparisons are of one view of each image. Leave out --crops, --scales.")
    wanted = Wanted(detail.report, detail.slice_by, detail.against, seen.max_unreadable)
    with Display() as display:
        found = examine(
            lambda place: load(place, device=on.device, precision=on.in_torch),
            bundle,
            data,
            wanted,
            lambda done, total: display.bar("evaluating", done, total),
        )
    for line in found.scores.notes:
        note(line)
    if output.json:
        print_json(found.to_dict())
        return
    _print(found.scores)
    if found.slices:
        rows = [
            (s.name, s.images, f"{s.top1:.4f}", f"{s.interval[0]:.4f} to {s.interval[1]:.4f}") for s in found.slices
        ]
        print()
        print_table(("slice", "images", "top-1", "95 % interval"), rows, right=(1, 2, 3))
    if found.agreement is not None:
        print(f"\n{found.against}: {found.agreement.in_words()}")
    for file in found.files[:1]:
        note(f"The report is {file}")


def _numbers(scales: str | None) -> tuple[int, ...]:
    if scales is None:
        return ()
    try:
        return tuple(int(scale) for scale in scales.split(","))
    except ValueError:
        raise UserError(f"--scales {scales!r} is no list of sizes in pixels. Write it like 224,256,384.") from None


def _print(scores: Scores) -> None:
    low, high = scores.top1_interval
    print(f"top-1  {scores.top1:.4f}  (95 % interval {low:.4f} to {high:.4f})")
    if scores.top5 is not None:
        print(f"top-5  {scores.top5:.4f}")
    print(f"loss   {scores.loss:.4f}")
    if scores.views.crops != 1 or scores.views.scales:
        print(f"views  {scores.views}")
    print(f"images {scores.images}, left out {len(scores.skipped)}\n")
    for path, error in scores.skipped:
        note(f"Left out: {path}: {error}.")
    rows = [(name, row["images"], row["top1"]) for name, row in scores.per_class().items() if row["images"]]
    rows.sort(key=lambda row: row[2])
    print_table(("class", "images", "top-1"), [(n, k, f"{share:.4f}") for n, k, share in rows[:WORST]], right=(1, 2))
    if len(rows) > WORST:
        note(f"The {WORST} weakest of {len(rows)} classes; all with --json.")
