"""`resnext predict`: labels for image files."""

from __future__ import annotations

from pathlib import Path

from resnext.cli import USER_MISTAKE
from resnext.cli.inference import Inference
from resnext.cli.output import Output, note, print_json


def predict(
    bundle: Path,
    paths: list[str],
    /,
    *,
    top: int | None = None,
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
    top
        How many classes to rank; all with --json, and the best 3 otherwise, where it is not given.
    """
    from resnext.inference.classifier import Prediction
    from resnext.inference.files import load, predict_files

    classifier = load(bundle, device=on.device, precision=on.in_torch)
    read = 0
    for number, result in enumerate(predict_files(classifier, paths, top=top)):
        for line in classifier.notes if number == 0 else ():
            note(line)
        read += isinstance(result, Prediction)
        if output.json:
            print_json(result.to_dict(), indent=None)
        elif isinstance(result, Prediction):
            ranked = result.ranked[: top or 3]
            print(f"{result.path}  " + "  ".join(f"{label} {share:.1%}" for label, share in ranked))
        else:
            note(f"{result.path}: {result.error}")
    return 0 if read else USER_MISTAKE
