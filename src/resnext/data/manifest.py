"""Which image is in which class and split: columns, made once and shared by everything that reads images."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from resnext import durable
from resnext.data import splitting
from resnext.data.copies import Copies, find
from resnext.data.cuts import Cuts
from resnext.data.fingerprints import fingerprints
from resnext.data.listing import Listing, Purpose, list_images, natural_key
from resnext.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import pyarrow as pa

SPLITS = ("train", "val", "test")

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Split:
    """One split as columns, at most 200 bytes an image.

    Row i of `paths` (relative to `root` with "/" between folders, or absolute) is an image of class
    `classes[labels[i]]` whose file had `sizes[i]` bytes and the modification time `mtimes_ns[i]` when listed.
    """

    root: Path
    classes: tuple[str, ...]
    paths: pa.Array | pa.ChunkedArray
    labels: npt.NDArray[np.int32]
    sizes: npt.NDArray[np.int64]
    mtimes_ns: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> Path:
        """Return where the image of a row lies."""
        return self.root / str(self.paths[int(index)].as_py())


@dataclass(frozen=True)
class Manifest:
    """All images of a run with their classes and splits.

    The columns of `table` are path (string, relative to `root` or absolute), label (int32, an index into
    `classes`), split (string), size (int64, bytes), mtime_ns (int64) and group (string or null).
    `ignored` counts what lay in the folders and was passed over, by reason; `notes` are for the user.
    """

    root: Path
    classes: tuple[str, ...]
    table: pa.Table
    ignored: dict[str, int]
    notes: tuple[str, ...]

    def split(self, name: str) -> Split:
        """Return the rows of "train", "val" or "test" in their order; there may be none."""
        import pyarrow.compute as pc

        if name not in SPLITS:
            raise UserError(f"No split is called {name!r}: there are {', '.join(SPLITS)}.")
        rows = self.table.filter(pc.equal(self.table["split"], name)).combine_chunks()
        numbers = {column: rows[column].to_numpy() for column in ("label", "size", "mtime_ns")}
        return Split(self.root, self.classes, rows["path"], numbers["label"], numbers["size"], numbers["mtime_ns"])

    def content_hash(self) -> str:
        """Return a hash of root, classes, paths, labels and splits; sizes and times of files do not count."""
        digest = hashlib.sha256(json.dumps([str(self.root), self.classes]).encode())
        for column in ("path", "split"):
            digest.update("\0".join(self.table[column].to_pylist()).encode())
        digest.update(self.table["label"].to_numpy().astype("<i4").tobytes())
        return digest.hexdigest()

    def write(self, path: Path) -> None:
        """Write a Parquet file, safely; `read` is the way back."""
        about = {
            "root": str(self.root),
            "classes": self.classes,
            "ignored": self.ignored,
            "notes": self.notes,
        }
        durable.write_table(path, self.table.replace_schema_metadata({"resnext": json.dumps(about)}))

    @classmethod
    def read(cls, path: str | Path) -> Manifest:
        """Read what `write` wrote; anything else raises `UserError`."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(path)
            about = json.loads(table.schema.metadata[b"resnext"])
            table = table.replace_schema_metadata(None).cast(_schema())
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"{path} is no manifest that this version can read: {reason}.") from error
        return cls(Path(about["root"]), tuple(about["classes"]), table, about["ignored"], tuple(about["notes"]))


