"""What is kept of files: read once, again where they changed, whatever happens to the cache."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from making import picture
from resnext import durable
from resnext.data import copies, duplicates, fingerprints
from resnext.data.fingerprints import DAMAGED, READABLE, UNOPENED, Fingerprints
from resnext.data.thumbnails import thumbnail
from resnext.errors import ImageError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RESNEXT_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "images"
    place.mkdir()
    for number in range(100):
        picture(number, (20, 30)).save(place / f"{number}.png")
    return place


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of all files that are opened."""
    names: list[str] = []
    contents = fingerprints.contents

    def record(path: str) -> bytes:
        names.append(Path(path).name)
        return contents(path)

    monkeypatch.setattr(fingerprints, "contents", record)
    return names


def looked_at(folder: Path, note: Callable[[str], None] | None = None, names: list[str] | None = None) -> Fingerprints:
    names = names or sorted(file.name for file in folder.iterdir())
    stats = [(folder / name).stat() for name in names]
    sizes = np.array([status.st_size for status in stats])
    mtimes = np.array([status.st_mtime_ns for status in stats])
    return fingerprints.fingerprints(folder, pa.array(names), sizes, mtimes, note=note)


def same(one: Fingerprints, other: Fingerprints) -> bool:
    said = all(one.said(row) == other.said(row) for row in range(len(one.rows)))
    names = [name for name in one.rows.dtype.names or () if name != "words"]
    return said and all(np.array_equal(one.rows[name], other.rows[name]) for name in names)


def kept(folder: Path) -> Path:
    [file] = (durable.cache_directory() / "fingerprints").iterdir()
    return file


def test_a_fingerprint_is_what_the_file_holds(folder: Path) -> None:
    picture(500, (200, 120)).save(folder / "photo.jpg", exif=_turned())
    (folder / "text.jpg").write_text("no image")
    names = ["3.png", "photo.jpg", "text.jpg"]
    prints = looked_at(folder, names=names)
    assert prints.rows["state"].tolist() == [READABLE, READABLE, DAMAGED]
    assert [prints.said(row) for row in range(3)] == [
        "PNG RGB",
        "JPEG RGB",
        "its content is no image of a known format",
    ]
    assert prints.rows["width"].tolist() == [20, 120, 0]  # the photo is upright
    assert prints.rows["height"].tolist() == [30, 200, 0]
    for row, name in enumerate(names):
        digest = hashlib.blake2b((folder / name).read_bytes(), digest_size=16).digest()
        assert prints.rows["digest"][row].tobytes() == digest
    grey, colour = thumbnail(Image.open(folder / "3.png"))
    assert np.array_equal(prints.rows["grey"][0], grey)
    assert np.array_equal(prints.rows["colour"][0], colour)


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def test_only_new_and_changed_files_are_read_again(folder: Path, opened: list[str]) -> None:
    first = looked_at(folder)
    assert sorted(opened) == sorted(f"{number}.png" for number in range(100))
    opened.clear()
    assert same(looked_at(folder), first)
    assert opened == []
    picture(300).save(folder / "new.png")
    picture(301).save(folder / "7.png")
    os.utime(folder / "8.png", ns=(0, 0))
    (folder / "9.png").unlink()
    again = looked_at(folder)
    assert sorted(opened) == ["7.png", "8.png", "new.png"]
    opened.clear()
    names = sorted(file.name for file in folder.iterdir())
    assert np.array_equal(again.rows["grey"][names.index("7.png")], thumbnail(picture(301))[0])
    assert np.array_equal(again.rows["grey"][names.index("10.png")], first.rows["grey"][2])  # 0, 1, 10
    looked_at(folder)
    assert opened == []


def test_a_part_of_the_files_does_not_displace_the_others_but_removed_ones_go(folder: Path, opened: list[str]) -> None:
    looked_at(folder)
    opened.clear()
    picture(300).save(folder / "new.png")
    (folder / "1.png").unlink()
    looked_at(folder, names=["new.png", "0.png"])
    looked_at(folder)
    assert opened == ["new.png"]
    assert len(fingerprints._Store.load(folder).paths) == 100


