"""`resnext explain`: what a classifier looked at."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cyclopts import Parameter

from resnext.cli import USER_MISTAKE
from resnext.cli.inference import Inference
from resnext.cli.output import Output, note, print_json
from resnext.cli.picture import show


@Parameter(name="*")
@dataclass(frozen=True)
class Sought:
    """What is looked for, and how."""

    method: Literal["grad-cam", "occlusion"] = "grad-cam"
    """occlusion hides a part at a time and sees what falls: slow, and asks nothing of the network."""
    label: str | None = None
    """The class to look for; where it is not given, what each image is taken for."""


def explain(
    bundle: Path,
    paths: list[str],
    /,
    *,
    out: Path = Path("explained"),
    sought: Sought = Sought(),
    on: Inference = Inference(),
    output: Output = Output(),
) -> int:
    """Show where an image speaks for its class: the image as the network sees it, and beside it with heat laid over.

    Example: resnext explain runs/flowers photo.jpg --out explained

    Pictures are shown inline, too, where the terminal can. With --json one object a line: path, label, probability,
    shown, picture; or path, error.

    Parameters
    ----------
    bundle
        A bundle or a run.
    paths
        Image files and folders.
    out
        Folder for the pictures.
    """
    from resnext.inference.classifier import Unreadable
    from resnext.inference.explanation import explain_files
    from resnext.inference.files import load

    classifier = load(bundle, device=on.device, precision=on.in_torch)
    explained = 0
    for number, result in enumerate(explain_files(classifier, paths, method=sought.method, label=sought.label)):
        if isinstance(result, Unreadable):
            print_json(result.to_dict(), indent=None) if output.json else note(f"{result.path}: {result.error}")
            continue
        explained += 1
        out.mkdir(parents=True, exist_ok=True)
        name = re.sub(r"[^\w.-]+", "-", f"{Path(result.path).stem}-{result.shown}")
        file = out / f"{number + 1}-{name}.png"
        encoded = io.BytesIO()
        result.picture().save(encoded, "PNG")
        file.write_bytes(encoded.getvalue())
        if output.json:
            told = {"path": result.path, "label": result.label, "probability": result.probability}
            print_json({**told, "shown": result.shown, "picture": str(file)}, indent=None)
        else:
            print(f"{result.path}  {result.label} {result.probability:.1%}  {file}")
            show(encoded.getvalue())
    return 0 if explained else USER_MISTAKE
