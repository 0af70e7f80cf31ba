"""Sets known by name: fetched once, checked by hash, unpacked without pickle into folders of PNG files.

CIFAR-10, CIFAR-100: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009); binary form.
Fashion-MNIST: Xiao et al., arXiv:1708.07747, idx files.
"""

from __future__ import annotations

import fcntl
import gzip
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
from PIL import Image

from resnext import durable, fetching
from resnext.errors import UserError


@dataclass(frozen=True)
class Part:
    """One split of a set: uint8 images, N×H×W or N×H×W×3, and their labels, indices into `classes`."""

    split: str
    classes: Sequence[str]
    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class NamedSet:
    """Where a set's files lie, the MD5 of each, and how to read them, given in the same order."""

    base: str
    files: Mapping[str, str]
    parts: Callable[[Sequence[Path]], Iterator[Part]]


def _cifar(archives: Sequence[Path]) -> Iterator[Part]:
    """Read CIFAR's binary version: records of one or two label bytes (the last counts) and 3×32×32 pixels."""
    members = {}
    with tarfile.open(archives[0], "r:gz") as archive:
        for member in archive:
            if member.isfile():  # read into memory: no path of the archive touches the disk
                members[PurePosixPath(member.name).name] = archive.extractfile(member).read()  # type: ignore[union-attr]
    names = members.get("batches.meta.txt") or members["fine_label_names.txt"]
    classes = names.decode("ascii").split()
    for split, files in (("train", ("data_batch_", "train.bin")), ("test", ("test_batch", "test.bin"))):
        content = b"".join(members[name] for name in sorted(members) if name.startswith(files))
        label_bytes = 2 if "fine_label_names.txt" in members else 1
        records = np.frombuffer(content, np.uint8).reshape(-1, label_bytes + 3072)
        images = records[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        yield Part(split, classes, images, records[:, label_bytes - 1])


FASHION = (
    *("T-shirt_top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
"""Fashion-MNIST's classes, with "_" for the "/" that no folder may have."""


def _fashion(files: Sequence[Path]) -> Iterator[Part]:
    """Read Fashion-MNIST: per split one file of images and one of labels."""
    for split, pair in (("train", files[:2]), ("test", files[2:])):
        images, labels = map(_idx, pair)
        yield Part(split, FASHION, images, labels)


def _idx(path: Path) -> npt.NDArray[np.uint8]:
    """Read an idx file of bytes: 0, 0, 8, the number of dimensions, each as big-endian int32, the data."""
    content = gzip.decompress(path.read_bytes())
    start = 4 + 4 * content[3]
    return np.frombuffer(content, np.uint8, offset=start).reshape(np.frombuffer(content[4:start], ">i4"))


_KRIZ = "https://www.cs.toronto.edu/~kriz"

SETS = {
    "cifar10": NamedSet(_KRIZ, {"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"}, _cifar),
    "cifar100": NamedSet(_KRIZ, {"cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8"}, _cifar),
    "fashion-mnist": NamedSet(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        {
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
        _fashion,
    ),
}

NAMES = tuple(SETS)


def fetch(name: str, *, sets: Mapping[str, NamedSet] = SETS) -> Path:
    """Return the folder of a set, with train/CLASS/00001.png … and test/CLASS/…, fetching it the first time.

    The number of a file is its place in the original split. `RESNEXT_MIRROR` names a URL (http, https or
    file) to fetch from instead of the set's own.

    Raises `UserError` where the files cannot be had or are not the original ones.
    """
    folder = durable.cache_directory() / "datasets" / name
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_name(f".{name}.lock")):
            if not folder.is_dir():
                _build(folder, sets[name])
    except OSError as error:
        raise UserError(f"{name} cannot be put in {folder}: {error.strerror or error}.") from error
    return folder


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that other processes wait for, and that goes with the process."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(folder: Path, named_set: NamedSet) -> None:
    """Download a set, write its images beside `folder`, and give them their name when all are on the disk."""
    base = os.environ.get("RESNEXT_MIRROR") or named_set.base
    archives = [folder.with_name(f".{folder.name}-{file}") for file in named_set.files]
    for archive, (file, md5) in zip(archives, named_set.files.items(), strict=True):
        fetching.fetch(f"{base.rstrip('/')}/{file}", archive, md5)
    beside = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        for part in named_set.parts(archives):
            _write_images(beside / part.split, part)
        os.sync()  # at once for all: to sync tens of thousands of files one by one takes minutes
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    durable.sync_path(folder.parent)
    for archive in archives:
        archive.unlink()


def _write_images(folder: Path, part: Part) -> None:
    for name in part.classes:
        (folder / name).mkdir(parents=True)
    for number, (pixels, label) in enumerate(zip(part.images, part.labels, strict=True), start=1):
        Image.fromarray(np.ascontiguousarray(pixels)).save(folder / part.classes[label] / f"{number:05}.png")
