"""The pixel cache gives what the files give, whatever happened to it or to them before."""

from __future__ import annotations

import errno
import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from resnext import durable
from resnext.data import cache as module
from resnext.data.cache import PixelCache, open_cache
from resnext.data.cache_folder import ROW, CacheFolder
from resnext.data.loader import Files
from resnext.data.manifest import Split
from resnext.data.preprocessing import Preprocessing
from resnext.errors import ImageError

PREPROCESSING = Preprocessing(8, 10)
PLENTY = 10**9


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESNEXT_CACHE", str(tmp_path / "cache"))


def write(path: Path, number: int, size: tuple[int, int] = (12, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)


def pictures(folder: Path, count: int, *, alike: bool = True) -> list[str]:
    """Write PNGs and return their names, not in the order of the alphabet."""
    names = [f"{'ab'[i % 2]}/{i}.png" for i in range(count)]
    for i, name in enumerate(names):
        write(folder / name, i, (12, 10) if alike else (10 + i % 3, 10))
    return names


def split(root: Path, names: Sequence[str]) -> Split:
    states = [(root / name).stat() if (root / name).exists() else None for name in names]
    return Split(
        root=root,
        classes=("a", "b"),
        paths=pa.array(names, pa.string()),
        labels=np.array([name.startswith("b") for name in names], np.int32),
        sizes=np.array([state.st_size if state else 0 for state in states], np.int64),
        mtimes_ns=np.array([state.st_mtime_ns if state else 0 for state in states], np.int64),
    )


class Opened:
    """What opening the cache of some splits gave, said and did."""

    def __init__(self, *splits: Split, preprocessing: Preprocessing = PREPROCESSING, **options: Any) -> None:
        self.notes: list[str] = []
        self.progress: list[tuple[int, int]] = []
        self.splits, self.preprocessing = splits, preprocessing
        settings: dict[str, Any] = {"budget_bytes": PLENTY, "workers": 0, **options}
        self.sources = open_cache(
            splits,
            preprocessing,
            note=self.notes.append,
            progress=lambda done, total: self.progress.append((done, total)),
            **settings,
        )

    @property
    def decoded(self) -> int:
        return self.progress[-1][0] if self.progress else 0

    def source(self, number: int = 0) -> PixelCache:
        assert self.sources is not None, self.notes
        return self.sources[number]

    def check(self) -> None:
        """Compare each image with its file, one by one and all at once."""
        for number, rows in enumerate(self.splits):
            files, source = Files(rows, self.preprocessing), self.source(number)
            assert len(source) == len(rows)
            expected, failures = files.read_many(np.arange(len(rows)))
            found, why = source.read_many(np.arange(len(rows)))
            assert why == failures == source.failures
            assert [one.shape for one in found] == [one.shape for one in expected]
            assert all(np.array_equal(one, two) for one, two in zip(found, expected, strict=True))
            for index in range(len(rows)):
                if index in failures:
                    with pytest.raises(ImageError, match=re.escape(failures[index])) as caught:
                        source.read(index)
                    assert caught.value.path == str(rows.path(index))
                else:
                    assert np.array_equal(source.read(index), files.read(index))


def folder() -> Path:
    """The one cache there is."""
    (found,) = (durable.cache_directory() / "pixels").iterdir()
    return found


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_those_of_the_files(tmp_path: Path, alike: bool, workers: int, channels: int) -> None:
    names = pictures(tmp_path / "data", 100, alike=alike)
    statistics = (0.5,) * channels
    preprocessing = Preprocessing(8, 9, channels, statistics, statistics)
    opened = Opened(split(tmp_path / "data", names), preprocessing=preprocessing, workers=workers)
    opened.check()
    assert opened.progress == [(32, 100), (64, 100), (96, 100), (100, 100)]
    assert not opened.notes
    assert isinstance(opened.source().read_many(np.array([3, 1, 3]))[0], np.ndarray if alike else list)
    again = Opened(split(tmp_path / "data", names), preprocessing=preprocessing)
    again.check()
    assert not again.progress


def test_views_are_read_only_and_batches_are_copies(tmp_path: Path) -> None:
    opened = Opened(split(tmp_path, pictures(tmp_path, 4)))
    assert not opened.source().read(0).flags.writeable
    batch, _ = opened.source().read_many(np.array([0, 1]))
    assert isinstance(batch, np.ndarray)
    batch[:] = 0
    opened.check()


def test_splits_cut_otherwise_share_a_cache(tmp_path: Path) -> None:
    names = pictures(tmp_path, 40)
    first = Opened(split(tmp_path, names[:30]), split(tmp_path, names[30:]))
    first.check()
    other = Opened(split(tmp_path, names[::-1][:25]), split(tmp_path, names[::-1][25:]))
    other.check()
    assert (first.decoded, other.decoded) == (40, 0)


def test_what_decides_the_pixels_decides_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = pictures(tmp_path / "data", 10)
    cases: list[tuple[Sequence[str], Preprocessing]] = [
        (names, PREPROCESSING),
        (names[:-1], PREPROCESSING),
        (names, Preprocessing(8, 11)),
        (names, Preprocessing(8, 10, interpolation="bicubic")),
        (names, Preprocessing(8, 10, 1, (0.5,), (0.5,))),
    ]
    for chosen, preprocessing in cases:
        opened = Opened(split(tmp_path / "data", chosen), preprocessing=preprocessing)
        assert opened.decoded == len(chosen)
        opened.check()
    (tmp_path / "data").rename(tmp_path / "moved")
    assert Opened(split(tmp_path / "moved", names)).decoded == 10
    (tmp_path / "moved").rename(tmp_path / "data")
    same = Preprocessing(7, 10, mean=(0.1,) * 3, std=(0.3,) * 3)  # what happens after the resize
    assert Opened(split(tmp_path / "data", names), preprocessing=same).decoded == 0
    monkeypatch.setattr(module, "DECODER_VERSION", "another")
    assert Opened(split(tmp_path / "data", names)).decoded == 10


@pytest.mark.parametrize("alike", [True, False])
def test_changed_files_are_read_again_and_no_others(tmp_path: Path, alike: bool) -> None:
    names = pictures(tmp_path, 40, alike=alike)
    rows = split(tmp_path, names)  # its sizes and times stay those of the first listing
    before = Opened(rows)
    old = [one.copy() for one in before.source().read_many(np.arange(40))[0]]
    os.utime(tmp_path / names[3], ns=(1, 1))
    write(tmp_path / names[5], 105)
    (tmp_path / "new.png").write_bytes(b"")
    write(tmp_path / "new.png", 107, (40, 10))
    (tmp_path / "new.png").replace(tmp_path / names[7])
    (tmp_path / names[9]).unlink()
    (tmp_path / names[11]).write_bytes((tmp_path / names[11]).read_bytes()[:60])
    after = Opened(rows)
    assert after.decoded == 5
    after.check()
    assert set(after.source().failures) == {9, 11}
    # Who opened it before goes on with what was there.
    assert all(
        np.array_equal(one, two) for one, two in zip(before.source().read_many(np.arange(40))[0], old, strict=True)
    )
    write(tmp_path / names[9], 9, (12, 10))
    write(tmp_path / names[11], 11, (12, 10))
    mended = Opened(rows)
    assert mended.decoded == 2
    mended.check()
    assert Opened(rows).decoded == 0


def test_a_file_that_changes_back_and_forth_is_right_each_time(tmp_path: Path) -> None:
    rows = split(tmp_path, pictures(tmp_path, 3))
    for number in range(12):
        write(tmp_path / "a/0.png", number % 2, (12 + 10 * (number % 2), 10))
        os.utime(tmp_path / "a/0.png", ns=(number % 2, number % 2))
        Opened(rows).check()
    assert (folder() / "pixels.bin").stat().st_size < 4000  # what is stale does not pile up


def test_unreadable_files_are_named_and_tried_again(tmp_path: Path) -> None:
    names = pictures(tmp_path, 20)
    (tmp_path / names[4]).write_bytes(b"")
    (tmp_path / names[6]).write_text("no picture")
    (tmp_path / names[8]).unlink()
    rows = split(tmp_path, names)
    for decoded in (20, 3):
        opened = Opened(rows)
        assert opened.decoded == decoded
        assert set(opened.source().failures) == {4, 6, 8}
        opened.check()
    pixels, failures = opened.source().read_many(np.array([6, 5, 4]))
    assert len(pixels) == 1
    assert set(failures) == {4, 6}


def test_nothing_readable_at_all(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/2.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"")
    opened = Opened(split(tmp_path, ["a/1.png", "b/2.png"]))
    opened.check()
    assert len(opened.source().failures) == 2


@pytest.mark.parametrize("paths", ["absolute", "chunked", "repeated"])
def test_other_kinds_of_listings(tmp_path: Path, paths: str) -> None:
    names = pictures(tmp_path, 9)
    if paths == "absolute":
        rows = split(tmp_path, [str(tmp_path / name) for name in names])
    elif paths == "repeated":
        rows = split(tmp_path, names + names[:3])
    else:
        rows = split(tmp_path, names)
        object.__setattr__(rows, "paths", pa.chunked_array([names[:4], [], names[4:]], pa.string()))
    Opened(rows, split(tmp_path, names[:2])).check()


def test_a_relative_root_means_the_folder_it_led_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2):
        write(tmp_path / f"{number}/data/a/1.png", number)
        monkeypatch.chdir(tmp_path / str(number))
        Opened(split(Path("data"), ["a/1.png"])).check()


