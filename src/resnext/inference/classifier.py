"""A classifier: a bundle and an engine, from image files to labels by the one straight line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from PIL import Image

from resnext.bundle import Bundle
from resnext.data.images import as_picture, read_image
from resnext.data.preprocessing import Preprocessing
from resnext.engine import Engine, TorchEngine, rank
from resnext.errors import UserError
from resnext.inference.engines.stored import StoredEngine

if TYPE_CHECKING:
    import torch

Picture = str | Path | bytes | Image.Image | np.ndarray


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of one image: the best label, its probability, and (label, probability) best first."""

    label: str
    probability: float
    ranked: tuple[tuple[str, float], ...]
    path: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the prediction as `predict --json` prints it."""
        return {
            "path": self.path,
            "label": self.label,
            "probability": self.probability,
            "ranked": [{"label": label, "probability": share} for label, share in self.ranked],
        }


@dataclass(frozen=True)
class Unreadable:
    """A file that could not be read, and why."""

    path: str
    error: str

    def to_dict(self) -> dict[str, Any]:
        """Return the failure as `predict --json` prints it."""
        return asdict(self)


class Classifier:
    """Classify images with a bundle.

    `classifier("photo.jpg")` gives a Prediction, `classifier(["a.jpg", "b.jpg"])` a list of them.
    """

    def __init__(self, bundle: Bundle, engine: Engine, notes: Sequence[str] = ()) -> None:
        self.bundle = bundle
        self.engine = engine
        self._notes = tuple(notes)

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names in the order of the network's outputs."""
        return self.bundle.contents.classes

    @property
    def preprocessing(self) -> Preprocessing:
        """What lies between a decoded image and the network's input."""
        return self.bundle.contents.preprocessing

    @property
    def scaled(self) -> bool:
        """Whether the engine was proved on large photos that are decoded at a part of their size."""
        return isinstance(self.engine, StoredEngine) and self.engine.scaled

    def open_for(self, count: int) -> None:
        """Have a stored engine open what so many images need: how they are read may depend on whether it can."""
        if isinstance(self.engine, StoredEngine):
            self.engine.open_for(min(count, self.engine.batch_size))

    @property
    def notes(self) -> tuple[str, ...]:
        """How probabilities were calibrated; which optimised engine runs and how it was proved, or why it does not.

        An engine opens its files when it is first used, so the last word is spoken after the first image.
        """
        notes = list(self._notes)
        if self.bundle.contents.calibration:
            fitted = self.bundle.contents.calibration.get("data", "other images")
            notes.append(
                f"Probabilities are calibrated: temperature {self.bundle.contents.temperature:.2f}, fitted on {fitted}."
            )
        return (*notes, self.engine.note) if isinstance(self.engine, StoredEngine) else tuple(notes)

    @cached_property
    def network(self) -> torch.nn.Module:
        """The trained network, in evaluation mode."""
        return self.engine.network if isinstance(self.engine, TorchEngine) else self.bundle.build()

    @overload
    def __call__(self, images: Picture, top: int | None = None) -> Prediction: ...
    @overload
    def __call__(self, images: list[Picture], top: int | None = None) -> list[Prediction]: ...
    def __call__(self, images: Picture | list[Picture], top: int | None = None) -> Prediction | list[Prediction]:
        """Classify one image or several: paths, encoded bytes, Pillow images, or uint8 arrays H×W×C.

        `top` limits how many classes are ranked. Raises ImageError for an image that cannot be read.
        """
        if isinstance(images, Picture):
            return self._classify([images], top)[0]
        return self._classify(images, top)

    def embed(self, images: Picture | list[Picture]) -> np.ndarray:
        """Return what the network knows of images before its classifier: float32 F for one image, N×F for a list.

        The images are as for a call. Computed in torch in fp32, whichever engine classifies.
        """
        from resnext.inference.embedding import embedder

        pictures = [images] if isinstance(images, Picture) else images
        if not pictures:
            raise UserError("There are no images to embed. Give at least one.")
        pixels = np.stack([self.preprocessing.pixels(self._read(picture)) for picture in pictures])
        vectors = embedder(self).engine(pixels)
        return vectors[0] if isinstance(images, Picture) else vectors

    def threshold(self, precision: float) -> float:
        """Return the probability from which on answers were right as often as `precision` on the bundle's own images.

        Raises UserError where the bundle has none for that precision.
        """
        known = self.bundle.contents.calibration.get("thresholds", {})
        if f"{precision:g}" not in known:
            there = f"It has {', '.join(known)}." if known else "It has none: it was not calibrated."
            raise UserError(f"{self.bundle.path} has no threshold for a precision of {precision:g}. {there}")
        return float(known[f"{precision:g}"]["threshold"])

    def _classify(self, pictures: Sequence[Picture], top: int | None) -> list[Prediction]:
        if not pictures:
            return []
        self.open_for(len(pictures))
        pixels = [self.preprocessing.pixels(self._read(picture)) for picture in pictures]
        names = [str(picture) if isinstance(picture, (str, Path)) else None for picture in pictures]
        return self.rank(self.engine(np.stack(pixels)), names, top)

    def _read(self, picture: Picture) -> Image.Image:
        channels = self.preprocessing.channels
        if isinstance(picture, np.ndarray):
            if (
                picture.dtype != np.uint8
                or picture.ndim not in (2, 3)
                or picture.shape[2:] not in ((), (1,), (3,), (4,))
            ):
                raise UserError(
                    f"An array of {picture.dtype} and shape {picture.shape} is no image. "
                    "Give uint8, H×W or H×W×C with 1, 3 or 4 channels."
                )
            picture = Image.fromarray(picture[..., 0] if picture.shape[2:] == (1,) else picture)
        if isinstance(picture, Image.Image):
            return as_picture(picture, channels=channels)
        return read_image(picture, channels=channels, enough=self.preprocessing.enough if self.scaled else None)

    def rank(self, logits: np.ndarray, names: Sequence[str | None], top: int | None) -> list[Prediction]:
        """Turn logits N×K into predictions, by the bundle's temperature; `names` are the images' paths, or None."""
        order, shares = rank(logits.astype(np.float64) / self.bundle.contents.temperature, top)
        predictions = []
        for name, row, values in zip(names, order, shares, strict=True):
            ranked = tuple((self.classes[index], float(share)) for index, share in zip(row, values, strict=True))
            predictions.append(Prediction(*ranked[0], ranked, name))
        return predictions
