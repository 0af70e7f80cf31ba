"""Several views of an image and what a network makes of them on average, as the papers' best numbers are measured.

Ten crops: the four corners and the centre of the resized image, and their mirror images (NIPS 2012, A. Krizhevsky,
I. Sutskever and G. Hinton, section 4.1). Dense: the whole image with its shorter side at several scales, and its
mirror image; the network's head runs as a convolution, and its logits are averaged over all places (K. Simonyan and
A. Zisserman, arXiv:1409.1556, sections 3.2 and 4.2; arXiv:1512.03385 section 3.4). Both average the softmax outputs
over the views.

Departures and readings: AlexNet's images were cut to squares of 256×256 before; here the corners are those of the
whole resized image. arXiv:1512.03385 averages "scores" over the scales: read as softmax outputs, as VGG does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from resnext.data.images import read_image
from resnext.data.loader import Loader
from resnext.data.parallel import in_order
from resnext.data.preprocessing import Preprocessing
from resnext.engine import Engine, TorchEngine
from resnext.errors import ImageError, UserError

if TYPE_CHECKING:
    import torch

    from resnext.layers import Network

LARGEST = 4
"""A scale may be this many times `image_size`; no paper goes beyond three, and memory grows with the square."""

BATCH_SHAPES = (1, 2, 4, 8, 16, 32)
TOGETHER = 8  # images whose views are held at a time

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Views:
    """Which views of an image are scored.

    `crops` of the resized image, 1 (the centre) or 10; or, where there are `scales`, the whole image with its shorter
    side at each of them, in pixels, and its mirror image. Raises UserError for values that are none of these.
    """

    crops: int = 1
    scales: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.crops not in (1, 10):
            raise UserError(
                f"--crops {self.crops} is not known. Give 1 (the centre) or 10 (corners and centre, mirrored)."
            )
        if self.scales and self.crops != 1:
            raise UserError("--crops cuts squares from an image and --scales takes it whole. Give one of them.")
        if len(set(self.scales)) < len(self.scales):
            raise UserError(f"--scales {_listed(self.scales)} has a scale twice. Give each once.")

    def check_scales(self, image_size: int) -> None:
        """Raise UserError for a scale that a network for images of `image_size` pixels should not be run at."""
        for scale in self.scales:
            if not image_size <= scale <= LARGEST * image_size:
                raise UserError(
                    f"--scales: {scale} does not suit a network for images of {image_size}×{image_size} pixels.\n"
                    f"Give scales from {image_size} to {LARGEST * image_size}."
                )

    def of(self, image: Image.Image, preprocessing: Preprocessing) -> list[Pixels]:
        """Return the views of a decoded image, uint8 H×W×C, the mirror images last; they share memory."""
        if self.scales:
            sizes = (dataclasses.replace(preprocessing, resize=scale) for scale in self.scales)
            views = [size.resized(image) for size in sizes]
        elif self.crops == 10:
            views = five_crops(preprocessing.resized(image), preprocessing.image_size)
        else:
            return [preprocessing.pixels(image)]
        return [*views, *(view[:, ::-1] for view in views)]

    def to_dict(self) -> dict[str, Any]:
        """Return what `evaluate --json` prints under `views`; one of the two is null."""
        return {"crops": None if self.scales else self.crops, "scales": list(self.scales) or None}

    def __str__(self) -> str:
        if self.scales:
            return f"whole images, shorter side {_listed(self.scales)}, mirrored too"
        return "centre crop" if self.crops == 1 else f"{self.crops} crops"


CENTRE = Views()


def _listed(scales: tuple[int, ...]) -> str:
    return ",".join(map(str, scales))


def five_crops(pixels: Pixels, side: int) -> list[Pixels]:
    """Cut the corners and the centre from H×W×C pixels: five views side×side×C, the centre as `Preprocessing.crop`."""
    bottom, right = pixels.shape[0] - side, pixels.shape[1] - side
    places = ((0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2))
    return [pixels[top : top + side, left : left + side] for top, left in places]


class DenseEngine:
    """An engine for images of any size: a network's `dense`, logits averaged over all places where its head fits.

    It runs as many images together, a power of two, as have no more pixels than a whole batch of `image_size`: memory
    does not grow with the scale until a single image fills it.
    """

    def __init__(
        self, network: torch.nn.Module, preprocessing: Preprocessing, *, device: str = "auto", precision: str = "fp32"
    ) -> None:
        from resnext.layers import Network

        assert isinstance(network, Network), type(network)
        self.engine = TorchEngine(
            _dense(network), preprocessing, device=device, precision=precision, batch_shapes=BATCH_SHAPES
        )
        self.batch_size = self.engine.batch_size
        self.most_pixels = self.batch_size * preprocessing.image_size**2

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Map uint8 pixels N×H×W×C, images of one size, to float32 logits N×K."""
        count, height, width, _ = pixels.shape
        together = max((n for n in BATCH_SHAPES if n * height * width <= self.most_pixels), default=1)
        starts = range(0, count, together)
        return np.concatenate([self.engine(pixels[start : start + together]) for start in starts])


