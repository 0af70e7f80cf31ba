"""A bundle scored on labelled data, by the same line that predicts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from resnext.data.manifest import Manifest, scan
from resnext.errors import UserError
from resnext.evaluation import metrics
from resnext.evaluation.metrics import Scores
from resnext.evaluation.views import CENTRE, DenseEngine, Views
from resnext.inference.classifier import Classifier
from resnext.inference.engines.stored import StoredEngine
from resnext.inference.files import load, reader


def evaluate(
    bundle: str | Path,
    data: str | Path,
    *,
    device: str = "auto",
    precision: str | None = None,
    max_unreadable: float = 0.01,
    crops: int = 1,
    scales: Sequence[int] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Score a bundle, or a run's, on the test split of labelled data, every image exactly once.

    The bundle's optimised engine runs where it fits this machine; a `device` or a `precision` ("fp32") means torch.

    Labels are matched by class name. Images that cannot be read are counted and named in `Scores.skipped`; more
    than the share `max_unreadable` of them raises UserError, as does a class that the bundle does not know.
    `crops=10` averages over ten crops of each image; `scales`, in pixels, over the whole image with its shorter side
    at each of them, and its mirror image (`evaluation/views.py`).
    """
    if not 0 <= max_unreadable <= 1:
        raise UserError(f"--max-unreadable {max_unreadable} is no share. Give a number from 0 to 1.")
    views = Views(crops, tuple(scales))
    classifier = load(bundle, device=device, precision=precision)
    dense = {"device": device, "precision": precision or "fp32"}
    return score(classifier, data, views=views, dense=dense, max_unreadable=max_unreadable, progress=progress)


def score(
    classifier: Classifier,
    data: str | Path,
    *,
    views: Views = CENTRE,
    dense: dict[str, str] | None = None,
    max_unreadable: float = 0.01,
    keep_logits: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Score a classifier as `evaluate` does a bundle; `keep_logits` keeps its logits in `Scores.logits`.

    `dense` says on which device and in which precision whole images at several scales run.
    """
    views.check_scales(classifier.preprocessing.image_size)
    manifest = scan(data, purpose="evaluate", classes=classifier.classes)
    split = manifest.split("test")
    engine = classifier.engine
    if views.scales:
        engine = DenseEngine(classifier.network, classifier.preprocessing, **(dense or {}))
    scores = metrics.evaluate(engine, reader(classifier, split), progress, views=views, keep_logits=keep_logits)
    if len(scores.skipped) > max_unreadable * len(split):
        path, why = scores.skipped[0]
        raise UserError(
            f"{len(scores.skipped)} of {len(split)} images cannot be read, more than the share {max_unreadable:g} "
            f"that is allowed; for example {path}: {why}.\nMend or remove them, or allow more with --max-unreadable."
        )
    notes = (*_of_engine(classifier, views), *manifest.notes, *_seen_in_training(classifier.bundle.path, manifest))
    return dataclasses.replace(scores, notes=notes)


def _of_engine(classifier: Classifier, views: Views) -> tuple[str, ...]:
    if views.scales and isinstance(classifier.engine, StoredEngine):
        return (
            "The optimised engine is left aside, and torch runs instead: it takes images of one size, no --scales.",
        )
    return classifier.notes


def _seen_in_training(bundle: Path, manifest: Manifest) -> list[str]:
    """Say how many of the images the bundle's run was trained or chosen on, where that run is still around it."""
    record = bundle.parent / "manifest.parquet"
    if not record.is_file():
        return []
    import pyarrow.compute as pc

    trained = Manifest.read(record)
    if trained.root.resolve() != manifest.root.resolve():
        return []
    seen = pc.sum(pc.is_in(manifest.table["path"], value_set=trained.table["path"].combine_chunks())).as_py() or 0
    if not seen:
        return []
    count = manifest.table.num_rows
    return [f"{seen:,} of these {count:,} images trained or chose this network; new images will score lower"]
