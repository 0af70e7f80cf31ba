"""The main job on real data that come with scikit-learn: 1,797 handwritten digits as a folder of PNGs.

It goes through the public commands, as a user would: train, evaluate, predict.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from resnext.data.images import read_image

TEST_EVERY = 5
SHOWN = 5
SHADES = " ░▒▓█"


def write_digits(folder: Path) -> Path:
    """Lay scikit-learn's digits out as `train/DIGIT/*.png` and `test/DIGIT/*.png`; every fifth is for the test.

    Images are 8×8, grey, with the original 17 levels spread over 0…255.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        split = "test" if number % TEST_EVERY == 0 else "train"
        place = folder / split / str(label) / f"{number:04d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.rint(image * (255 / 16)).astype(np.uint8)).save(place)
    return folder


def picture(path: Path) -> list[str]:
    """Draw a small grey image as lines of text, two characters a pixel."""
    pixels = np.asarray(read_image(path, channels=1)).astype(int)
    return ["".join(SHADES[min(4, value * 5 // 256)] * 2 for value in row) for row in pixels]


def some_test_images(folder: Path) -> list[Path]:
    """Return one test image of each of the first classes."""
    return [sorted(place.glob("*.png"))[0] for place in sorted((folder / "test").iterdir())[:SHOWN]]
