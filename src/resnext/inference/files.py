"""From a bundle and paths to labels, streamed in batches; what grows with the number of files is their paths."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resnext import machine
from resnext.bundle import Bundle
from resnext.data.images import is_image_name
from resnext.data.listing import natural_key
from resnext.data.loader import Files, Loader
from resnext.data.manifest import Split
from resnext.engine import TorchEngine
from resnext.errors import UserError
from resnext.inference.classifier import Classifier, Prediction, Unreadable
from resnext.inference.engines import stored
from resnext.weights import spec

ENGINES = ("auto", "torch")


def load(bundle: str | Path, *, device: str = "auto", precision: str | None = None, engine: str = "auto") -> Classifier:
    """Load a bundle or a run's bundle, or weights made elsewhere (`torchvision:NAME`, …), ready to classify.

    As they are, the arguments mean the bundle's optimised engine where it has one that fits this machine, and torch
    in fp32 otherwise; `Classifier.notes` says which. `engine` "torch", a `device` (cpu, cuda or mps) or a `precision`
    (fp32, bf16, fp16, or auto, the fastest) mean torch. Raises UserError where there is no bundle, it is damaged, or
    the machine has no such device; an optimised engine that is damaged is only left aside.
    """
    if engine not in ENGINES:
        raise UserError(f"There is no engine {engine!r}. Choose one of {', '.join(ENGINES)}.")
    opened, notes = _elsewhere(str(bundle)) if _is_word(bundle) else (Bundle.open(bundle), [])
    if engine == "auto" and device == "auto" and precision is None:
        optimised, why_not = stored.open(opened)
        if optimised is not None:
            return Classifier(opened, optimised, notes)
        notes += [why_not] if why_not else []
    network = opened.build()
    eager = TorchEngine(network, opened.contents.preprocessing, device=device, precision=precision or "fp32")
    return Classifier(opened, eager, notes)


def _is_word(place: str | Path) -> bool:
    """Whether a place is a word for weights made elsewhere, such as `torchvision:NAME`."""
    return str(place).partition(":")[0] in spec.KINDS and not Path(place).exists()


def _elsewhere(word: str) -> tuple[Bundle, list[str]]:
    """Return the bundle that is made of weights from elsewhere, and what a user must know before using them."""
    from resnext.weights import elsewhere, licences

    opened = Bundle.open(elsewhere.as_bundle(word))
    warning = licences.warning(opened.contents.licence, word)
    return opened, [warning] if warning else []


def predict_files(
    classifier: Classifier, paths: Sequence[str | Path], *, top: int | None = None
) -> Iterator[Prediction | Unreadable]:
    """Classify files, and the images below folders, in order.

    A file that does not exist or cannot be read gives an Unreadable in its place. Raises UserError for a folder
    without images.
    """
    if top is not None and top < 1:
        raise UserError(f"--top {top} ranks nothing. Give 1 or more.")
    for one in outputs(classifier, paths):
        yield one if isinstance(one, Unreadable) else classifier.rank(one.logits[None], [one.path], top)[0]


@dataclass(frozen=True)
class Output:
    """An image file as the network sees it, uint8 S×S×C, and its logits K."""

    path: str
    pixels: np.ndarray
    logits: np.ndarray


def outputs(classifier: Classifier, paths: Sequence[str | Path]) -> Iterator[Output | Unreadable]:
    """Run files, and the images below folders, through a classifier's engine, in order.

    A file that does not exist or cannot be read gives an Unreadable in its place. Raises UserError for a folder
    without images.
    """
    split = as_split(classifier, [file for path in paths for file in files_of(path)])
    loader = reader(classifier, split)
    following = 0
    for batch in loader.sequential():
        logits = classifier.engine(batch.pixels) if len(batch.indices) else None
        for row, index in enumerate(batch.indices.tolist()):
            yield from _unreadable(loader, following, index)
            assert logits is not None
            yield Output(str(split.path(index)), batch.pixels[row], logits[row])
            following = index + 1
    yield from _unreadable(loader, following, len(split))


def reader(classifier: Classifier, split: Split) -> Loader:
    """Return the loader that reads a split's files in order, in batches that suit the classifier's engine."""
    preprocessing = classifier.preprocessing
    classifier.open_for(len(split))
    return Loader(
        Files(split, preprocessing, scaled=classifier.scaled),
        split,
        preprocessing,
        batch_size=classifier.engine.batch_size,
        workers=machine.cores(),
    )


def _unreadable(loader: Loader, start: int, stop: int) -> Iterator[Unreadable]:
    for index in range(start, stop):
        yield Unreadable(str(loader.split.path(index)), loader.unreadable[index])


def files_of(given: str | Path) -> list[Path]:
    """Return a file as it is given, or the images below a folder; raises UserError where there are none."""
    if given == "":
        raise UserError("An empty path names no image. Give image files, or a folder of them.")
    path = Path(given)
    if path.is_dir():
        found = images_below(path)
        if not found:
            raise UserError(f"{path} holds no images. Give image files, or a folder of them.")
        return found
    return [path]


def images_below(folder: Path) -> list[Path]:
    """Return the image files below a folder, hidden ones left out, in natural order."""
    files: list[Path] = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(place) / name for name in names if is_image_name(name) and not name.startswith(".")]
    return sorted(files, key=lambda file: natural_key(str(file)))


class Listed(Split):
    """Files in the form in which the loader takes images, without labels; `paths` are a list.

    A column of pyarrow would take longer to import than all that one photo needs.
    """

    def path(self, index: int) -> Path:
        """Return where the image of a row lies."""
        return Path(self.paths[index])


def as_split(classifier: Classifier, files: Sequence[Path]) -> Split:
    """Return files in the form in which the loader takes images; raises UserError for a name that is not UTF-8."""
    paths = [str(file) for file in files]
    for path in paths:
        try:
            path.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"A file's name is not UTF-8: {path!r}. Rename it.") from error
    zeros = np.zeros(len(files), np.int64)
    return Listed(Path(), classifier.classes, paths, zeros.astype(np.int32), zeros, zeros)