def test_other_folders_have_their_own(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for number in range(5):
        picture(number + 50).save(other / f"{number}.png")
        status = (folder / f"{number}.png").stat()
        os.truncate(other / f"{number}.png", status.st_size)
        os.utime(other / f"{number}.png", ns=(0, status.st_mtime_ns))
    names = [f"{number}.png" for number in range(5)]
    looked_at(folder)
    assert (looked_at(other, names=names).rows["digest"] != looked_at(folder, names=names).rows["digest"]).any(1).all()
    assert len(list((durable.cache_directory() / "fingerprints").iterdir())) == 2


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "foreign", "a folder"])
def test_a_damaged_cache_is_made_anew(folder: Path, opened: list[str], damage: str) -> None:
    first = looked_at(folder)
    file = kept(folder)
    content = bytearray(file.read_bytes())
    if damage == "a folder":
        file.unlink()
        file.mkdir()
    elif damage == "flipped":
        content[len(content) // 2] ^= 4
    file_content = {"empty": b"", "cut": bytes(content[: len(content) // 2]), "foreign": b"PAR1"}
    if damage != "a folder":
        file.write_bytes(file_content.get(damage, bytes(content)))
    opened.clear()
    assert same(looked_at(folder), first)
    assert len(opened) == 100
    opened.clear()
    if damage != "a folder":
        assert same(looked_at(folder), first)
        assert opened == []


def test_another_version_of_the_decoder_reads_anew(
    folder: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at(folder)
    opened.clear()
    monkeypatch.setattr(fingerprints, "LAYOUT", "another")
    looked_at(folder)
    assert len(opened) == 100


def test_what_was_read_before_an_interruption_is_kept(
    folder: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = sorted(file.name for file in folder.iterdir())
    stats = [(folder / name).stat() for name in names]
    columns = (
        pa.array(names),
        np.array([status.st_size for status in stats]),
        np.array([status.st_mtime_ns for status in stats]),
    )

    def stop(done: int, total: int) -> None:
        if done >= 2 * fingerprints._TOGETHER:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fingerprints.fingerprints(folder, *columns, progress=stop)
    assert fingerprints.known(folder, *columns) is None
    opened.clear()
    whole = looked_at(folder)
    assert len(opened) == 100 - 2 * fingerprints._TOGETHER
    assert (whole.rows["state"] == READABLE).all()
    assert fingerprints.known(folder, *columns) is not None


def test_a_full_disk_is_a_note(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(durable, "sync_path", full)
    notes: list[str] = []
    prints = looked_at(folder, notes.append)
    assert (prints.rows["state"] == READABLE).all()
    assert len(notes) == 1
    assert "No space left on device" in notes[0]
    assert list((durable.cache_directory() / "fingerprints").iterdir()) == []


def test_a_file_that_cannot_be_opened_is_tried_again_but_a_damaged_one_is_remembered(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "0.png").write_bytes(b"")
    contents, opened = fingerprints.contents, []

    def refuse(path: str) -> bytes:
        opened.append(Path(path).name)
        if path.endswith("1.png"):
            raise ImageError(path, "permission denied")
        return contents(path)

    monkeypatch.setattr(fingerprints, "contents", refuse)
    for expected in (3, 1):
        opened.clear()
        prints = looked_at(folder, names=["0.png", "1.png", "2.png"])
        assert prints.rows["state"].tolist() == [DAMAGED, UNOPENED, READABLE]
        assert [prints.said(0), prints.said(1)] == ["the file is empty (0 bytes)", "permission denied"]
        assert len(opened) == expected


# Copies


def test_copies_are_sets_of_rows_exact_and_near(folder: Path) -> None:
    (folder / "a.png").write_bytes((folder / "5.png").read_bytes())
    (folder / "b.png").write_bytes((folder / "5.png").read_bytes())
    with Image.open(folder / "5.png") as image:
        image.save(folder / "c.jpg", quality=70)
    (folder / "d.png").write_bytes(b"no image")
    (folder / "e.png").write_bytes(b"no image")
    (folder / "f.png").write_bytes(b"")
    (folder / "g.png").write_bytes(b"")
    names = sorted(file.name for file in folder.iterdir())
    found = copies.find(looked_at(folder))
    assert [[names[row] for row in rows] for rows in found.exact] == [["5.png", "a.png", "b.png"], ["d.png", "e.png"]]
    assert [[names[row] for row in rows] for rows in found.near] == [["5.png", "a.png", "b.png", "c.jpg"]]
    assert found.together() == [rows.tolist() for rows in (*found.exact, *found.near)]


def test_a_search_is_remembered_by_contents_and_a_damaged_memory_is_not_believed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Image.open(folder / "5.png") as image:
        image.save(folder / "c.jpg", quality=70)
    prints = looked_at(folder)
    assert copies.known(prints, at_once=0) is None
    first = copies.find(prints)
    searches: list[int] = []
    near = duplicates.near
    monkeypatch.setattr(duplicates, "near", lambda grey, *rest: searches.append(len(grey)) or near(grey, *rest))
    (folder / "c.jpg").rename(folder / "z.jpg")
    renamed = copies.known(looked_at(folder), at_once=0)
    assert renamed is not None
    assert len(renamed.near) == len(first.near) == 1
    [file] = (durable.cache_directory() / "copies").iterdir()
    content = bytearray(file.read_bytes())
    content[-16] ^= 1  # another pair of images
    file.write_bytes(content)
    assert copies.find(prints).near[0].tolist() == first.near[0].tolist()
    assert searches == [101]
