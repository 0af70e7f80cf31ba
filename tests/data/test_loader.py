"""Batches do not depend on workers, caches or where one starts; nothing hangs and nothing piles up."""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_images

from resnext.data import order
from resnext.data.augmentation import Augmentation, augment
from resnext.data.cache import open_cache
from resnext.data.images import read_image
from resnext.data.loader import PIECE, Batch, Files, Loader, Pixels, Source
from resnext.data.manifest import Split
from resnext.data.parallel import in_order
from resnext.data.preprocessing import Preprocessing
from resnext.errors import UserError

PREPROCESSING = Preprocessing(8, 10)
AUGMENTATIONS = {
    "none": None,
    "pad": Augmentation(crop="pad", padding=2, flip=0.5, erasing=0.3),
    "all": Augmentation(crop="random-resized", flip=0.5, colour_jitter=0.4, rand_augment=2, erasing=0.3),
}


@pytest.fixture(params=["alike", "of several shapes"])
def rows(tmp_path: Path, request: pytest.FixtureRequest) -> Split:
    """37 images, of which those in rows 5 and 20 cannot be read."""
    names, generator = [f"{i}.png" for i in range(37)], np.random.default_rng(0)
    for i, name in enumerate(names):
        width = 12 if request.param == "alike" else 10 + i % 4
        Image.fromarray(generator.integers(0, 256, (10, width, 3), np.uint8)).save(tmp_path / name)
    (tmp_path / "5.png").write_bytes(b"")
    (tmp_path / "20.png").write_text("no picture")
    nothing = np.zeros(37, np.int64)
    return Split(tmp_path, ("a", "b", "c"), pa.array(names), np.arange(37, dtype=np.int32) % 3, nothing, nothing)


def cached(rows: Split) -> Source:
    caches = open_cache([rows], PREPROCESSING, budget_bytes=10**9, workers=0)
    assert caches is not None
    return caches[0]


def prints(batches: Iterable[Batch]) -> list[tuple[Any, ...]]:
    """What batches hold, to the bit."""
    return [
        (batch.step, batch.indices.tolist(), batch.labels.tolist(), hashlib.sha256(batch.pixels.tobytes()).hexdigest())
        for batch in batches
    ]


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("resnext-data")]


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_batches_are_the_same_for_any_workers_with_and_without_the_cache(rows: Split, kind: str) -> None:
    found = []
    for source in (Files(rows, PREPROCESSING), cached(rows)):
        for workers in (0, 1, 2, 4):
            loader = Loader(
                source, rows, PREPROCESSING, augmentation=AUGMENTATIONS[kind], batch_size=5, workers=workers, seed=3
            )
            epochs = [prints(loader.epoch(epoch)) for epoch in (0, 1)]
            found.append((epochs, prints(loader.sequential()), loader.unreadable))
            assert not threads()
    assert all(one == found[0] for one in found[1:])
    epochs, _, unreadable = found[0]
    assert epochs[0] != epochs[1]
    assert set(unreadable) == {5, 20}


