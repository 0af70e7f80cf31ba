"""Order and random numbers are arithmetic: right, uniform, independent, and the same for ever."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from resnext.data import order

WORD = 1 << 64


def test_permutation_holds_every_image_once_and_depends_on_seed_and_epoch() -> None:
    first = order.permutation(0, 0, 1000)
    assert first.dtype == np.int64
    assert sorted(first.tolist()) == list(range(1000))
    assert np.array_equal(first, order.permutation(0, 0, 1000))
    for seed, epoch in ((0, 1), (1, 0), (1, 1), (-1, 0)):
        assert (order.permutation(seed, epoch, 1000) == first).sum() < 20
    assert order.permutation(0, 0, 0).tolist() == []
    assert order.permutation(0, 0, 1).tolist() == [0]


def test_recorded_permutations_never_change() -> None:
    assert order.permutation(1, 2, 12).tolist() == [4, 11, 2, 0, 6, 1, 5, 10, 9, 8, 7, 3]
    assert order.permutation(-1, 0, 5).tolist() == [0, 4, 2, 3, 1]


def test_every_image_comes_to_every_place_equally_often() -> None:
    orders = np.stack([order.permutation(5, epoch, 8) for epoch in range(4000)])
    counts = np.stack([np.bincount(orders[:, place], minlength=8) for place in range(8)])
    assert stats.chi2_contingency(counts).pvalue > 1e-3
    follows = np.zeros((8, 8))
    np.add.at(follows, (orders[:, :-1].ravel(), orders[:, 1:].ravel()), 1)
    assert stats.chisquare(follows[~np.eye(8, dtype=bool)]).pvalue > 1e-3


def _scramble(word: int) -> int:
    word = (word + 0x9E3779B97F4A7C15) % WORD
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB % WORD
    return word ^ (word >> 31)


def _uniform(seed: int, epoch: int, image: int, draw: int, stream: int) -> float:
    """One number in Python's unbounded integers."""
    key = 0
    for part in (seed, epoch, stream):
        key = _scramble(key ^ (part % WORD))
    row = _scramble(key ^ image)
    return (_scramble((row + (draw + 1) * 0x9E3779B97F4A7C15) % WORD) >> 11) / 2**53


@given(
    seed=st.integers(-(2**63), 2**64 - 1),
    epoch=st.integers(0, 2**40),
    images=st.lists(st.integers(0, 2**62), max_size=5),
    draws=st.integers(0, 4),
    stream=st.integers(0, 100),
)
def test_uniforms_are_what_unbounded_integers_give(
    seed: int, epoch: int, images: list[int], draws: int, stream: int
) -> None:
    found = order.uniforms(seed, epoch, np.array(images, np.int64), draws, stream)
    expected = [[_uniform(seed, epoch, image, draw, stream) for draw in range(draws)] for image in images]
    assert found.dtype == np.float64
    assert found.shape == (len(images), draws)
    assert found.tolist() == expected


def test_recorded_numbers_never_change() -> None:
    assert order.uniforms(1, 2, np.array([0, 3]), 2, stream=4).tolist() == [
        [0.45122197133461994, 0.1664958510267105],
        [0.06388428493798981, 0.09469904482662339],
    ]
    assert order.uniforms(7, 3, np.array([12345]), 2, stream=5)[0, 1] == 0.9845058400466152


def test_an_image_has_its_numbers_whatever_else_is_asked_for() -> None:
    alone = order.uniforms(3, 1, np.array([42]), 2)
    among = order.uniforms(3, 1, np.array([7, 42, 41, 42]), 6)
    assert np.array_equal(among[1, :2], alone[0])
    assert np.array_equal(among[1], among[3])


def test_numbers_are_uniform() -> None:
    numbers = order.uniforms(0, 0, np.arange(100_000), 10)
    count = numbers.size
    assert 0 <= numbers.min() < 1e-5
    assert 1 - 1e-5 < numbers.max() < 1
    assert abs(numbers.mean() - 1 / 2) < 4 * np.sqrt(1 / 12 / count)
    assert abs(numbers.var() - 1 / 12) < 4 * np.sqrt(1 / 180 / count)
    cells = np.bincount((numbers.ravel() * 1000).astype(int), minlength=1000)
    assert stats.chisquare(cells).pvalue > 1e-3
    # The lower bits, too: the next 10 after the first 10.
    cells = np.bincount((numbers.ravel() * 2**20).astype(int) % 1024, minlength=1024)
    assert stats.chisquare(cells).pvalue > 1e-3


def _numbers(axis: str) -> npt.NDArray[np.float64]:
    """300 runs of 1,024 numbers each, along which only `axis` goes up by one from number to number."""
    if axis == "image":
        return order.uniforms(0, 5, np.arange(300 * 1024), 1).reshape(300, 1024)
    if axis == "draw":
        return order.uniforms(0, 5, np.arange(300), 1024)
    parts = {"seed": 9, "epoch": 9, "stream": 9}
    columns = [order.uniforms(**(parts | {axis: i}), images=np.arange(300), draws=1) for i in range(1024)]
    return np.hstack(columns)


@pytest.mark.parametrize("axis", ["image", "draw", "epoch", "stream", "seed"])
def test_neighbours_are_independent(axis: str) -> None:
    """Of numbers 1, 2 or 64 steps apart along an axis, every pair of values is equally likely."""
    numbers = (_numbers(axis) * 16).astype(int)
    for lag in (1, 2, 64):
        pairs = np.zeros((16, 16))
        np.add.at(pairs, (numbers[:, :-lag].ravel(), numbers[:, lag:].ravel()), 1)
        assert stats.chisquare(pairs.ravel()).pvalue > 1e-3, lag


def test_any_flipped_bit_of_an_image_number_changes_half_of_the_bits() -> None:
    images = np.arange(2000, dtype=np.int64)
    before = (order.uniforms(0, 0, images, 1) * 2**53).astype(np.uint64)
    for bit in range(0, 62, 3):
        after = (order.uniforms(0, 0, images ^ (1 << bit), 1) * 2**53).astype(np.uint64)
        changed = np.unpackbits((before ^ after).view(np.uint8)).sum() / 53 / 2000
        assert abs(changed - 0.5) < 4 * np.sqrt(0.25 / 53 / 2000), bit


@given(count=st.integers(0, 300), batch_size=st.integers(1, 40))
def test_batches_hold_every_image_once_and_none_holds_one_image_but_by_need(count: int, batch_size: int) -> None:
    images = np.arange(count)[::-1].copy()
    batches = [order.batch(images, step, batch_size) for step in range(order.steps(count, batch_size))]
    assert np.array_equal(np.concatenate([*batches, []]), images)
    assert all(len(batch) == batch_size for batch in batches[:-1])
    if batches:
        assert 1 <= len(batches[-1]) <= batch_size + 1
    if count > 1 and batch_size > 1:
        assert all(len(batch) > 1 for batch in batches)
        if count % batch_size == 1:
            assert len(batches[-1]) == batch_size + 1