@pytest.mark.parametrize(
    "damage", ["index gone", "index damaged", "pixels short", "pixels gone", "index of other length"]
)
def test_a_damaged_cache_is_made_anew(tmp_path: Path, damage: str) -> None:
    rows = split(tmp_path, pictures(tmp_path, 20))
    Opened(rows)
    index, pixels = folder() / "index.npy", folder() / "pixels.bin"
    if damage == "index gone":
        index.unlink()
    elif damage == "index damaged":
        index.write_bytes(index.read_bytes()[:200])
    elif damage == "pixels short":
        os.truncate(pixels, pixels.stat().st_size - 1)
    elif damage == "pixels gone":
        pixels.unlink()
    else:
        buffer = io.BytesIO()
        np.save(buffer, np.zeros(3, ROW))
        index.write_bytes(buffer.getvalue())
    opened = Opened(rows)
    assert opened.decoded == 20
    opened.check()


BUILD = """
import os, signal, sys
from pathlib import Path
import numpy as np, pyarrow as pa
from resnext.data import cache
from resnext.data.manifest import Split
from resnext.data.preprocessing import Preprocessing

def main(root, names, die_at, save_every):
    cache._SAVE_EVERY = save_every
    split = Split(Path(root), ("a", "b"), pa.array(names), *(np.zeros(len(names), t) for t in ("i4", "i8", "i8")))
    decoded = []
    def progress(done, total):
        decoded.append(done)
        if done >= die_at:
            os.kill(os.getpid(), signal.SIGKILL)
    def note(text):
        print(text, flush=True)
    cache.open_cache([split], Preprocessing(8, 10), budget_bytes=10**9, workers=2, progress=progress, note=note)
    print(decoded[-1] if decoded else 0)

main(sys.argv[1], sys.argv[2].split(","), int(sys.argv[3]), int(sys.argv[4]))
"""