@pytest.mark.parametrize("kind", ["pad", "all"])
def test_each_image_is_augmented_by_its_number_seed_and_epoch(rows: Split, kind: str) -> None:
    augmentation = AUGMENTATIONS[kind]
    assert augmentation is not None
    files = Files(rows, PREPROCESSING)
    loader = Loader(files, rows, PREPROCESSING, augmentation=augmentation, batch_size=7, seed=6)
    for epoch in (0, 3):
        for batch in loader.epoch(epoch):
            for index, found in zip(batch.indices, batch.pixels, strict=True):
                alone = augment(
                    [files.read(int(index))],
                    np.array([index]),
                    augmentation=augmentation,
                    image_size=8,
                    seed=6,
                    epoch=epoch,
                )
                assert np.array_equal(found, alone[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_starting_at_a_step_gives_the_rest_of_the_epoch(rows: Split, workers: int) -> None:
    loader = Loader(cached(rows), rows, PREPROCESSING, augmentation=AUGMENTATIONS["all"], batch_size=4, workers=workers)
    whole = prints(loader.epoch(2))
    assert loader.steps == 9
    for start in range(loader.steps + 1):
        assert prints(loader.epoch(2, start)) == [one for one in whole if one[0] >= start]


class Counting:
    """A source that notes which rows it was asked for."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.asked: list[int] = []

    def read(self, index: int) -> npt.NDArray[np.uint8]:
        return self.source.read(index)

    def read_many(self, indices: npt.NDArray[np.int64]) -> tuple[Pixels, dict[int, str]]:
        self.asked += indices.tolist()
        return self.source.read_many(indices)


def test_starting_late_reads_nothing_of_what_is_left_out(rows: Split) -> None:
    source = Counting(Files(rows, PREPROCESSING))
    loader = Loader(source, rows, PREPROCESSING, batch_size=4)
    assert len(list(loader.epoch(0, 7))) == 2
    assert source.asked == order.permutation(0, 0, 37)[28:].tolist()


def test_an_epoch_holds_each_readable_image_once_with_its_label(rows: Split) -> None:
    for batch_size in (1, 3, 4, 6, 12, 36, 37, 100):
        loader = Loader(Files(rows, PREPROCESSING), rows, PREPROCESSING, batch_size=batch_size, seed=8)
        batches = list(loader.epoch(4))
        indices = np.concatenate([batch.indices for batch in batches])
        expected = [i for i in order.permutation(8, 4, 37).tolist() if i not in (5, 20)]
        assert indices.tolist() == expected
        for batch in batches:
            assert batch.labels.tolist() == [i % 3 for i in batch.indices.tolist()]
            assert (batch.pixels.dtype, batch.labels.dtype, batch.indices.dtype) == (np.uint8, np.int64, np.int64)
            assert batch.pixels.shape == (len(batch.labels), 8, 8, 3)
            assert batch.pixels.flags.writeable


def test_sequential_is_the_straight_line_in_the_splits_order(rows: Split) -> None:
    loader = Loader(cached(rows), rows, PREPROCESSING, augmentation=AUGMENTATIONS["all"], batch_size=12, workers=2)
    batches = list(loader.sequential())
    readable = [i for i in range(37) if i not in (5, 20)]
    assert np.concatenate([batch.indices for batch in batches]).tolist() == readable
    assert [batch.step for batch in batches] == [0, 1, 2, 3]
    assert [len(batch.labels) for batch in batches] == [11, 11, 12, 1]
    expected = [PREPROCESSING.pixels(read_image(rows.path(i))) for i in readable]
    assert np.array_equal(np.concatenate([batch.pixels for batch in batches]), np.stack(expected))


@pytest.mark.parametrize("batch_size", [1, 7, PIECE, PIECE + 1, 2 * PIECE, 36, 37, 100])
@pytest.mark.parametrize("workers", [0, 3])
def test_pieces_of_work_make_whole_batches(rows: Split, batch_size: int, workers: int) -> None:
    loader = Loader(cached(rows), rows, PREPROCESSING, batch_size=batch_size, workers=workers)
    starts = range(0, 37, batch_size)
    planned = [[i for i in range(start, min(start + batch_size, 37)) if i not in (5, 20)] for start in starts]
    batches = list(loader.sequential())
    assert [batch.indices.tolist() for batch in batches] == [some for some in planned if some]
    assert [batch.step for batch in batches] == [step for step, some in enumerate(planned) if some]
    assert set(loader.unreadable) == {5, 20}
    for batch in batches:
        assert batch.labels.tolist() == [i % 3 for i in batch.indices.tolist()]
        expected = [PREPROCESSING.pixels(read_image(rows.path(i))) for i in batch.indices.tolist()]
        assert np.array_equal(batch.pixels, np.stack(expected))
        assert batch.pixels.flags.writeable
        assert batch.pixels.flags.c_contiguous


class Meeting(Counting):
    """A source whose readers of the first two pieces wait for each other."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self.barrier = threading.Barrier(2, timeout=20)

    def read_many(self, indices: npt.NDArray[np.int64]) -> tuple[Pixels, dict[int, str]]:
        if indices[0] < 2 * PIECE:
            self.barrier.wait()
        return super().read_many(indices)


def test_threads_share_the_work_on_one_batch(rows: Split) -> None:
    source = Meeting(Files(rows, PREPROCESSING))
    loader = Loader(source, rows, PREPROCESSING, batch_size=4 * PIECE, workers=2, prefetch=1)
    assert len(next(loader.sequential()).labels) == 4 * PIECE - 2


@pytest.mark.parametrize("workers", [0, 2])
def test_sequential_reads_no_further_ahead_than_the_prefetched_batches(rows: Split, workers: int) -> None:
    source = Counting(Files(rows, PREPROCESSING))
    loader = Loader(source, rows, PREPROCESSING, batch_size=9, workers=workers, prefetch=1)
    for batch in loader.sequential():
        for thread in threading.enumerate():
            if thread.name.startswith("resnext-data"):
                thread.join(0.02)  # lets it run ahead as far as it may
        assert len(source.asked) <= 9 * (batch.step + 1) + (2 * PIECE if workers else 0)


def large_photo(path: Path, size: tuple[int, int]) -> None:
    """Write a JPEG file of a real photo, enlarged, with the noise of a camera."""
    photo = Image.fromarray(load_sample_images().images[0]).resize(size, Image.Resampling.LANCZOS)
    noise = np.random.default_rng(0).normal(0, 4, (size[1], size[0], 1))
    Image.fromarray(np.clip(np.asarray(photo) + noise, 0, 255).astype(np.uint8)).save(path, quality=92)


def real_photo(path: Path, size: tuple[int, int]) -> None:
    """Write a JPEG file of a real photo, cut to `size`, as sharp as it is."""
    Image.fromarray(load_sample_images().images[1]).crop((0, 0, *size)).save(path, quality=92)


@pytest.mark.parametrize(
    ("write", "size", "resize", "mean", "high"),
    [
        (large_photo, (1600, 1200), 256, 0.7, 4),  # by 2
        (large_photo, (4032, 3024), 256, 0.7, 4),  # by 4
        (large_photo, (4096, 3072), 192, 1.2, 6),  # by 8
        (real_photo, (640, 424), 106, 2.0, 16),  # 2: nothing is left over, the hardest
        (real_photo, (640, 424), 53, 2.0, 16),  # 4
        (real_photo, (640, 424), 26, 3.5, 30),  # 8: the smallest networks would see it most
        (real_photo, (640, 424), 70, 2.0, 16),  # 2, and much is left over
    ],
)
def test_scaled_decoding_stays_near_and_keeps_shapes(
    tmp_path: Path,
    write: Callable[[Path, tuple[int, int]], None],
    size: tuple[int, int],
    resize: int,
    mean: float,
    high: int,
) -> None:
    write(tmp_path / "photo.jpg", size)
    nothing = np.zeros(1, np.int64)
    split = Split(tmp_path, ("a",), pa.array(["photo.jpg"]), np.zeros(1, np.int32), nothing, nothing)
    preprocessing = Preprocessing(resize, resize)
    whole, scaled = (Files(split, preprocessing, scaled=scaled).read(0).astype(int) for scaled in (False, True))
    assert read_image(split.path(0), enough=preprocessing.enough).size != size
    assert np.array_equal(whole, preprocessing.resized(read_image(split.path(0))))
    assert np.array_equal(whole, Files(split, preprocessing).read(0))
    assert scaled.shape == whole.shape
    difference = np.abs(scaled - whole)
    assert 0 < difference.mean() < mean
    assert np.percentile(difference, 99) < high


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 80), st.integers(1, 80), st.sampled_from([2, 4, 8]), st.integers(1, 40))
def test_an_exact_part_of_an_image_is_resized_to_the_same_shape(wide: int, high: int, part: int, resize: int) -> None:
    preprocessing = Preprocessing(1, resize, 1, (0.5,), (0.5,))
    shapes = {preprocessing.resized(Image.new("L", (wide * k, high * k))).shape for k in (1, part)}
    assert len(shapes) == 1


