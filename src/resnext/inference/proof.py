"""Real images that calibrate a reduced precision and prove it: disjoint, drawn by seed, never from a test split."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from resnext import machine
from resnext.bundle import GOLDEN, Bundle
from resnext.data import named, order, splitting
from resnext.data.images import is_image_name
from resnext.data.listing import Listing, list_images, natural_key
from resnext.data.loader import Batch, Files, Loader, Source
from resnext.data.manifest import Manifest, Split
from resnext.equivalence.certificate import IMAGES_FOR_ACCURACY, IMAGES_FOR_AGREEMENT
from resnext.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import pyarrow as pa

# How many images are wanted.
CALIBRATION = 300  # of all classes alike; but no more than a quarter of those there are
CALIBRATION_LEAST = 100  # where the others are needed for proof
PROOF_LABELLED = 2_500  # what accuracy needs, and a reserve for files that cannot be read
PROOF_UNLABELLED = 1_000

BATCH = 32
MANIFEST = "manifest.parquet"
OF_TEST = "--calibration {} holds test images; they must not choose an engine. Name training or validation images."
HOW = "Give some: --calibration DATA (class folders as for training, or one folder of images without labels)."


class Drawn:
    """Images drawn for one purpose. Their files are read anew each time they are iterated over; none is kept."""

    def __init__(self, bundle: Bundle, pool: Pool, rows: NDArray[np.int64], source: Source | None = None) -> None:
        preprocessing, zeros = bundle.contents.preprocessing, np.zeros(len(rows), np.int64)
        labels = zeros.astype(np.int32) if pool.labels is None else pool.labels[rows]
        split = Split(pool.root, bundle.contents.classes, pool.paths.take(rows), labels, pool.sizes[rows], zeros)
        source = source or Files(split, preprocessing)
        self.labelled = pool.labels is not None
        self.loader = Loader(source, split, preprocessing, batch_size=BATCH, workers=machine.cores())

    def __len__(self) -> int:
        """How many were drawn, those included that turn out to be unreadable."""
        return len(self.loader.split)

    @property
    def paths(self) -> list[Path]:
        """Where they lie."""
        return [self.loader.split.path(index) for index in range(len(self))]

    @property
    def unreadable(self) -> dict[str, str]:
        """Which could not be read, of those that were tried so far, and why (path: reason)."""
        return {str(self.loader.split.path(index)): why for index, why in sorted(self.loader.unreadable.items())}

    def batches(self) -> Iterator[Batch]:
        """Yield those that can be read, at most `BATCH` at a time."""
        return (batch for batch in self.loader.sequential() if len(batch.indices))


class Calibration(Drawn):
    """Iterates over pixels uint8 N×S×S×C."""

    def __iter__(self) -> Iterator[np.ndarray]:
        return (batch.pixels for batch in self.batches())


class Proof(Drawn):
    """Iterates over (pixels uint8 N×S×S×C, class indices int64 N, or None where these are not known)."""

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        return ((batch.pixels, batch.labels if self.labelled else None) for batch in self.batches())


@dataclass(frozen=True)
class Images:
    """Images for calibration and, others, for proof; `source` tells in words where they come from.

    `told` is what was noted when they were drawn. Where the bundle's golden images are all there is, `lacking`
    says why.
    """

    calibration: Calibration
    proof: Proof
    source: str
    told: tuple[str, ...] = ()
    lacking: str = ""

    @property
    def labelled(self) -> bool:
        """Whether the classes of the proof images are known."""
        return self.proof.labelled

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know of these images; files that could not be read are named once they were tried."""
        unreadable = self.calibration.unreadable | self.proof.unreadable
        if not unreadable:
            return self.told
        path, why = next(iter(unreadable.items()))
        count = len(self.calibration) + len(self.proof)
        return (*self.told, f"unreadable and left out: {len(unreadable):,} of {count:,} images, such as {path}: {why}")

    def refusal(self, precision: str) -> str | None:
        """Return why these images cannot prove this precision at all and what to do, None where they may."""
        if precision == "fp32" or len(self.calibration):
            return None
        why = self.lacking or f"{self.source} is a single image"
        return f"bf16 and int8 must be calibrated and proved on real images: {why}.\n{HOW}"


