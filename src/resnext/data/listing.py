"""List image files and their classes, from folders or a CSV file: each is looked at once, none opened."""

from __future__ import annotations

import csv
import os
import re
import stat
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from resnext.data.images import is_image_name, missing_reader
from resnext.errors import UserError

Purpose = Literal["train", "evaluate", "check"]

_NUMBERS = re.compile("([0-9]+)")


@dataclass
class Listing:
    """Files as columns; row i is an image of class `names[i]` in the split `splits[i]`.

    A path is relative to `root` with "/" between folders, or absolute where the file lies outside.
    """

    root: Path
    paths: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    mtimes_ns: list[int] = field(default_factory=list)
    groups: list[str | None] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    ignored_paths: dict[str, list[str]] | None = None  # by reason, where they are asked for

    def add(self, path: str, name: str, split: str, status: os.stat_result, group: str | None = None) -> None:
        """Append one file."""
        self.paths.append(path)
        self.names.append(name)
        self.splits.append(split)
        self.sizes.append(status.st_size)
        self.mtimes_ns.append(status.st_mtime_ns)
        self.groups.append(group)

    def pass_over(self, reason: str, path: str) -> None:
        """Count what is not taken for an image."""
        self.ignored[reason] += 1
        if self.ignored_paths is not None:
            self.ignored_paths.setdefault(reason, []).append(_below(path, self.root))


def natural_key(name: str) -> tuple[object, ...]:
    """Return a sort key under which numbers in names count as numbers: "class 2" before "class 10"."""
    parts = _NUMBERS.split(name.casefold())
    digits = [part.lstrip("0") for part in parts[1::2]]
    parts[1::2] = [f"{len(number):05}{number}" for number in digits]
    return tuple(parts), name


def list_images(data: Path, purpose: Purpose) -> Listing:
    """List what DATA, a folder or a CSV file, holds for training or for evaluation.

    For training the splits are "train" and, where given, "val"; the test split is not looked at. For
    evaluation there is one split, "test": the test split, else the validation split (with a note), else,
    where DATA has no splits, everything. A file that this install cannot read (HEIC without its extra) raises
    `UserError`, as do folders that cannot be listed and mistakes in the CSV file. To check, the splits are those
    that there are, else "train", what is passed over is named, and no file is refused.
    """
    try:
        listing = _list_folder(data, purpose) if data.is_dir() else _list_csv(data, purpose)
    except OSError as error:
        raise UserError(f"{error.filename or data} cannot be read: {error.strerror or error}.") from error
    if purpose != "check":
        _check_readers(listing)
    return listing


def _empty(root: Path, purpose: Purpose) -> Listing:
    return Listing(root, ignored_paths={} if purpose == "check" else None)


def _recorded_splits(found: Collection[str], purpose: Purpose, data: Path) -> dict[str, str]:
    """Map the splits to be read, of those found in DATA, to the names under which they are recorded."""
    if purpose == "check":
        return {name: name for name in found}
    if purpose == "train":
        if "train" in found:
            return {"train": "train", "val": "val"}
        raise UserError(f"{data} has no training images: of its splits, none is called 'train'.")
    if "test" in found:
        return {"test": "test"}
    if "val" in found:
        return {"val": "test"}
    raise UserError(
        f"{data} has training images alone, and a network is not evaluated on those.\n"
        "Add a test split, or name a folder of images without splits as DATA."
    )


def _list_folder(root: Path, purpose: Purpose) -> Listing:
    """List the class folders of DATA, or of the splits in it where there is a folder train/ (or test/)."""
    looked_for = ("train", "val") if purpose == "train" else ("train", "val", "test")
    found = [name for name in looked_for if (root / name).is_dir()]
    listing = _empty(root.resolve(), purpose)
    if "train" not in found and "test" not in found:
        _list_classes(listing, "", "test" if purpose == "evaluate" else "train")
        return listing
    recorded = _recorded_splits(found, purpose, root)
    _note_evaluation(listing, recorded)
    for entry in _entries(root):
        if entry.name in recorded and entry.is_dir():
            before = len(listing.paths)
            _list_classes(listing, entry.name, recorded[entry.name])
            if len(listing.paths) == before:
                listing.notes.append(f"{entry.name}/ holds no images: it is passed over")
        elif entry.name not in ("train", "val", "test"):
            listing.pass_over("hidden" if entry.name.startswith(".") else "beside the splits", entry.path)
    return listing


def _note_evaluation(listing: Listing, recorded: dict[str, str]) -> None:
    if recorded.get("val") == "test":
        listing.notes.append("there is no test split: these are the validation images, which chose the network")


def _list_classes(listing: Listing, place: str, split: str) -> None:
    """List every class folder in the folder `place`; what else lies there is counted."""
    for entry in _entries(listing.root / place):
        if entry.name.startswith("."):
            listing.pass_over("hidden", entry.path)
        elif entry.is_dir():
            _list_class(listing, entry, split)
        elif is_image_name(entry.name):
            listing.pass_over("outside a class folder", entry.path)
        else:
            listing.pass_over("not an image", entry.path)