def scan(
    data: str | Path,
    *,
    purpose: Purpose = "train",
    seed: int = 0,
    validation: float = 0.1,
    classes: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """List DATA: a folder, a CSV file (see `list_images`) or the name of a set, which is fetched.

    For training, the splits are "train" and "val"; where DATA has no validation split, the share `validation`
    of each class is cut from the training images as `seed` draws, exact and near copies of an image on one side: all
    files are read for that, those that have not changed once and for all. `progress` is called with what is being done,
    how much is done and of how much. For evaluation, all images are in "test". Labels index `classes` (a bundle's)
    where given, else DATA's own classes in natural order.

    Raises `UserError` for DATA that is missing, has no images, or has a class that is none of `classes` or,
    in the validation split, none of training's; to train, also for a single class or one image a class.
    """
    if not 0 < validation < 1:
        raise UserError(f"The validation share is {validation}, but must lie between 0 and 1.")
    listing = list_images(located(data), purpose)
    if not listing.paths:
        raise UserError(nothing_found(data, listing.ignored))
    if purpose == "train":
        _check_trainable(data, listing)
    known = tuple(classes or _own_classes(listing, purpose))
    _check_names(data, listing, known, "the network has" if classes else "the training images have")
    table = _table(listing, known)
    notes = (*listing.notes, *_missing_classes(listing, known), *_passed_over(listing.ignored))
    manifest = Manifest(listing.root, known, table, dict(listing.ignored), notes)
    if purpose == "train" and "val" not in listing.splits:
        return _with_validation(manifest, seed, validation, progress)
    return manifest


def folds(manifest: Manifest, k: int, seed: int, progress: Progress | None = None) -> list[Manifest]:
    """Return `k` manifests of the same images; each validates another k-th of train and val together.

    Stratified, with copies and groups on one side, and `progress`, as in `scan`. Raises `UserError` where `k` is below
    2 or too large for the images.
    """
    if k < 2:
        raise UserError(f"{k} fold(s) cannot be cut: the number of folds must be 2 or more.")
    units, notes = _units(manifest, seed, progress)
    masks = splitting.folds(units, k)
    if not all(mask.any() for mask in masks):
        raise UserError(f"{k} folds are too many for {len(units)} different images or groups. Ask for fewer.")
    return [
        _recut(manifest, mask, [*notes, f"validation: fold {number} of {k} (seed {seed})"])
        for number, mask in enumerate(masks, start=1)
    ]


def located(data: str | Path) -> Path:
    """Return where DATA lies, after fetching it where it is the name of a set and no such path exists."""
    path = Path(data).expanduser()
    try:
        path.stat()
    except (OSError, ValueError) as error:
        from resnext.data import named  # here, as what fetches takes long to import

        if str(data) in named.NAMES:
            return named.fetch(str(data))
        reason = getattr(error, "strerror", None) or "not a possible path"
        raise UserError(
            f"{data}: {reason}.{did_you_mean(str(data), named.NAMES)}\n"
            f"DATA is a folder with one folder of images a class, a CSV file, or {' | '.join(named.NAMES)}."
        ) from error
    return path


def _passed_over(ignored: Counter[str]) -> list[str]:
    """Say what was not taken for an image, where there was something."""
    counts = ", ".join(f"{count:,} {reason}" for reason, count in ignored.items() if count)
    return [f"passed over: {counts}"] if counts else []


def nothing_found(data: str | Path, ignored: Counter[str]) -> str:
    """Say that DATA holds no images, and what it holds instead."""
    if Path(data).suffix.lower() == ".csv":
        return f"{data} names no images. Add a line path,label for each."
    if ignored["outside a class folder"]:
        return (
            f"{data} has {ignored['outside a class folder']:,} image(s), but in no class folder.\n"
            f"Put the images of each class in a folder of its own: {data}/CLASS/*.jpg."
        )
    passed_over = ", ".join(f"{count:,} {reason}" for reason, count in ignored.items()) or "it is empty"
    return f"{data} has no images ({passed_over}).\nPut the images of each class in a folder {data}/CLASS."


def _own_classes(listing: Listing, purpose: Purpose) -> list[str]:
    pairs = zip(listing.names, listing.splits, strict=True)
    names = {name for name, split in pairs if split == "train" or purpose == "evaluate"}
    return sorted(names, key=natural_key)


def _check_names(data: str | Path, listing: Listing, known: tuple[str, ...], whose: str) -> None:
    """Raise `UserError` where an image is of a class that is none of `known`."""
    if unknown := sorted(set(listing.names) - set(known), key=natural_key):
        raise UserError(
            f"{data} has images of {_some(unknown)}: {whose} no such class."
            f"{did_you_mean(unknown[0], known)}\nRename the class, or take its images away."
        )


def _check_trainable(data: str | Path, listing: Listing) -> None:
    """Raise `UserError` where there is nothing to tell apart or nothing to validate on."""
    counts = Counter(name for name, split in zip(listing.names, listing.splits, strict=True) if split == "train")
    if counts.keys() <= {"val", "test"}:
        raise UserError(f"{data} has no training images: put their class folders in {data}/train.")
    if len(counts) < 2:
        only = next(iter(counts))
        nested = any(Path(path).parts[0] == only != Path(path).parent.name for path in listing.paths)
        hint = f"\nIf the folders in {only!r} are the classes, then DATA is {data}/{only}." if nested else ""
        raise UserError(f"{data} has one class only, {only!r}: training needs two or more class folders.{hint}")
    if max(counts.values()) == 1 and "val" not in listing.splits:
        raise UserError(f"{data} has one image a class: none is left to validate on. Add images, 20 a class or more.")


def _missing_classes(listing: Listing, known: tuple[str, ...]) -> list[str]:
    """Note which classes have no image in a split that others have images in."""
    present = set(zip(listing.splits, listing.names, strict=True))
    notes = []
    for split in dict.fromkeys(listing.splits):
        if missing := [name for name in known if (split, name) not in present]:
            notes.append(f"{split} has no image of {_some(missing)}")
    return notes


def _some(names: Sequence[str], limit: int = 5) -> str:
    """Write a list of names, shortened where it is long."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(repr(name) for name in names[:limit]) + more


def _schema() -> pa.Schema:
    import pyarrow as pa

    columns = {"path": pa.string(), "label": pa.int32(), "split": pa.string()}
    return pa.schema({**columns, "size": pa.int64(), "mtime_ns": pa.int64(), "group": pa.string()})


def _table(listing: Listing, known: tuple[str, ...]) -> pa.Table:
    import pyarrow as pa

    index = {name: label for label, name in enumerate(known)}
    labels = np.fromiter((index[name] for name in listing.names), np.int32, len(listing.names))
    paths = as_paths(listing.paths)
    columns = [paths, labels, listing.splits, listing.sizes, listing.mtimes_ns, listing.groups]
    return pa.table(columns, schema=_schema())


def as_paths(paths: Sequence[str]) -> pa.Array:
    """Return paths as a column; raises `UserError` for one that is not UTF-8."""
    import pyarrow as pa

    try:
        return pa.array(paths, pa.string())
    except UnicodeEncodeError as error:
        raise UserError(f"The file name {error.object!r} is not in UTF-8. Rename the file.") from error


def _with_validation(manifest: Manifest, seed: int, validation: float, progress: Progress | None) -> Manifest:
    """Return a manifest of which a part of the training images is in "val"."""
    cuts = _cuts(manifest, {"seed": seed, "validation": validation})
    if (remembered := cuts.read()) is not None:
        return _recut(manifest, *remembered)
    units, notes = _units(manifest, seed, progress)
    mask = splitting.cut(units, validation)
    if not mask.any():
        raise UserError(
            f"{manifest.root}: no class has two different images or groups, so none "
            "is left to validate on. Add images or groups, or give a validation split."
        )
    notes.append(f"validation: {mask.sum():,} of {len(mask):,} images are cut from the training images (seed {seed})")
    cuts.write(mask, notes)
    return _recut(manifest, mask, notes)


def _cuts(manifest: Manifest, options: dict[str, object]) -> Cuts:
    """Return what is remembered of cuts of these files."""
    table = manifest.table
    names = json.dumps([str(manifest.root), table["group"].drop_null().to_pylist()]).encode()
    numbers = [table[column].to_numpy() for column in ("label", "size", "mtime_ns")]
    groups = table["group"].is_null().to_numpy()
    paths = "\0".join(table["path"].to_pylist()).encode()
    return Cuts(len(table), [names, paths, groups.tobytes(), *(column.tobytes() for column in numbers)], options)


def _units(manifest: Manifest, seed: int, progress: Progress | None = None) -> tuple[list[splitting.Unit], list[str]]:
    """Return what has to stay together of a manifest for training, and notes; files that are not known are read."""
    notes: list[str] = []
    found = copies_of(manifest, progress, notes.append)
    table = manifest.table
    labels, paths, groups = table["label"].to_numpy(), table["path"].to_pylist(), table["group"].to_pylist()
    if found.near:
        notes.append(f"{sum(map(len, found.near)):,} images are near copies of others: each set stays on one side")
    return splitting.units(labels, paths, groups, found.together(), seed), notes


def copies_of(
    manifest: Manifest, progress: Progress | None = None, note: Callable[[str], None] | None = None
) -> Copies:
    """Return which rows of a manifest are copies of each other, after reading the files that are not known yet.

    `progress` is called with what is being done, how much is done and of how much; `note` with what a user should know.
    """

    def told(name: str) -> Callable[[int, int], None] | None:
        return None if progress is None else lambda done, total: progress(name, done, total)

    table = manifest.table
    paths, numbers = table["path"].combine_chunks(), (table[column].to_numpy() for column in ("size", "mtime_ns"))
    prints = fingerprints(manifest.root, paths, *numbers, progress=told("reading images"), note=note)
    return find(prints, told("looking for copies"))


def _recut(manifest: Manifest, validated: npt.NDArray[np.bool_], notes: Sequence[str]) -> Manifest:
    """Return the manifest with the marked rows in "val", all others in "train", and what is new to tell."""
    import pyarrow as pa

    splits = pa.array(np.where(validated, "val", "train"), pa.string())
    position = manifest.table.schema.get_field_index("split")
    table = manifest.table.set_column(position, "split", splits)
    others = [other for other in manifest.notes if not other.startswith("validation:") and other not in notes]
    return replace(manifest, table=table, notes=(*others, *notes))
