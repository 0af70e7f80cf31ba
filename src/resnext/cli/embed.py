"""`resnext embed`: vectors of images."""

from __future__ import annotations

from pathlib import Path

from resnext.cli.inference import Inference
from resnext.cli.output import Output, note, print_json


def embed(
    bundle: Path,
    paths: list[str],
    /,
    *,
    out: Path,
    on: Inference = Inference(),
    output: Output = Output(),
) -> None:
    """Write what the network knows of each image before its classifier, a vector each, as a Parquet file.

    Example: resnext embed runs/flowers photos/ --out vectors.parquet

    Images that look alike to the network have vectors that point the same way. Columns: path, vector (float32).

    Parameters
    ----------
    bundle
        A bundle or a run.
    paths
        Image files and folders.
    out
        The file to write.
    """
    from resnext.inference.embedding import embed_files
    from resnext.inference.files import load

    classifier = load(bundle, engine="torch")
    made = embed_files(classifier, paths, out, device=on.device, precision=on.precision or "fp32")
    for failed in made.unreadable:
        note(f"{failed.path}: {failed.error}")
    if output.json:
        unreadable = [failed.to_dict() for failed in made.unreadable]
        print_json({"out": str(made.path), "images": made.images, "width": made.width, "unreadable": unreadable})
    else:
        print(f"{made.path} holds the vectors of {made.images} images, {made.width} numbers each.")
