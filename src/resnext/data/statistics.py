"""What the pixels of the training images are like: their mean image, and the axes along which their colours vary.

Sums are of whole numbers and exact, so neither the order of the images nor their batches can change a result.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from resnext.errors import UserError

_NO_IMAGE = "Not one training image could be read, so there are no pixels to measure. Check the files."


def mean_image(batches: Iterable[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Return the mean of all images, pixel by pixel: uint8 batches N×S×S×C to float32 S×S×C, in units of 0…1.

    The "per-pixel mean" of arXiv:1512.03385 §3.4. Raises UserError where there is no image.
    """
    total, count = np.zeros((), np.int64), 0
    for batch in batches:
        total = total + batch.sum(axis=0, dtype=np.int64)
        count += len(batch)
    if not count:
        raise UserError(_NO_IMAGE)
    return (total / (255 * count)).astype(np.float32)


def colour_axes(images: Iterable[NDArray[np.uint8]]) -> tuple[float, ...]:
    """Return the principal axes of the pixels' colours: C·C numbers, axis by axis, the widest first.

    `images` are uint8 H×W×C. An axis is an eigenvector p of the covariance of all pixels' colours, in units of 0…1,
    times its eigenvalue λ, and points to where its largest part is positive (NIPS 2012 "ImageNet classification with
    deep convolutional neural networks" §4.1). Raises UserError where there is no image.
    """
    total, products, count = np.zeros(()), np.zeros(()), 0
    for image in images:
        pixels = image.reshape(-1, image.shape[-1]).astype(np.float64)
        total, products = total + pixels.sum(axis=0), products + pixels.T @ pixels
        count += len(pixels)
    if not count:
        raise UserError(_NO_IMAGE)
    mean = total / count
    values, vectors = np.linalg.eigh((products / count - np.outer(mean, mean)) / 255**2)
    axes = (vectors * np.maximum(values, 0)).T[::-1]
    largest = np.abs(axes).argmax(axis=1)
    axes *= np.where(axes[np.arange(len(axes)), largest] < 0, -1, 1)[:, None]
    return tuple(axes.ravel().tolist())