def build(root: Path, names: Sequence[str], die_at: int = PLENTY, save_every: int = 1 << 30) -> Any:
    command = [sys.executable, "-c", BUILD, str(root), ",".join(names), str(die_at), str(save_every)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("save_every", "left"), [(1 << 30, 200), (1, 200 - 96)])
def test_a_killed_process_leaves_what_was_saved(tmp_path: Path, save_every: int, left: int) -> None:
    names = pictures(tmp_path, 200)
    killed = build(tmp_path, names, die_at=96, save_every=save_every)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    opened = Opened(split(tmp_path, names))
    assert opened.decoded == left
    opened.check()
    assert Opened(split(tmp_path, names)).decoded == 0


def test_two_processes_decode_once(tmp_path: Path) -> None:
    names = pictures(tmp_path, 300)
    both = [build(tmp_path, names) for _ in range(2)]
    outputs = [process.communicate() for process in both]
    assert [error for _, error in outputs] == ["", ""]
    assert sorted(int(output.splitlines()[-1]) for output, _ in outputs) == [0, 300]
    opened = Opened(split(tmp_path, names))
    assert opened.decoded == 0
    opened.check()


def test_who_has_to_wait_is_told(tmp_path: Path) -> None:
    names = pictures(tmp_path, 5)
    Opened(split(tmp_path, names))
    with CacheFolder(folder()).locked(None):
        waiting = build(tmp_path, names)
        said = waiting.stdout.readline()
        assert said.startswith("Another process is decoding these images")
        assert waiting.poll() is None
    assert waiting.communicate() == ("0\n", "")