def _dense(network: Network) -> torch.nn.Module:
    """Return a module whose forward is the network's `dense`."""
    import torch

    class Dense(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network  # a child, so that it moves to the engine's device

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return network.dense(images)

    return Dense()


def outputs(engine: Engine, loader: Loader, views: Views) -> Iterator[tuple[npt.NDArray[np.int64], np.ndarray]]:
    """Yield rows of the loader's split, a batch at a time in order, and their scores N×K, which rank as logits do.

    The scores of one view are the engine's logits; those of several the logarithm of the mean of their softmax outputs.
    Images that cannot be read are left out, and stand in `loader.unreadable`.
    """
    if views == CENTRE:
        for batch in loader.sequential():
            yield batch.indices, engine(batch.pixels)
        return
    for rows, pixels in _read(loader, views):
        logits = _run(engine, pixels, len(loader.split.classes))
        yield rows, log_mean_softmax(logits.reshape(len(rows), -1, logits.shape[1]))


def _read(loader: Loader, views: Views) -> Iterator[tuple[npt.NDArray[np.int64], list[Pixels]]]:
    """Yield rows of the split and all views of their images, those of an image together; each file is read once."""

    def load(row: int) -> list[Pixels] | str:
        try:
            image = read_image(loader.split.path(row), channels=loader.preprocessing.channels)
        except ImageError as error:
            return error.reason
        return views.of(image, loader.preprocessing)

    count = len(loader.split)
    size = min(loader.batch_size, TOGETHER)  # a few whole images at several scales are a gigabyte soon enough
    with closing(in_order(load, range(count), workers=loader.workers, ahead=max(2, 2 * loader.workers))) as loads:
        for start in range(0, count, size):
            rows: list[int] = []
            pixels: list[Pixels] = []
            for row, loaded in zip(range(start, min(start + size, count)), loads, strict=False):
                if isinstance(loaded, str):
                    loader.unreadable.setdefault(row, loaded)
                else:
                    rows.append(row)
                    pixels += loaded
            if rows:
                yield np.array(rows), pixels


def _run(engine: Engine, pixels: list[Pixels], classes: int) -> np.ndarray:
    """Return the logits of images of several shapes, M×K: those of one shape run together."""
    logits = np.empty((len(pixels), classes), np.float32)
    shapes = [one.shape for one in pixels]
    for shape in dict.fromkeys(shapes):
        alike = [place for place, other in enumerate(shapes) if other == shape]
        logits[alike] = engine(np.stack([pixels[place] for place in alike]))
    return logits


def log_mean_softmax(logits: np.ndarray) -> np.ndarray:
    """Return the logarithm of the softmax outputs' mean over V views: logits N×V×K → N×K in float64.

    It is taken among logarithms, so that a probability too small for a float stays a finite loss.
    """
    exact = logits.astype(np.float64)
    exact -= np.logaddexp.reduce(exact, axis=2, keepdims=True)
    mean: np.ndarray = np.logaddexp.reduce(exact, axis=1) - np.log(logits.shape[1])
    return mean
