"""Balanced epochs: classes equally often, images of a class as evenly as can be, and numbers of their own."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from resnext.data import order
from resnext.data.augmentation import Augmentation, augment
from resnext.data.loader import Batch, Files, Loader
from resnext.data.manifest import Split
from resnext.data.preprocessing import Preprocessing

LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 3], [100, 30, 4]))
PREPROCESSING = Preprocessing(8, 10)
ERASING = Augmentation(crop="pad", padding=2, flip=0.5, erasing=1.0)


@given(labels=st.lists(st.integers(0, 6), max_size=60), seed=st.integers(0, 2**63), epoch=st.integers(0, 10**6))
def test_classes_and_images_of_a_class_come_equally_often_up_to_one(labels: list[int], seed: int, epoch: int) -> None:
    draws = order.balanced(seed, epoch, np.array(labels, np.int64))
    assert draws.dtype == np.int64
    assert len(draws) == len(labels)
    assert len(set(draws.tolist())) == len(draws)  # so no two have the same numbers
    times = Counter(draw % len(labels) for draw in draws.tolist())
    for image, count in times.items():
        assert {image + len(labels) * time for time in range(count)} <= set(draws.tolist())
    by_class = {label: [times[i] for i, each in enumerate(labels) if each == label] for label in set(labels)}
    assert all(max(counts) - min(counts) <= 1 for counts in by_class.values())
    drawn = [sum(counts) for counts in by_class.values()]
    assert not drawn or max(drawn) - min(drawn) <= 1


def test_which_classes_draw_one_more_goes_round() -> None:
    drawn = np.zeros(4, int)
    for epoch in range(3):
        drawn += np.bincount(LABELS[order.balanced(7, epoch, LABELS) % len(LABELS)], minlength=4)
    assert drawn.tolist() == [134, 134, 0, 134]  # 134 = 3 · 44 + 2 an epoch


def test_a_class_of_many_images_repeats_none_until_a_permutation_is_used_up() -> None:
    # 45 at most of 100 an epoch: epochs 0 and 1 share a permutation, 2 and 3 another.
    epochs = [order.balanced(7, epoch, LABELS) % len(LABELS) for epoch in range(6)]
    taken = [set(images[LABELS[images] == 0].tolist()) for images in epochs]
    assert all(len(each) in (44, 45) for each in taken)
    for first, second in ((0, 1), (2, 3), (4, 5)):
        assert not taken[first] & taken[second]
    assert taken[0] & taken[2]
    assert len({frozenset(each) for each in taken}) == 6


def test_balanced_order_depends_on_seed_and_epoch_alone_and_never_changes() -> None:
    assert np.array_equal(order.balanced(7, 3, LABELS), order.balanced(7, 3, LABELS))
    for seed, epoch in ((7, 4), (8, 3)):
        assert (order.balanced(seed, epoch, LABELS) == order.balanced(7, 3, LABELS)).sum() < 15
    assert order.balanced(1, 2, np.array([0, 0, 0, 0, 0, 1, 1, 2])).tolist() == [14, 6, 4, 15, 1, 7, 23, 5]
    assert order.permutation(1, 2, 12, stream=3).tolist() == [9, 0, 10, 11, 6, 2, 3, 1, 4, 8, 7, 5]


def test_classes_are_mixed_within_the_epoch() -> None:
    firsts = [np.bincount(LABELS[order.balanced(7, e, LABELS)[:30] % len(LABELS)], minlength=4) for e in range(60)]
    assert np.allclose(np.mean(firsts, axis=0), [10, 10, 0, 10], atol=1)


@pytest.fixture
def rows(tmp_path: Path) -> Split:
    """24 images, of which class 0 has 18, class 1 four and class 2 two; row 5 cannot be read."""
    generator = np.random.default_rng(0)
    names = [f"{i}.png" for i in range(24)]
    for name in names:
        Image.fromarray(generator.integers(0, 256, (10, 10, 3), np.uint8)).save(tmp_path / name)
    (tmp_path / "5.png").write_bytes(b"")
    labels = np.repeat([0, 1, 2], [18, 4, 2]).astype(np.int32)
    nothing = np.zeros(24, np.int64)
    return Split(tmp_path, ("a", "b", "c"), pa.array(names), labels, nothing, nothing)


def loader(rows: Split, workers: int = 0) -> Loader:
    files = Files(rows, PREPROCESSING)
    plain = Loader(files, rows, PREPROCESSING, augmentation=ERASING, batch_size=5, workers=workers, seed=3)
    return plain.sampled("balanced")


def prints(batches: list[Batch]) -> list[tuple[int, list[int], list[int], list[str]]]:
    return [
        (b.step, b.indices.tolist(), b.labels.tolist(), [hashlib.sha256(p.tobytes()).hexdigest() for p in b.pixels])
        for b in batches
    ]


def test_the_loader_takes_classes_equally_often_and_changes_an_image_anew_each_time(rows: Split) -> None:
    files, found = Files(rows, PREPROCESSING), list(loader(rows).epoch(2))
    labels = np.concatenate([batch.labels for batch in found])
    unreadable = int(5 in order.balanced(3, 2, rows.labels.astype(np.int64)) % 24)
    assert np.bincount(labels).tolist() == [8 - unreadable, 8, 8]
    seen: Counter[int] = Counter()
    pixels: dict[int, list[npt.NDArray[np.uint8]]] = {}
    for batch in found:
        assert batch.labels.tolist() == rows.labels[batch.indices].tolist()
        for index, image in zip(batch.indices.tolist(), batch.pixels, strict=True):
            pixels.setdefault(index, []).append(image)
            seen[index] += 1
    assert [seen[index] for index in (18, 19, 20, 21, 22, 23)] == [2, 2, 2, 2, 4, 4]
    for index, images in pixels.items():
        assert len({image.tobytes() for image in images}) == len(images)
        whole = {"augmentation": ERASING, "image_size": 8, "seed": 3, "epoch": 2}
        first = augment([files.read(index)], np.array([index]), **whole)[0]  # as in an epoch of one each
        assert any(np.array_equal(image, first) for image in images)


@pytest.mark.parametrize("workers", [0, 2])
def test_balanced_batches_do_not_depend_on_workers_the_start_or_the_number_of_processes(
    rows: Split, workers: int
) -> None:
    whole = prints(list(loader(rows).epoch(1)))
    for start in range(loader(rows).steps + 1):
        assert prints(list(loader(rows, workers).epoch(1, start))) == [one for one in whole if one[0] >= start]
    halves = [prints(list(loader(rows, workers).for_process(rank, 2).epoch(1))) for rank in (0, 1)]
    joined = [(a[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]) for a, b in zip(*halves, strict=True)]
    assert joined == whole


def test_validation_order_stays_as_it_is(rows: Split) -> None:
    images = np.concatenate([batch.indices for batch in loader(rows).sequential()])
    assert images.tolist() == [index for index in range(24) if index != 5]
