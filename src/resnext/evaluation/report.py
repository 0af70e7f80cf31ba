"""An evaluation as files: `index.html`, which needs nothing else, `measures.json` and `predictions.parquet`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from resnext import durable, pages
from resnext.data.preprocessing import Preprocessing
from resnext.evaluation import calibration, measures, sections
from resnext.evaluation.metrics import Scores
from resnext.evaluation.slices import Slice
from resnext.layers import Network

if TYPE_CHECKING:
    import pyarrow as pa

PAGE, MEASURES, PREDICTIONS = "index.html", "measures.json", "predictions.parquet"


@dataclass(frozen=True)
class Evaluated:
    """All that a page tells of: scores with their logits, and what is known of the network and of how it was trained.

    `counts` are images of each class by split, `epochs` what the journal says of each, `recipe` its text; empty where
    nothing is known. `temperature` divides the logits, and `temperature_from` says where it is from.
    """

    title: str
    data: str
    scores: Scores
    network: Network
    preprocessing: Preprocessing
    temperature: float = 1.0
    temperature_from: str = ""
    counts: Mapping[str, Sequence[int]] = field(default_factory=dict)
    epochs: Sequence[Mapping[str, Any]] = ()
    slices: Sequence[Slice] = ()
    recipe: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def raw(self) -> NDArray[np.float32]:
        """Probabilities as the network says them."""
        assert self.scores.logits is not None
        return calibration.softmax(self.scores.logits)

    @cached_property
    def probabilities(self) -> NDArray[np.float32]:
        """Probabilities with the temperature."""
        assert self.scores.logits is not None
        return self.raw if self.temperature == 1 else calibration.softmax(self.scores.logits, self.temperature)

    @cached_property
    def measures(self) -> dict[str, Any]:
        """Every measure, with the temperature, and the calibration error without it."""
        told = measures.measure(self.scores.labels, self.probabilities, self.scores.classes)
        return told | {
            "data": self.data,
            "top5": self.scores.top5,
            "temperature": self.temperature,
            "expected_calibration_error_before": calibration.expected_error(self.scores.labels, self.raw),
            "slices": [each.to_dict() for each in self.slices],
            "skipped": [{"path": path, "error": error} for path, error in self.scores.skipped],
        }


def write(evaluated: Evaluated, folder: Path) -> list[Path]:
    """Write the page and its figures into a folder, which is made where it is not there; return the files.

    Raises UserError where what draws pages is not installed.
    """
    page = render(evaluated)
    durable.make_directory(folder)
    durable.write_table(folder / PREDICTIONS, predictions(evaluated))
    durable.write_text(folder / MEASURES, json.dumps(evaluated.measures, ensure_ascii=False, allow_nan=False) + "\n")
    durable.write_text(folder / PAGE, page)
    return [folder / name for name in (PAGE, MEASURES, PREDICTIONS)]


def render(evaluated: Evaluated) -> str:
    """Return the page."""
    return pages.render(
        "resnext.evaluation",
        "page.html",
        title=evaluated.title,
        summary=sections.summary(evaluated),
        figures_of_merit=sections.figures_of_merit(evaluated),
        sections=[asdict(each) for each in sections.every(evaluated)],
    )


def predictions(evaluated: Evaluated) -> pa.Table:
    """Return one row an image: path, label, predicted, probability, whether right, the label's own
    probability, and the loss without the temperature."""
    import pyarrow as pa

    scores, shares = evaluated.scores, evaluated.probabilities
    rows = np.arange(scores.images)
    names = np.array(scores.classes, dtype=object)
    return pa.table(
        {
            "path": pa.array(scores.paths, pa.string()),
            "label": pa.array(names[scores.labels], pa.string()),
            "predicted": pa.array(names[scores.predicted], pa.string()),
            "probability": shares[rows, scores.predicted],
            "right": scores.place == 0,
            "label_probability": shares[rows, scores.labels],
            "loss": scores.losses.astype(np.float32),
        }
    )
