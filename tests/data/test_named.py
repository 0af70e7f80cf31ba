"""Fetching of named sets from a server on this machine: tiny fakes in the real file formats."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mirror_server import Mirror, serving
from resnext import fetching
from resnext.data.manifest import scan
from resnext.data.named import FASHION, NAMES, SETS, NamedSet, fetch
from resnext.errors import UserError


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    with serving() as state:
        monkeypatch.setenv("RESNEXT_MIRROR", state.url)
        monkeypatch.setenv("RESNEXT_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield state


def served(mirror: Mirror, name: str, files: dict[str, bytes]) -> dict[str, NamedSet]:
    """Put files on the mirror, and return the table of sets with their hashes."""
    mirror.files.update(files)
    hashes = {file: hashlib.md5(content).hexdigest() for file, content in files.items()}
    return {name: replace(SETS[name], files=hashes)}


def archive(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("cifar-10-batches-bin/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return content.getvalue()


def pixels(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 32, 32), np.uint8)


def records(images: np.ndarray, *labels: list[int]) -> bytes:
    columns = [np.array(label, np.uint8)[:, None] for label in labels]
    return np.hstack([*columns, images.reshape(len(images), -1)]).tobytes()


def cifar10() -> dict[str, bytes]:
    files = {f"data_batch_{b}.bin": records(pixels(2, b), [b % 2, 2]) for b in range(1, 6)}
    files["test_batch.bin"] = records(pixels(3, 9), [0, 1, 2])
    files["batches.meta.txt"] = b"airplane\nautomobile\nbird\n\n"
    inside = {f"cifar-10-batches-bin/{name}": content for name, content in files.items()}
    return {"cifar-10-binary.tar.gz": archive({**inside, "../../escaped.txt": b"no", "/escaped.txt": b"no"})}


def test_cifar10_becomes_folders_of_its_very_pixels(mirror: Mirror, tmp_path: Path) -> None:
    sets = served(mirror, "cifar10", cifar10())
    folder = fetch("cifar10", sets=sets)
    assert folder == tmp_path / "cache/datasets/cifar10"
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))
    automobiles = [f"train/automobile/{number:05}.png" for number in (1, 5, 9)]
    airplanes = [f"train/airplane/{number:05}.png" for number in (3, 7)]
    birds = [f"train/bird/{number:05}.png" for number in (2, 4, 6, 8, 10)]
    tests = [f"test/{name}/0000{i}.png" for i, name in enumerate(("airplane", "automobile", "bird"), start=1)]
    assert found == sorted(automobiles + airplanes + birds + tests)
    third = np.asarray(Image.open(folder / "train/bird/00004.png"))
    np.testing.assert_array_equal(third.transpose(2, 0, 1), pixels(2, 2)[1])
    assert [path.name for path in folder.parent.iterdir() if not path.name.endswith(".lock")] == ["cifar10"]
    assert not list(tmp_path.rglob("escaped.txt"))
    assert not list(tmp_path.rglob("link"))


def test_a_set_is_fetched_once(mirror: Mirror) -> None:
    sets = served(mirror, "cifar10", cifar10())
    assert fetch("cifar10", sets=sets) == fetch("cifar10", sets=sets)
    assert mirror.requests == [("cifar-10-binary.tar.gz", None)]


def test_two_that_fetch_at_once_fetch_once(mirror: Mirror) -> None:
    sets = served(mirror, "cifar10", cifar10())
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(lambda _: fetch("cifar10", sets=sets), range(2)))
    assert folders[0] == folders[1]
    assert len(mirror.requests) == 1


def test_cifar100_counts_its_fine_labels(mirror: Mirror) -> None:
    inside = {
        "train.bin": records(pixels(3, 1), [1, 0, 1], [0, 2, 1]),
        "test.bin": records(pixels(1, 2), [0], [2]),
        "coarse_label_names.txt": b"fish\nfruit\n",
        "fine_label_names.txt": b"apple\naquarium_fish\nbaby\n",
    }
    archived = archive({f"cifar-100-binary/{name}": content for name, content in inside.items()})
    folder = fetch("cifar100", sets=served(mirror, "cifar100", {"cifar-100-binary.tar.gz": archived}))
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))
    assert found == [
        "test/baby/00001.png",
        "train/apple/00001.png",
        "train/aquarium_fish/00003.png",
        "train/baby/00002.png",
    ]


def idx(array: np.ndarray) -> bytes:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return gzip.compress(header + array.tobytes())


def test_fashion_mnist_becomes_grey_pictures_that_scan_lists(mirror: Mirror) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 28, 28), np.uint8)
    labels = (np.arange(40) % 10).astype(np.uint8)
    contents = [idx(images), idx(labels), idx(images[:10]), idx(labels[:10])]
    sets = served(mirror, "fashion-mnist", dict(zip(SETS["fashion-mnist"].files, contents, strict=True)))
    folder = fetch("fashion-mnist", sets=sets)
    boot = Image.open(folder / "train/Ankle boot/00010.png")
    assert boot.mode == "L"
    np.testing.assert_array_equal(np.asarray(boot), images[9])
    manifest = scan("fashion-mnist")
    assert manifest.classes == tuple(sorted(FASHION))
    assert (len(manifest.split("train")), len(manifest.split("val"))) == (30, 10)


def test_a_download_that_breaks_off_is_resumed(mirror: Mirror) -> None:
    sets = served(mirror, "cifar10", cifar10())
    mirror.break_after = [1000, 3000]
    assert fetch("cifar10", sets=sets).is_dir()
    assert [asked for _, asked in mirror.requests] == [None, "bytes=1000-", "bytes=4000-"]


def test_a_server_without_ranges_starts_anew(mirror: Mirror) -> None:
    sets = served(mirror, "cifar10", cifar10())
    mirror.break_after, mirror.ranges = [1000], False
    assert fetch("cifar10", sets=sets).is_dir()
    assert len(mirror.requests) == 2


def test_what_an_earlier_session_left_is_resumed(mirror: Mirror) -> None:
    sets = served(mirror, "cifar10", cifar10())
    mirror.break_after = [100, 100, 100]
    with pytest.raises(UserError, match="broke off"):
        fetch("cifar10", sets=sets)
    assert fetch("cifar10", sets=sets).is_dir()
    assert mirror.requests[-1][1] == "bytes=300-"


def test_a_left_over_of_another_file_is_thrown_away(mirror: Mirror, tmp_path: Path) -> None:
    sets = served(mirror, "cifar10", cifar10())
    part = tmp_path / "cache/datasets/.cifar10-cifar-10-binary.tar.gz.part"
    part.parent.mkdir(parents=True)
    for content in (b"something else", bytes(10_000_000)):
        part.write_bytes(content)
        assert fetch("cifar10", sets=sets).is_dir()
        (tmp_path / "cache/datasets/cifar10").rename(tmp_path / content[:3].hex())


def test_a_folder_can_be_the_mirror(mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = served(mirror, "cifar10", cifar10())
    for name, content in mirror.files.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.setenv("RESNEXT_MIRROR", tmp_path.as_uri())
    assert fetch("cifar10", sets=sets).is_dir()
    assert mirror.requests == []


def message(sets: dict[str, NamedSet]) -> str:
    with pytest.raises(UserError) as caught:
        fetch("cifar10", sets=sets)
    assert len(str(caught.value).splitlines()) <= 3
    return str(caught.value)


def test_a_file_with_another_hash_is_refused_and_not_kept(mirror: Mirror, tmp_path: Path) -> None:
    sets = served(mirror, "cifar10", cifar10())
    mirror.files["cifar-10-binary.tar.gz"] += b"!"
    assert "its MD5 is" in message(sets)
    assert [path.name for path in (tmp_path / "cache/datasets").iterdir()] == [".cifar10.lock"]


def test_a_missing_file_and_a_missing_server_are_said(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = served(mirror, "cifar10", cifar10())
    mirror.files.clear()
    assert "the server says 404 Not Found" in message(sets)
    monkeypatch.setenv("RESNEXT_MIRROR", "http://127.0.0.1:9")
    text = message(sets)
    assert "Connection refused" in text
    assert "RESNEXT_MIRROR" in text


def test_a_silent_server_is_given_up(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = served(mirror, "cifar10", cifar10())
    monkeypatch.setattr(fetching, "SILENCE", 0.05)
    mirror.awake.clear()
    assert "timed out" in message(sets)
    mirror.awake.set()


def test_a_failure_while_unpacking_leaves_no_set(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = served(mirror, "cifar10", cifar10())
    with monkeypatch.context() as patch:

        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr(Image.Image, "save", full)
        assert "No space left on device" in message(sets)
    assert not (tmp_path / "cache/datasets/cifar10").exists()
    assert fetch("cifar10", sets=sets).is_dir()
    assert len(mirror.requests) == 1


def test_the_official_hashes_are_md5s_of_the_files_that_the_sets_read() -> None:
    assert set(NAMES) == {"cifar10", "cifar100", "fashion-mnist"}
    for named_set in SETS.values():
        assert all(len(bytes.fromhex(md5)) == 16 for md5 in named_set.files.values())
        assert named_set.base.startswith("http")
