"""Small real-looking data for tests: coloured shapes that a tiny network learns in seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"blue": (40, 60, 200), "green": (40, 170, 60), "red": (200, 50, 40)}


def write_colours(folder: Path, count: int, *, size: int = 16, seed: int = 0, suffix: str = "png") -> Path:
    """Write `count` noisy images of each of three colours as `folder/COLOUR/NUMBER.png`."""
    generator = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            noise = generator.normal(0, 25, (size, size, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(place / f"{number}.{suffix}")
    return folder


TINY = {
    "network": "cifar_resnet8",
    "epochs": 3,
    "batch_size": 8,
    "image_size": 16,
    "resize": 16,
    "learning_rate": 0.05,
    "workers": 1,
    "cache_gib": 0.1,
}


def picture(seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """Return a picture like no other: soft shapes and finer ones, as photos have, drawn by `seed`."""
    generator = np.random.default_rng(seed)
    layers = [generator.uniform(0, 255, (cells, cells, 3)).astype(np.uint8) for cells in (3, 6, 12)]
    sheets = [np.asarray(Image.fromarray(layer).resize(size, Image.Resampling.BICUBIC), np.float64) for layer in layers]
    mixed = 0.5 * sheets[0] + 0.3 * sheets[1] + 0.2 * sheets[2]
    return Image.fromarray(np.clip(mixed * 1.4 - 50, 0, 255).astype(np.uint8))
