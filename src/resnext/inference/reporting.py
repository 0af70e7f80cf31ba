"""An evaluation in detail: a page, slices, another bundle on the same images; and the page of a run."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from resnext import journals
from resnext.data.manifest import Manifest, located
from resnext.errors import UserError, did_you_mean
from resnext.evaluation import agreement, metrics, report, slices
from resnext.evaluation.agreement import Agreement
from resnext.evaluation.metrics import Scores
from resnext.evaluation.report import Evaluated
from resnext.evaluation.slices import Slice
from resnext.inference.classifier import Classifier
from resnext.inference.evaluation import score
from resnext.inference.files import load, reader

if TYPE_CHECKING:
    from resnext.layers import Network

REPORT = "report"
"""The folder of a run's page."""


@dataclass(frozen=True)
class Wanted:
    """What is wanted beyond the scores: a folder for a page, what to slice by, another bundle."""

    report: Path | None = None
    slice_by: str | None = None
    against: Path | None = None
    max_unreadable: float = 0.01


@dataclass(frozen=True)
class Examined:
    """Scores, and what else was asked for; `files` are those of the page."""

    scores: Scores
    slices: tuple[Slice, ...] = ()
    agreement: Agreement | None = None
    against: str = ""
    files: tuple[Path, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return it as `evaluate --json` prints it."""
        told = self.scores.to_dict()
        if self.slices:
            told["slices"] = [each.to_dict() for each in self.slices]
        if self.agreement is not None:
            told["against"] = {"bundle": self.against, **self.agreement.to_dict()}
        return told | ({"report": [str(file) for file in self.files]} if self.files else {})


def examine(
    opened: Callable[[Path], Classifier],
    bundle: Path,
    data: str,
    wanted: Wanted,
    progress: Callable[[int, int], None] | None = None,
) -> Examined:
    """Score a bundle on labelled data in detail; `opened` opens it, and the other bundle.

    Raises UserError as `evaluate` does, for a column that there is not, and where what draws pages is not installed.
    """
    classifier = opened(bundle)
    options = {"max_unreadable": wanted.max_unreadable, "progress": progress}
    scores = score(classifier, data, keep_logits=wanted.report is not None, **options)  # type: ignore[arg-type]
    found = slices.sliced(scores, values(data, scores.paths, wanted.slice_by)) if wanted.slice_by else []
    told, other = None, ""
    if wanted.against is not None:
        told, other = _against(opened(wanted.against), data, scores, options), str(wanted.against)
    files: Sequence[Path] = ()
    if wanted.report is not None:
        evaluated = described(classifier, scores, data, found)
        files = report.write(evaluated, wanted.report)
    kept = dataclasses.replace(scores, logits=None)
    return Examined(kept, tuple(found), told, other, tuple(files))


def _against(second: Classifier, data: str, scores: Scores, options: Mapping[str, Any]) -> Agreement:
    """Compare with another bundle, image by image, by the names of classes."""
    others = score(second, data, **options)
    rows = {path: row for row, path in enumerate(others.paths)}
    both = [(row, rows[path]) for row, path in enumerate(scores.paths) if path in rows]
    index = {name: number for number, name in enumerate(scores.classes)}
    mine = np.array([row for row, _ in both])
    predicted = np.array([index.get(others.classes[others.predicted[row]], -1) for _, row in both])
    return agreement.compare(scores.labels[mine], scores.predicted[mine], predicted)


def values(data: str, paths: Sequence[str], slice_by: str) -> list[str]:
    """Return what each image is sliced by: a column of DATA's CSV, or its folder so deep below DATA.

    Raises UserError where there is no such column, or DATA has none.
    """
    place = located(data)
    if slice_by.isdigit():
        depth, root = int(slice_by), (place if place.is_dir() else place.parent).resolve()
        found = [Path(path).resolve().relative_to(root).parts[:-1] for path in paths]
        if not depth or any(len(parts) < depth for parts in found):
            least = min(len(parts) for parts in found)
            raise UserError(f"--slice-by {slice_by}: some images lie only {least} folders deep below {data}.")
        return [parts[depth - 1] for parts in found]
    if place.is_dir():
        raise UserError(f"--slice-by {slice_by}: {data} is a folder, which has no columns. Give a number of folders.")
    with place.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        columns = [name.strip() for name in rows.fieldnames or ()]
        rows.fieldnames = columns
        if slice_by not in columns:
            raise UserError(f"--slice-by {slice_by}: {data} has no such column.{did_you_mean(slice_by, columns)}")
        told = {str((place.parent / row["path"]).resolve()): row[slice_by] or "(none)" for row in rows}
    return [told[str(Path(path).resolve())] for path in paths]


def described(classifier: Classifier, scores: Scores, data: str, found: Sequence[Slice] = ()) -> Evaluated:
    """Return all that a page tells of a bundle's scores, with what is known of its run where that is around it."""
    contents, run = classifier.bundle.contents, classifier.bundle.path.parent
    has_run = (run / "manifest.parquet").is_file() and (run / "journal.jsonl").is_file()
    return Evaluated(
        title=f"{contents.network} on {Path(data).name}",
        data=data,
        scores=scores,
        network=cast("Network", classifier.network),
        preprocessing=classifier.preprocessing,
        temperature=contents.temperature,
        temperature_from=str(contents.calibration.get("data", "")),
        counts=_counts(Manifest.read(run / "manifest.parquet")) if has_run else {},
        epochs=journals.epochs(journals.read(run / "journal.jsonl")) if has_run else (),
        slices=tuple(found),
        recipe=(run / "recipe.toml").read_text(encoding="utf-8") if has_run else "",
        facts={
            "network": contents.network,
            "identity": classifier.bundle.identity,
            "input": f"{classifier.preprocessing.image_size}×{classifier.preprocessing.image_size} pixels",
            "licence of the weights": contents.licence,
            "trained on": ", ".join(f"{key} {value}" for key, value in classifier.bundle.machine.items()),
            "with": ", ".join(f"{key} {value}" for key, value in classifier.bundle.software.items()),
        },
    )


def _counts(manifest: Manifest) -> dict[str, list[int]]:
    """Return the images of each class, by split."""
    names = {"train": "training", "val": "validation"}
    splits = {told: manifest.split(name) for name, told in names.items()}
    classes = len(manifest.classes)
    return {name: np.bincount(split.labels, minlength=classes).tolist() for name, split in splits.items() if len(split)}


def report_run(run: Path) -> list[Path]:
    """Write the page of a run, on its validation images, into its folder `report`; return the files.

    Raises UserError where what draws pages is not installed.
    """
    classifier = load(run, engine="torch")
    split = Manifest.read(run / "manifest.parquet").split("val")
    scores = metrics.evaluate(classifier.engine, reader(classifier, split), keep_logits=True)
    told = described(classifier, scores, "the validation images, which also chose the epoch")
    title = f"{classifier.bundle.contents.network}, run {run.name}"
    return report.write(dataclasses.replace(told, title=title), run / REPORT)