def _list_class(listing: Listing, folder: os.DirEntry[str], split: str) -> None:
    """List the images below one class folder; where there are none, it is no class."""
    before, start = len(listing.paths), len(os.path.join(listing.root, ""))  # noqa: PTH118  ("/" at the end)
    for entry in _images_below(folder, listing):
        listing.add(entry.path[start:], folder.name, split, entry.stat())
    if len(listing.paths) == before:
        listing.notes.append(f"the folder {folder.path[start:]!r} holds no images: it is not taken for a class")


def _images_below(folder: os.DirEntry[str], listing: Listing) -> Iterator[os.DirEntry[str]]:
    """Yield the image files below a folder, one folder after another, each in natural order."""
    pending: list[tuple[os.DirEntry[str], frozenset[tuple[int, int]]]] = [(folder, frozenset())]
    while pending:
        current, above = pending.pop()
        status = current.stat()
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            listing.pass_over("a link to a folder above it", current.path)
            continue
        deeper = []
        for entry in _entries(current):
            if entry.name.startswith("."):
                listing.pass_over("hidden", entry.path)
            elif entry.is_dir():
                deeper.append((entry, above | {identity}))
            elif not is_image_name(entry.name):
                listing.pass_over("not an image", entry.path)
            elif not entry.is_file():
                listing.pass_over("not a file", entry.path)
            else:
                yield entry
        pending.extend(reversed(deeper))


def _entries(folder: Path | os.DirEntry[str]) -> list[os.DirEntry[str]]:
    """Return what lies in a folder, in natural order."""
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: natural_key(entry.name))


def _list_csv(path: Path, purpose: Purpose) -> Listing:
    """List the files of a CSV file with the columns path, label and, where it has them, split and group.

    Relative paths start at the CSV file's folder. Files of a split that is not asked for are not looked at.
    """
    if path.suffix.lower() != ".csv":
        raise UserError(f"{path} is neither a folder nor a .csv file: give one of these as DATA.")
    listing = _empty(path.parent.resolve(), purpose)
    rows = list(_csv_rows(path))
    recorded = {"": "test" if purpose == "evaluate" else "train"}
    if found := {split for _, _, _, split, _ in rows} - {""}:
        recorded = _recorded_splits(found, purpose, path)
    _note_evaluation(listing, recorded)
    seen: dict[str, tuple[str, str, int]] = {}
    for line, place, label, split, group in rows:
        full = os.path.normpath(listing.root / place)
        before = seen.setdefault(full, (label, split, line))
        if before[2] != line and before[:2] == (label, split):
            listing.pass_over("repeated row", full)
            continue
        if before[:2] != (label, split):
            raise UserError(
                f"{path}, lines {before[2]} and {line}: {place!r} has two labels or is in two splits. Leave one row."
            )
        if split in recorded:
            listing.add(_below(full, listing.root), label, recorded[split], _status(full, path, line), group)
    return listing


def _csv_rows(path: Path) -> Iterator[tuple[int, str, str, str, str | None]]:
    """Yield line, path, label, split ("" where the file has no such column) and group of each row."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True, skipinitialspace=True)
        try:
            columns = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            for name in ("path", "label"):
                if name not in columns:
                    raise UserError(
                        f"{path} has no column {name!r}; its first line must be path,label[,split][,group] "
                        f"with commas between, but is {','.join(columns)[:80]!r}."
                    )
            for row in reader:
                yield reader.line_num, *_checked_row(row, f"{path}, line {reader.line_num}")
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{path}, line {reader.line_num + 1} is not CSV in UTF-8: {error}.") from error


def _checked_row(row: dict[str, str], where: str) -> tuple[str, str, str, str | None]:
    """Return path, label, split and group of one row; `UserError` naming `where` for what cannot be."""
    if None in row or None in row.values():
        raise UserError(f"{where}: not as many fields as the first line has. Put quotes around commas in names.")
    row["label"] = row["label"].strip()
    for name in ("path", "label"):
        if not row[name] or "\0" in row[name]:
            raise UserError(f"{where}: the {name} is empty.")
    if "split" in row and row["split"] not in ("train", "val", "test"):
        raise UserError(f"{where}: unknown split {row['split']!r}. Write train, val or test.")
    return row["path"], row["label"], row.get("split", ""), row.get("group") or None


def _below(path: str, root: Path) -> str:
    """Return a path relative to `root` where it lies below it, else as it is."""
    start = os.path.join(root, "")  # noqa: PTH118  ("/" at the end)
    return path.removeprefix(start)


def _status(path: str, table: Path, line: int) -> os.stat_result:
    """Look at a file that a row of a CSV file names."""
    try:
        status = os.stat(path)  # noqa: PTH116  (a Path costs more than the call)
    except OSError as error:
        raise UserError(
            f"{table}, line {line}: {path}: {error.strerror}. Paths start at the CSV file's folder."
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{table}, line {line}: {path} is not a file.")
    return status


def _check_readers(listing: Listing) -> None:
    """Raise `UserError` where this install has no reader for one of the files, going by the suffixes."""
    example = {path[path.rfind(".") :]: path for path in reversed(listing.paths)}
    for suffix, path in example.items():
        if remedy := missing_reader(suffix):
            raise UserError(f"{listing.root / path}: this install cannot read {suffix} files.\nRun: {remedy}")
