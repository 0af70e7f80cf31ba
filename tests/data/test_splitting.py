"""Properties of cuts and folds over random labels, groups and copies."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from resnext.data import splitting
from resnext.data.splitting import Unit, cut, folds, units


@st.composite
def rows(draw: st.DrawFn) -> tuple[list[int], list[str | None], list[list[int]], int]:
    """Labels, groups, sets of copies, and a seed."""
    count = draw(st.integers(2, 60))
    labels = draw(st.lists(st.integers(0, 4), min_size=count, max_size=count))
    names = st.none() | st.sampled_from("ABCDEFGH") if draw(st.booleans()) else st.none()
    groups = draw(st.lists(names, min_size=count, max_size=count))
    some_rows = st.lists(st.integers(0, count - 1), min_size=2, max_size=5, unique=True)
    return labels, groups, draw(st.lists(some_rows, max_size=6)), draw(st.integers(0, 5))


def built(labels: list[int], groups: list[str | None], copies: list[list[int]], seed: int) -> list[Unit]:
    paths = [f"{row}.jpg" for row in range(len(labels))]
    return units(np.array(labels, np.int32), paths, groups, copies, seed)


def linked(groups: list[str | None], copies: list[list[int]]) -> list[set[int]]:
    """Connected components by brute force."""
    sets = [{row} for row in range(len(groups))] + [set(rows) for rows in copies]
    sets += [{row for row, group in enumerate(groups) if group == name} for name in set(groups) - {None}]
    merged: list[set[int]] = []
    for rows in sets:
        touching = [other for other in merged if other & rows]
        merged = [other for other in merged if not other & rows] + [rows.union(*touching)]
    return merged


def units_of(parts: list[set[int]], labels: list[int]) -> dict[int, int]:
    """How many units have images of a class."""
    found: dict[int, int] = defaultdict(int)
    for part in parts:
        for label in {labels[row] for row in part}:
            found[label] += 1
    return found


@given(rows())
@settings(deadline=None)
def test_units_are_the_connected_rows(case: tuple[Any, ...]) -> None:
    labels, groups, copies, _ = case
    found = built(*case)
    assert sorted(sorted(unit.rows) for unit in found) == sorted(sorted(part) for part in linked(groups, copies))
    for unit in found:
        assert sorted(labels[row] for row in unit.rows) == sorted(c for c, n in unit.classes.items() for _ in range(n))


@given(rows(), st.floats(0.05, 0.9))
@settings(deadline=None)
def test_a_cut_keeps_units_whole_and_every_class_in_training(case: tuple[Any, ...], validation: float) -> None:
    labels, groups, copies, _ = case
    mask = cut(built(*case), validation)
    parts = linked(groups, copies)
    assert all(len({bool(mask[row]) for row in part}) == 1 for part in parts)
    trained = {label for label, val in zip(labels, mask, strict=True) if not val}
    assert trained == set(labels)


@given(st.lists(st.integers(0, 4), min_size=2, max_size=80), st.floats(0.05, 0.9), st.integers(0, 9))
@settings(deadline=None)
def test_a_cut_of_single_images_is_exactly_stratified(labels: list[int], validation: float, seed: int) -> None:
    mask = cut(built(labels, [None] * len(labels), [], seed), validation)
    for label in set(labels):
        count = labels.count(label)
        expected = 0 if count == 1 else min(max(1, round(validation * count)), count - 1)
        assert mask[np.array(labels) == label].sum() == expected


@given(st.lists(st.integers(1, 9), min_size=2, max_size=40), st.floats(0.05, 0.6), st.integers(0, 9))
@settings(deadline=None)
def test_a_cut_of_groups_errs_by_half_the_largest(sizes: list[int], validation: float, seed: int) -> None:
    groups = [str(number) for number, size in enumerate(sizes) for _ in range(size)]
    mask = cut(built([0] * len(groups), groups, [], seed), validation)
    wanted = max(1, round(validation * len(groups)))
    assert mask.any()
    if mask.sum() != min(sizes):  # else the smallest group stands for a share that is smaller than any group
        assert abs(mask.sum() - wanted) <= max(sizes) / 2


@given(rows(), st.integers(2, 5))
@settings(deadline=None)
def test_folds_validate_each_unit_once_and_whole(case: tuple[Any, ...], k: int) -> None:
    labels, groups, copies, _ = case
    masks = np.array(folds(built(*case), k))
    parts = linked(groups, copies)
    single = {label for label, count in units_of(parts, labels).items() if count == 1}
    assert masks.shape == (k, len(labels))
    for part in parts:
        held = {tuple(masks[:, row]) for row in part}
        assert len(held) == 1
        assert sum(held.pop()) == (0 if single & {labels[row] for row in part} else 1)


@given(st.lists(st.integers(0, 3), min_size=4, max_size=80), st.integers(2, 6), st.integers(0, 9))
@settings(deadline=None)
def test_folds_of_single_images_are_even_and_leave_every_class_in_training(
    labels: list[int], k: int, seed: int
) -> None:
    masks = folds(built(labels, [None] * len(labels), [], seed), k)
    for label in set(labels):
        of_class = np.array(labels) == label
        held = [int(mask[of_class].sum()) for mask in masks]
        assert sum(held) == (0 if labels.count(label) == 1 else labels.count(label))
        assert max(held) - min(held) <= 1
        assert max(held) < labels.count(label)


@given(st.integers(2, 60), st.integers(0, 9), st.floats(0.05, 0.5))
@settings(deadline=None)
def test_adding_an_image_moves_one_other_at_most(count: int, seed: int, validation: float) -> None:
    def chosen(total: int) -> npt.NDArray[np.bool_]:
        return cut(built([0] * total, [None] * total, [], seed), validation)

    assert (chosen(count) != chosen(count + 1)[:count]).sum() <= 1


@given(st.integers(0, 50))
@settings(deadline=None)
def test_a_group_keeps_its_place_when_it_grows(seed: int) -> None:
    groups: list[str | None] = [*"AABBCDDE", None, None]
    before = built([0] * 10, groups, [], seed)
    after = built([0] * 12, [*groups, "A", "C"], [], seed)
    assert [unit.rows[0] for unit in before] == [unit.rows[0] for unit in after]


def test_folds_leave_a_class_of_two_groups_in_training_though_another_class_crowds() -> None:
    groups: list[str | None] = [*"AAAAABBCC"]
    labels = [1, 1, 1, 1, 1, 1, 2, 2, 1]
    for mask in folds(built(labels, groups, [], 0), 2):
        assert {label for label, val in zip(labels, mask, strict=True) if not val} == {1, 2}


def test_the_seed_draws_another_cut_and_groups_move_as_one() -> None:
    cuts = {tuple(cut(built([0] * 40, [None] * 40, [], seed), 0.25)) for seed in range(10)}
    assert len(cuts) == 10
    order = [unit.rows for unit in built([0] * 6, ["A", None, "A", None, "B", "B"], [], 0)]
    assert (0, 2) in order
    assert (4, 5) in order


def test_a_class_of_large_groups_gets_the_smallest_for_validation() -> None:
    groups = ["A"] * 30 + ["B"] * 25 + ["C"] * 40
    mask = cut(built([0] * 95, groups, [], 0), 0.1)
    assert {groups[row] for row in np.flatnonzero(mask)} == {"B"}


def test_copies_compares_whole_files_and_forgets_empty_and_missing_ones(tmp_path: Any) -> None:
    head = b"h" * splitting.HEAD
    contents = [
        b"",
        b"",
        b"a",
        b"a",
        b"b",
        head,
        head,
        head + b"1",
        head + b"2",
        head + b"1",
        head + b"x" * 9,
    ]
    for number, content in enumerate(contents):
        (tmp_path / str(number)).write_bytes(content)
    (tmp_path / "10").unlink()
    paths, sizes = [str(number) for number in range(11)], np.array([len(content) for content in contents])
    assert sorted(splitting.copies(tmp_path, [*paths, "gone"], np.append(sizes, 1))) == [
        [2, 3],
        [5, 6],
        [7, 9],
    ]
