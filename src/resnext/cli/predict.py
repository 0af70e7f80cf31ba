"""`resnext predict`: labels for image files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cyclopts import Parameter

from resnext.cli import USER_MISTAKE
from resnext.cli.inference import Inference
from resnext.cli.output import Output, note, print_json


@Parameter(name="*")
@dataclass(frozen=True)
class Answers:
    """How much is said of each image."""

    top: int | None = None
    """How many classes to rank; all with --json, and the best 3 otherwise, where it is not given."""
    wanted_precision: float | None = None
    """Answer only where answers so sure were right so often on the bundle's validation images, as 0.95; the others are
    marked with a question mark ("abstained" in JSON)."""


def predict(
    bundle: Path,
    paths: list[str],
    /,
    *,
    answers: Answers = Answers(),
    on: Inference = Inference(),
    output: Output = Output(),
) -> int:
    """Name the class of image files, or of every image below a folder.

    Example: resnext predict runs/flowers photo.jpg more/ --top 3

    With --json one object a line: path, label, probability, ranked; or path, error for a file that cannot be read.
    The exit code is 0 unless not one image could be read.

    Parameters
    ----------
    bundle
        A bundle or a run.
    paths
        Image files and folders.
    """
    from resnext.inference.classifier import Prediction
    from resnext.inference.files import load, predict_files

    classifier = load(bundle, device=on.device, precision=on.in_torch)
    least = 0.0 if answers.wanted_precision is None else classifier.threshold(answers.wanted_precision)
    read = 0
    for number, result in enumerate(predict_files(classifier, paths, top=answers.top)):
        for line in classifier.notes if number == 0 else ():
            note(line)
        read += isinstance(result, Prediction)
        unsure = isinstance(result, Prediction) and result.probability < least
        if output.json:
            abstained = (
                {} if answers.wanted_precision is None or not isinstance(result, Prediction) else {"abstained": unsure}
            )
            print_json(result.to_dict() | abstained, indent=None)
        elif isinstance(result, Prediction):
            ranked = result.ranked[: answers.top or 3]
            print(
                f"{result.path}  {'? ' if unsure else ''}"
                + "  ".join(f"{label} {share:.1%}" for label, share in ranked)
            )
        else:
            note(f"{result.path}: {result.error}")
    return 0 if read else USER_MISTAKE
