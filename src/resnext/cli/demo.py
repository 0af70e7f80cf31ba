"""`resnext demo`: the main job from end to end on handwritten digits, by the public commands."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

from resnext.cli.output import note

MARKER = ".resnext-demo"


def demo(*, out: Path = Path("runs/demo")) -> int:
    """Train on 1,797 handwritten digits, evaluate on a test split, predict a few images; a minute on two cores.

    Example: resnext demo

    Parameters
    ----------
    out
        Where the images and the run are written; what an earlier demo left there is replaced.
    """
    from resnext import demo as material
    from resnext.errors import UserError

    data, run, marker = out / "digits", out / "run", out / MARKER
    if out.is_file() or (out.exists() and not marker.exists() and any(out.iterdir())):
        raise UserError(f"{out} is not an earlier demo's and was left as it is. Choose another --out.")
    out.mkdir(parents=True, exist_ok=True)
    marker.touch()
    for earlier in (data, run):
        shutil.rmtree(earlier, ignore_errors=True)
    note(f"1,797 handwritten digits, 8×8 pixels, as PNG files in {data}/train and {data}/test.")
    material.write_digits(data)
    shown = material.some_test_images(data)
    for command in (
        ["train", str(data), "--recipe", "digits", "--out", str(run)],
        ["evaluate", str(run), str(data)],
    ):
        if code := _do(command):
            return code
    for path in shown:
        print("\n".join(material.picture(path)))
        if code := _do(["predict", str(run), str(path)]):
            return code
    note(f"\nThe bundle lies in {run / 'model'}: weights, classes, preprocessing and results in one directory.")
    note("Next, with your own photos, one folder a class: resnext train photos/")
    return 0


def _do(arguments: list[str]) -> int:
    from resnext.cli import run

    note(f"\n$ resnext {shlex.join(arguments)}")
    return run(arguments)
