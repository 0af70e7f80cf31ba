"""Images for a benchmark: those that prove a bundle, those of a folder, or crops of two photos."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, islice
from pathlib import Path

import numpy as np
from PIL import Image

from resnext.bundle import Bundle
from resnext.data.images import as_picture, read_image
from resnext.data.preprocessing import Preprocessing
from resnext.errors import UserError
from resnext.inference import proof
from resnext.inference.files import images_below

SMALLEST, LARGEST = 128, 400
"""Sides of the crops, in pixels of the photos, which are 640×427."""


def of_bundle(
    bundle: Bundle, calibration: str | None, counts: tuple[int, int], seed: int
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return pixels to check and to calibrate with, at most `counts` of each, and what to know of them.

    They are `calibration`'s or, where that is None, the images of the bundle's own run; what these lack are crops of
    photos. Raises UserError for images that cannot serve.
    """
    preprocessing = bundle.contents.preprocessing
    try:
        found = proof.gather(bundle, calibration, seed=seed)
    except UserError:
        if calibration is not None:
            raise
        check, calibrating = crops(preprocessing, counts, seed)
        return check, calibrating, [_stand_in(counts, "images")]
    check = _first((pixels for pixels, _ in found.proof), counts[0])
    calibrating = _first(found.calibration, counts[1])
    notes = [f"Images: {found.source}."]
    if not len(calibrating):
        calibrating = crops(preprocessing, counts, seed)[1]
        notes.append(_stand_in(counts, "images for calibration"))
    return check, calibrating, notes


def of_folder(
    folder: str, preprocessing: Preprocessing, counts: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return the same from the image files below a folder, the first for the check.

    Raises UserError where there are fewer than two, or one cannot be read.
    """
    files = images_below(Path(folder)) if Path(folder).is_dir() else []
    if len(files) < 2:
        raise UserError(f"--calibration {folder} holds fewer than two images. Name a folder that holds some.")
    chosen = files[: sum(counts)]
    pixels = [preprocessing.pixels(read_image(file, channels=preprocessing.channels)) for file in chosen]
    checked = min(counts[0], len(chosen) // 2)
    return np.stack(pixels[:checked]), np.stack(pixels[checked:]), [f"Images: {len(chosen)} of {folder}."]


def crops(preprocessing: Preprocessing, counts: tuple[int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels to check and to calibrate with, drawn by seed from the two photos that scikit-learn brings."""
    from sklearn.datasets import load_sample_images

    generator = np.random.default_rng(seed)
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    cut = []
    for number in range(sum(counts)):
        photo, side = photos[number % 2], int(generator.integers(SMALLEST, LARGEST))
        left, top = (int(generator.integers(0, length - side)) for length in photo.size)
        piece = photo.crop((left, top, left + side, top + side))
        cut.append(preprocessing.pixels(as_picture(piece, channels=preprocessing.channels)))
    return np.stack(cut[: counts[0]]), np.stack(cut[counts[0] :])


def _stand_in(counts: tuple[int, int], what: str) -> str:
    return f"No {what} were given: {sum(counts)} crops of two photos stand in, so agreement means little."


def _first(batches: Iterable[np.ndarray], count: int) -> np.ndarray:
    images = list(islice(chain.from_iterable(batches), count))
    return np.stack(images) if images else np.empty(0, np.uint8)