def test_control_c_keeps_what_was_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = pictures(tmp_path, 100)

    def interrupt(self: Any, rank: int, pixels: Any, file: BinaryIO) -> None:
        if rank == 50:
            file.write(b"half an image")
            raise KeyboardInterrupt
        take(self, rank, pixels, file)

    take = module._Filling._take
    monkeypatch.setattr(module._Filling, "_take", interrupt)
    with pytest.raises(KeyboardInterrupt):
        Opened(split(tmp_path, names), workers=2)
    monkeypatch.undo()
    monkeypatch.setenv("RESNEXT_CACHE", str(tmp_path / "cache"))
    opened = Opened(split(tmp_path, names))
    assert opened.decoded == 50
    opened.check()


def test_a_full_disk_is_said_and_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    monkeypatch.setattr(CacheFolder, "open", lambda self: io.BufferedWriter(io.FileIO("/dev/full", "ab")))
    opened = Opened(split(tmp_path, pictures(tmp_path, 20)))
    assert opened.sources is None
    assert "not cached" in opened.notes[0]
    assert os.strerror(errno.ENOSPC) in opened.notes[0]
    assert [file.name for file in folder().iterdir()] == ["lock"]


@pytest.mark.parametrize("after", [1, 4000])
def test_a_disk_that_fills_up_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    class Filling(io.BufferedWriter):
        def write(self, data: Any) -> int:
            if self.tell() > after:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    monkeypatch.setattr(CacheFolder, "open", lambda self: Filling(io.FileIO(self.path / "pixels.bin", "ab")))
    opened = Opened(split(tmp_path, pictures(tmp_path, 90)), workers=2)
    assert opened.sources is None
    assert os.strerror(errno.ENOSPC) in opened.notes[0]
    assert [file.name for file in folder().iterdir()] == ["lock"]


def test_a_cache_directory_that_cannot_be_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("RESNEXT_CACHE", str(tmp_path / "file"))
    opened = Opened(split(tmp_path, pictures(tmp_path, 2)))
    assert opened.sources is None
    assert os.strerror(errno.ENOTDIR) in opened.notes[0]


def test_pixels_beyond_the_budget_or_the_disk_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = split(tmp_path, pictures(tmp_path, 100))  # 12×10×3 bytes each
    opened = Opened(rows, budget_bytes=30_000)
    assert opened.sources is None
    assert opened.notes == [
        "Images are decoded anew each time, not cached: the pixels take about 36.0 kB, and the budget is 30.0 kB."
    ]
    assert not opened.progress
    assert Opened(rows, budget_bytes=36_000).sources
    assert Opened(rows, budget_bytes=35_999).sources is None
    write(tmp_path / "b/1.png", 1, (13, 10))
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 300}))
    full = Opened(rows)
    assert full.sources is None
    assert "has 300 bytes left on its disk" in full.notes[0]


def test_an_estimate_that_was_too_low_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAMPLE", 1)
    names = pictures(tmp_path, 100)
    for name in sorted(names)[1:]:
        write(tmp_path / name, 0, (30, 10))
    opened = Opened(split(tmp_path, names), budget_bytes=40_000)
    assert opened.sources is None
    assert "they outgrow the budget of 40.0 kB" in opened.notes[0]
    assert [file.name for file in folder().iterdir()] == ["lock"]


def test_caches_unused_for_longest_make_room(tmp_path: Path) -> None:
    sets = []
    for number in range(3):
        names = pictures(tmp_path / str(number), 10)  # 3,600 bytes of pixels
        sets.append(split(tmp_path / str(number), names))
    budget = 8000
    for number in (0, 1, 0, 2):
        Opened(sets[number], budget_bytes=budget).check()
    assert Opened(sets[0], budget_bytes=budget).decoded == 0
    assert Opened(sets[2], budget_bytes=budget).decoded == 0
    held = Opened(sets[0], budget_bytes=budget)
    assert Opened(sets[1], budget_bytes=budget).decoded == 10
    assert Opened(sets[2], budget_bytes=4000).decoded == 10
    held.check()  # its file lost only its name


def test_a_cache_in_the_making_is_not_cleared(tmp_path: Path) -> None:
    first = split(tmp_path / "1", pictures(tmp_path / "1", 10))
    Opened(first)
    with CacheFolder(folder()).locked(None):
        Opened(split(tmp_path / "2", pictures(tmp_path / "2", 10)), budget_bytes=4000).check()
    assert Opened(first).decoded == 0
