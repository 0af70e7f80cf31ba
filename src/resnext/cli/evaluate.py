"""`resnext evaluate`: what a bundle scores on labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from resnext.cli.inference import Inference
from resnext.cli.output import Output, note, print_json, print_table
from resnext.cli.progress import Display
from resnext.errors import UserError

if TYPE_CHECKING:
    from resnext.evaluation.metrics import Scores

WORST = 20


def evaluate(
    bundle: Path,
    data: str,
    /,
    *,
    crops: int = 1,
    scales: str | None = None,
    max_unreadable: float = 0.01,
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
    crops
        1, the centre of each image, or 10: its corners, its centre, and their mirror images.
    scales
        Sides in pixels, such as 224,256,384: whole images, the shorter side at each of these, and mirrored.
    max_unreadable
        Share of images that may be unreadable; they are named and counted.
    """
    from resnext.inference.evaluation import evaluate as score

    with Display() as display:
        scores = score(
            bundle,
            data,
            crops=crops,
            scales=_numbers(scales),
            max_unreadable=max_unreadable,
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