@dataclass(frozen=True)
class Pool:
    """Images to draw from, as columns: `root / paths[i]` of `sizes[i]` bytes is of class `labels[i]`.

    `labels` are None where they are not known; `trained` marks training images, which prove less than others.
    """

    root: Path
    paths: pa.Array | pa.ChunkedArray
    labels: NDArray[np.int32] | None
    sizes: NDArray[np.int64]
    trained: NDArray[np.bool_]
    source: str
    notes: tuple[str, ...] = ()


def gather(bundle: Bundle, calibration: str | Path | None, *, seed: int = 0) -> Images:
    """Draw the images that calibrate and prove an optimised form of a bundle; no file is in both sets.

    They come from `calibration` (class folders, splits of them, a CSV file, a set's name, or one folder of images
    without labels); where that is None, from the run that made the bundle. Held-out images go to the proof,
    training images to calibration, and to the proof where it lacks some. Where there are neither, the bundle's
    golden images are left, which prove exact rewrites alone (see `Images.refusal`).

    Raises UserError for images of other classes than the bundle's, for a test split, where `calibration` holds no
    image, and where there is none at all.
    """
    pool = _of_run(bundle, seed) if calibration is None else _given(bundle, calibration)
    if isinstance(pool, str):
        return _golden(bundle, lacking=pool)
    first, second = _draw(pool, seed)
    distinct = _without_copies(pool, first, second)
    notes = (*pool.notes, *_notes(pool, first, distinct, copies=len(second) - len(distinct)))
    return Images(Calibration(bundle, pool, first), Proof(bundle, pool, distinct), pool.source, notes)


def _of_run(bundle: Bundle, seed: int) -> Pool | str:
    """Return the images of the run that the bundle lies in, or why they cannot serve."""
    import pyarrow.compute as pc

    run = bundle.path.parent
    if not (run / MANIFEST).is_file():
        return f"no --calibration was given, and {bundle.path} lies in no run that has a {MANIFEST}"
    manifest = Manifest.read(run / MANIFEST)
    if manifest.classes != bundle.contents.classes:
        return f"{run / MANIFEST} is of another run: its classes are not the bundle's"
    table = manifest.table.filter(pc.not_equal(manifest.table["split"], "test"))
    trained = pc.equal(table["split"], "train").to_numpy()
    columns = table["path"], table["label"].to_numpy(), table["size"].to_numpy(), trained
    pool = Pool(manifest.root, *columns, f"the images of the run {run}")
    some = order.permutation(seed, 0, len(trained))[:20]
    if not any((pool.root / pool.paths[row].as_py()).is_file() for row in some.tolist()):
        return f"the images of the run {run} are no longer in {manifest.root}"
    return pool


def _given(bundle: Bundle, calibration: str | Path) -> Pool:
    """Return the images that `--calibration` names; raises UserError where they cannot serve."""
    import pyarrow as pa

    classes = bundle.contents.classes
    place = _located(calibration, classes)
    listing = list_images(place, "train")
    folders = {os.path.dirname(path) for path in listing.paths} | {""}  # noqa: PTH120
    if any(_in_test_split(listing.root / folder) for folder in folders):
        raise UserError(OF_TEST.format(calibration))
    if not listing.paths:
        return _unlabelled(place)
    _check_classes(calibration, listing, bundle)
    index = {name: label for label, name in enumerate(classes)}
    labels = np.array([index[name] for name in listing.names], np.int32)
    in_splits = "val" in listing.splits or (place / "train").is_dir()
    trained = np.array(listing.splits) == ("train" if in_splits else "")
    columns = pa.array(listing.paths, pa.string()), labels, np.array(listing.sizes, np.int64), trained
    present = set(listing.names)
    missing = [name for name in classes if name not in present]
    notes = (*listing.notes, *([f"{calibration} has no image of {_some(missing)}"] if missing else []))
    return _with_training_images_marked(Pool(listing.root, *columns, str(calibration), notes), bundle)