def test_unreadable_images_are_noted_once_with_the_first_reason(rows: Split) -> None:
    loader = Loader(Files(rows, PREPROCESSING), rows, PREPROCESSING, batch_size=5, workers=2)
    for _ in loader.sequential():
        pass
    assert loader.unreadable == {5: "the file is empty (0 bytes)", 20: "its content is no image of a known format"}
    first = dict(loader.unreadable)
    rows.path(5).write_text("no picture")
    list(loader.epoch(0))
    assert loader.unreadable == first


def test_batches_left_with_too_few_images_are_skipped_and_counted(rows: Split) -> None:
    """Training needs two images; evaluation takes what there is."""
    for i in range(12):
        rows.path(i).write_bytes(b"")
    loader = Loader(Files(rows, PREPROCESSING), rows, PREPROCESSING, batch_size=3)
    assert [batch.step for batch in loader.sequential()] == list(range(4, 13))
    plan = [order.batch(order.permutation(0, 0, 37), step, 3) for step in range(loader.steps)]
    left = [sum(i > 11 and i != 20 for i in images.tolist()) for images in plan]
    batches = list(loader.epoch(0))
    assert [batch.step for batch in batches] == [step for step, count in enumerate(left) if count > 1]
    assert min(left) < 2


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_at_most_the_prefetched_batches_are_alive(rows: Split, workers: int) -> None:
    source = Counting(Files(rows, PREPROCESSING))
    loader = Loader(source, rows, PREPROCESSING, batch_size=2, workers=workers, prefetch=3)
    for batch in loader.epoch(0):
        for thread in threading.enumerate():
            if thread.name.startswith("resnext-data"):
                thread.join(0.001)  # lets it run ahead as far as it may
        assert len(source.asked) <= 2 * (batch.step + 1 + (3 if workers else 0)) + 1