def _located(data: str | Path, classes: Sequence[str]) -> Path:
    """Return where to look for images so that none of a test split is read; raises UserError where there is none.

    A test split that helped to choose an engine could no longer tell how good that engine is.
    """
    place = Path(data).expanduser()
    if not place.exists():
        near = did_you_mean(str(data), named.NAMES)
        if str(data) not in named.NAMES:
            raise UserError(f"--calibration {data}: there is no such file or folder.{near or ' Check the path.'}")
        place = named.fetch(str(data))
    if (place / "train").is_dir():
        return place
    if (place / "val").is_dir() and "val" not in classes:
        return place / "val"
    if (place / "test").is_dir() and "test" not in classes:
        raise UserError(OF_TEST.format(data))
    return place


def _in_test_split(folder: Path) -> bool:
    """Say whether a folder, or the one that it lies in, is the test split beside a train/ or val/."""
    tests = [one for one in (folder, folder.parent) if one.name == "test"]
    return any((one.parent / other).is_dir() for one in tests for other in ("train", "val"))


def _check_classes(data: str | Path, listing: Listing, bundle: Bundle) -> None:
    """Raise UserError where an image is of a class that the bundle does not know."""
    known = bundle.contents.classes
    if unknown := sorted(set(listing.names) - set(known), key=natural_key):
        raise UserError(
            f"--calibration {data} has images of {_some(unknown)}, but the classes of {bundle.path} are {_some(known)}."
            f"{did_you_mean(unknown[0], known)}\nGive images of the bundle's classes, or one folder of images "
            "without labels and without folders in it."
        )


def _unlabelled(folder: Path) -> Pool:
    """Return the images that lie directly in a folder; raises UserError where there are none."""
    import pyarrow as pa

    entries = sorted(folder.iterdir() if folder.is_dir() else (), key=lambda file: natural_key(file.name))
    files = [file for file in entries if is_image_name(file.name) and file.name[0] != "." and file.is_file()]
    if not files:
        raise UserError(f"--calibration {folder} holds no images.\n{HOW}")
    sizes = np.array([file.stat().st_size for file in files], np.int64)
    paths = pa.array([file.name for file in files], pa.string())
    return Pool(folder.resolve(), paths, None, sizes, np.zeros(len(files), bool), str(folder))


def _with_training_images_marked(pool: Pool, bundle: Bundle) -> Pool:
    """Mark what the bundle's run trained on, and unmark what it validated on, where its record is there."""
    record = bundle.path.parent / MANIFEST
    if not record.is_file():
        return pool
    manifest = Manifest.read(record)
    columns = zip(manifest.table["path"].to_pylist(), manifest.table["split"].to_pylist(), strict=True)
    split = {os.path.join(manifest.root, path): name for path, name in columns}  # noqa: PTH118  (a Path costs more)
    places = (os.path.join(pool.root, path) for path in pool.paths.to_pylist())  # noqa: PTH118
    known = zip(map(split.get, places), pool.trained.tolist(), strict=True)
    return replace(pool, trained=np.array([name == "train" if name else marked for name, marked in known], bool))


def _draw(pool: Pool, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows for calibration, all classes in turn, and other rows for proof, held-out images first."""
    count = len(pool.sizes)
    shuffled = order.permutation(seed, 0, count)
    labels = np.zeros(count, np.int32) if pool.labels is None else pool.labels[shuffled]
    trained = pool.trained[shuffled]
    first = np.lexsort((_turns(2 * labels + trained), ~trained))[: _calibrating(count, pool.labels is not None)]
    rest = np.delete(np.arange(count), first)
    rest = rest[np.argsort(trained[rest], kind="stable")]
    most = PROOF_UNLABELLED if pool.labels is None else PROOF_LABELLED
    return shuffled[first], shuffled[rest[:most]]


def _calibrating(count: int, labelled: bool) -> int:
    """Return how many of `count` images calibrate: the proof comes first, as long as `CALIBRATION_LEAST` are left."""
    wanted = min(CALIBRATION, max(count // 4, int(count > 1)))
    gates = (IMAGES_FOR_ACCURACY, IMAGES_FOR_AGREEMENT) if labelled else (IMAGES_FOR_AGREEMENT,)
    return next((min(wanted, count - gate) for gate in gates if count - gate >= CALIBRATION_LEAST), wanted)


def _turns(labels: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return for each label how many equal ones stand before it."""
    by_class = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[by_class], labels[by_class])
    turns = np.empty(len(labels), np.int64)
    turns[by_class] = np.arange(len(labels)) - starts
    return turns


def _without_copies(pool: Pool, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the rows of `second` whose files are not copies of one of `first`."""
    rows = np.concatenate([first, second])
    paths = pool.paths.take(rows).to_pylist()
    alike = splitting.copies(pool.root, paths, pool.sizes[rows])
    repeated = {row for copies in alike if min(copies) < len(first) for row in copies}
    return np.array([row for place, row in enumerate(rows) if place >= len(first) and place not in repeated], np.int64)


def _notes(pool: Pool, first: NDArray[np.int64], second: NDArray[np.int64], copies: int) -> list[str]:
    """Say what the proof lacks."""
    notes, count = [], len(second)
    if trained := int(pool.trained[second].sum()):
        notes.append(
            f"{trained:,} of {count:,} proof images are training images, for want of others: accuracy on them "
            "flatters both sides alike"
        )
    if len(first) < CALIBRATION:
        notes.append(f"{len(first):,} images for calibration, fewer than the {CALIBRATION:,} wanted")
    if count < IMAGES_FOR_AGREEMENT:
        notes.append(f"{count:,} images for proof, fewer than the {IMAGES_FOR_AGREEMENT:,} that agreement needs")
    elif pool.labels is not None and count < IMAGES_FOR_ACCURACY:
        notes.append(f"{count:,} labelled images for proof, fewer than the {IMAGES_FOR_ACCURACY:,} of accuracy")
    if copies:
        notes.append(f"{copies:,} images are copies of calibration images and prove nothing: left out")
    return notes


@dataclass(frozen=True)
class _Golden:
    """The source of golden images, uint8 N×S×S×C: nothing is left to read."""

    pixels: NDArray[np.uint8]

    def read(self, index: int) -> NDArray[np.uint8]:
        return np.asarray(self.pixels[index])

    def read_many(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.uint8], dict[int, str]]:
        return self.pixels[indices], {}


def _golden(bundle: Bundle, lacking: str) -> Images:
    """Return the bundle's golden images, all for proof; raises UserError where it has none."""
    import pyarrow as pa

    if GOLDEN not in bundle.files:
        raise UserError(f"An optimised engine must be proved on real images: {lacking}.\n{HOW}")
    pixels = bundle.read(GOLDEN)["pixels"]
    rows = np.arange(len(pixels))
    source = f"the bundle's {len(pixels)} golden images"
    pool = Pool(bundle.path, pa.array([GOLDEN] * len(rows), pa.string()), None, 0 * rows, rows < 0, source)
    proof = Proof(bundle, pool, rows, _Golden(pixels))
    return Images(Calibration(bundle, pool, rows[:0]), proof, source, lacking=lacking)


def _some(names: Sequence[str]) -> str:
    """Write a list of names, shortened where it is long."""
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