@pytest.mark.parametrize("end", ["dropped", "closed", "broken off", "caller fails"])
def test_an_abandoned_iterator_leaves_no_thread(rows: Split, end: str) -> None:
    loader = Loader(cached(rows), rows, PREPROCESSING, batch_size=2, workers=3)
    batches = loader.epoch(0)
    next(batches)
    assert threads()
    if end == "dropped":
        del batches
    elif end == "closed":
        batches.close()  # type: ignore[attr-defined]
    elif end == "broken off":
        for _ in batches:
            break
        del batches
    else:
        with pytest.raises(ZeroDivisionError):
            _fail_over(batches)
        del batches
    assert not threads()
    loader.epoch(1)  # never started
    assert not threads()


def _fail_over(batches: Iterable[Batch]) -> None:
    for batch in batches:
        batch.step // 0


@pytest.mark.parametrize("workers", [0, 2])
def test_what_a_worker_raises_comes_out_in_its_place(rows: Split, workers: int) -> None:
    class Failing(Counting):
        def read_many(self, indices: npt.NDArray[np.int64]) -> tuple[Pixels, dict[int, str]]:
            if 13 in indices:
                raise MemoryError("13")
            return super().read_many(indices)

    loader = Loader(Failing(Files(rows, PREPROCESSING)), rows, PREPROCESSING, batch_size=3, workers=workers)
    steps = []
    with pytest.raises(MemoryError, match="13"):
        steps += [batch.step for batch in loader.sequential()]
    batches = loader.sequential()
    assert [batch.step for batch in itertools.islice(batches, 4)] == [0, 1, 2, 3]
    with pytest.raises(MemoryError):
        next(batches)
    assert not threads()


def test_grey_images_stay_grey(rows: Split) -> None:
    grey = Preprocessing(8, 10, 1, (0.5,), (0.5,))
    for augmentation in AUGMENTATIONS.values():
        loader = Loader(Files(rows, grey), rows, grey, augmentation=augmentation, batch_size=4)
        assert {batch.pixels.shape[1:] for batch in loader.epoch(0)} == {(8, 8, 1)}


class Black:
    """A source of black images."""

    def read(self, index: int) -> npt.NDArray[np.uint8]:
        return np.zeros((10, 12, 3), np.uint8)

    def read_many(self, indices: npt.NDArray[np.int64]) -> tuple[Pixels, dict[int, str]]:
        return np.stack([self.read(index) for index in indices.tolist()]), {}


def test_images_are_padded_with_the_mean_of_the_preprocessing(rows: Split) -> None:
    preprocessing = Preprocessing(8, 10, mean=(0.2, 0.4, 0.8))
    augmentation = Augmentation(crop="pad", padding=4, padding_mode="mean")
    loader = Loader(Black(), rows, preprocessing, augmentation=augmentation, batch_size=37)
    (batch,) = loader.epoch(0)
    colours = {tuple(colour) for colour in batch.pixels.reshape(-1, 3).tolist()}
    assert colours == {(0, 0, 0), (51, 102, 204)}


def test_settings_that_cannot_be_are_refused(rows: Split) -> None:
    for wrong in ({"batch_size": 0}, {"batch_size": 2, "workers": -1}):
        with pytest.raises(UserError, match="must be at least"):
            Loader(Files(rows, PREPROCESSING), rows, PREPROCESSING, **wrong)  # type: ignore[arg-type]


def test_work_is_done_in_order_and_at_most_so_far_ahead() -> None:
    begun: list[int] = []
    gate = threading.Event()

    def work(item: int) -> int:
        begun.append(item)
        if item == 1:
            assert gate.wait(60)
        return item * item

    results = in_order(work, itertools.count(), workers=3, ahead=5)
    gate.set()
    assert [next(results) for _ in range(50)] == [i * i for i in range(50)]
    results.close()
    assert max(begun) <= 50 + 5
    assert not threads()
