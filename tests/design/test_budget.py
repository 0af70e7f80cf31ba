"""Networks of equal complexity: the papers' settings are found, by exact counts, and the nearest is the nearest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnext import catalog
from resnext.cli import run
from resnext.design.budget import Answer, Fixed, Wish, design, nearest
from resnext.design.counting import Counter
from resnext.design.families import FAMILIES, Family, Point, of
from resnext.errors import UserError

BOTTLENECKS, CIFAR = FAMILIES[0], FAMILIES[1]


def settings_of(answer: Answer) -> list[tuple[int, int]]:
    return [(one.point.cardinality, one.point.width) for one in answer.candidates]


# arXiv:1611.05431 Table 2: C, d, C·d, and eq. (4), which the paper gives as about 70k.
TABLE_2 = [(1, 64, 64, 69_632), (2, 40, 80, 69_760), (4, 24, 96, 69_888), (8, 14, 112, 71_456), (32, 4, 128, 70_144)]


def test_table_2_is_found() -> None:
    answer = design("resnet50", fixed=Fixed(cardinality=(1, 2, 4, 8, 32)))
    found = [
        (one.point.cardinality, one.point.width, one.point.cardinality * one.point.width, one.cost.block)
        for one in answer.candidates
    ]
    assert found == TABLE_2
    # its last column, multiply-adds at 56×56 pixels: about 0.22 billion
    assert [round(block * 56 * 56 / 1e9, 2) for *_, block in found] == [0.22, 0.22, 0.22, 0.22, 0.22]


@pytest.mark.parametrize("depth", [50, 101])
def test_the_settings_of_table_3_are_found_with_their_costs(depth: int) -> None:
    answer = design(f"resnet{depth}", fixed=Fixed(cardinality=(1, 2, 4, 8, 32)))
    assert settings_of(answer) == [(1, 64), (2, 40), (4, 24), (8, 14), (32, 4)]
    for one in answer.candidates:
        row = catalog.rows(one.name)[0]
        assert (one.cost.parameters, one.cost.macs) == (row["parameters"], row["macs"])
        assert one.paper in ("arXiv:1611.05431 Table 1", "arXiv:1611.05431 Table 3")
    assert answer.listed == ()


def test_the_rows_of_table_4_stand_beside_what_is_solved_for() -> None:
    answer = design("resnet101", wish=Wish(factor=2))
    found = {one.solved: one for one in answer.candidates}
    assert (found["depth"].point, found["depth"].match) == (Point(200, 64), "macs")
    assert found["width"].point == Point(101, 99)  # the paper took 100
    assert found["cardinality"].point == Point(101, 64, 2)
    assert found["cardinality"].deviation == 0
    listed = {one.name: one for one in answer.listed}
    assert listed.keys() >= {"resnext101_1x100d", "resnext101_64x4d"}
    assert abs(listed["resnext101_1x100d"].deviation) > abs(found["width"].deviation)
    assert [round(each.cost.macs / 1e9) for each in (*found.values(), *listed.values())].count(15) >= 5


def test_cifar_s_settings_are_found() -> None:
    twice = design("cifar_resnext29_8x64d", fixed=Fixed(width=(64,)), wish=Wish(factor=2))
    assert settings_of(twice) == [(16, 64)]
    assert twice.candidates[0].cost.parameters == 68_155_210  # Table 7
    wider = design("cifar_resnext29_8x64d", fixed=Fixed(cardinality=(1,)), wish=Wish(match="parameters"))
    (one,) = wider.candidates
    assert abs(one.deviation) < 0.01
    assert one.point.width > 200  # one path of the width sweep's kind
    assert design("cifar_resnext29_1x64d", fixed=Fixed(cardinality=(32,))).candidates[0].name == "cifar_resnext29_32x4d"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.title)
def test_predictions_are_the_published_counts(family: Family) -> None:
    rows = [(point, row) for point, row in family.listed() if point.depth < 1000]
    assert rows
    for point, row in rows:
        cost = Counter(family).predict(point, int(str(row["image_size"])))
        assert (cost.parameters, cost.macs) == (row["parameters"], row["macs"]), row["name"]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.title)
def test_a_point_has_the_name_that_means_it(family: Family) -> None:
    for point, row in family.listed():
        name, options = family.build(point)
        if not options:
            assert family.parse(name) == point
        made = catalog.resolve(name)
        published = catalog.resolve(str(row["name"]))
        assert made.image_size == published.image_size
        assert of(str(row["name"]))[0] == family


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=60), st.integers(1, 12_000), st.booleans())
def test_the_nearest_is_that_of_trying_all(costs: list[int], budget: int, under: bool) -> None:
    costs = sorted(set(costs))
    fits = [cost for cost in costs if not under or cost <= budget]
    best = min(fits, key=lambda cost: (abs(cost - budget), cost), default=None)
    found = nearest(lambda value: costs[value], range(len(costs)), budget, under=under)
    assert best == (None if found is None else costs[found])


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["macs", "parameters", "block"]),
    st.integers(1, 40),
    st.floats(0.3, 3.0),
    st.booleans(),
)
def test_the_width_is_that_of_counting_all(match: str, cardinality: int, factor: float, under: bool) -> None:
    counter = Counter(CIFAR)

    def cost(width: int) -> int:
        counted = counter.predict(Point(11, width, cardinality), 32)
        return int(getattr(counted, match))

    reference = int(getattr(counter.count(Point(11, 16, 4), 32), match))
    budget = factor * reference
    within = [width for width in range(1, 200) if not under or cost(width) <= budget]
    wish = Wish(factor=factor, match=match, under=under)  # type: ignore[arg-type]
    if not within:
        with pytest.raises(UserError, match="Not even width 1 is within"):
            design("cifar_resnext11_4x16d", fixed=Fixed(cardinality=(cardinality,)), wish=wish)
        return
    best = min(within, key=lambda width: (abs(cost(width) - budget), width))
    answer = design("cifar_resnext11_4x16d", fixed=Fixed(cardinality=(cardinality,)), wish=wish)
    assert settings_of(answer) == [(cardinality, best)]
    assert not under or answer.candidates[0].deviation <= 0


def test_depth_and_image_size_are_solved_for_in_multiply_adds() -> None:
    deeper = design("resnext50_32x4d", fixed=Fixed(cardinality=(32,), width=(4,)), wish=Wish(factor=1.9))
    assert (deeper.candidates[0].point.depth, deeper.candidates[0].match) == (101, "macs")
    larger = design("resnet50", free="image-size", wish=Wish(factor=2))
    assert (larger.candidates[0].image_size, larger.candidates[0].match) == (320, "macs")
    small = design("resnet50", fixed=Fixed(image_size=(128,)))
    assert small.candidates[0].match == "macs"
    assert abs(small.candidates[0].deviation) < 0.02
    assert small.candidates[0].point.width > 64


def test_basic_blocks_are_widened_and_have_no_cardinality() -> None:
    wider = design("resnet18", wish=Wish(parameters=25_875_816))
    assert [one.solved for one in wider.candidates] == ["depth", "width"]
    assert wider.candidates[1].name == "wide_resnet18_1.5"
    for fixed in (Fixed(cardinality=(2,)), Fixed(width=(64,), cardinality=(1, 2))):
        with pytest.raises(UserError, match="Blocks of two layers have no cardinality"):
            design("resnet34", fixed=fixed)
    narrow = design("cifar_resnet56", fixed=Fixed(depth=(20,)), wish=Wish(match="macs"))
    assert narrow.candidates[0].options == {"width": narrow.candidates[0].point.width}
    assert narrow.candidates[0].point.width > 16


@pytest.mark.parametrize(
    ("like", "fixed", "wish", "message"),
    [
        ("resnet5", Fixed(), Wish(), "There is no network"),
        ("vgg16", Fixed(), Wish(), "vgg16 is of no family"),
        ("resnet50", Fixed(depth=(60,)), Wish(), "no published layout of 60 layers"),
        ("resnet50", Fixed(cardinality=(0,)), Wish(), "--cardinality 0 makes no network"),
        ("resnet50", Fixed(image_size=(100,)), Wish(), "multiples of 32"),
        ("resnet50", Fixed((1,), (64,), (50,), (224,)), Wish(), "nothing is left to solve for"),
        ("resnet50", Fixed(), Wish(macs=1, parameters=1), "There are two budgets"),
        ("resnet50", Fixed(), Wish(macs=10**9, match="parameters"), "does not measure"),
        ("resnet50", Fixed(), Wish(factor=0), "is no share of anything"),
        ("resnet50", Fixed(), Wish(macs=1000, under=True), "Not even depth 50 is within"),
    ],
)
def test_what_cannot_be_solved_is_said(like: str, fixed: Fixed, wish: Wish, message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        design(like, fixed=fixed, wish=wish)
    assert len(str(refused.value).splitlines()) <= 3


def test_the_command_prints_what_papers_have(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture = tmp_path / "design.png"
    line = ["design", "--like", "resnet50", "--cardinality", "1,32", "--picture", str(picture)]
    assert run([*line, "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    keys = {"name", "cardinality", "base_width", "depth", "parameters", "macs", "deviation"}
    assert all(keys <= row.keys() for row in told)
    assert [(row["name"], row["parameters"]) for row in told if row["solved"]] == [
        ("resnext50_1x64d", 25_557_032),
        ("resnext50_32x4d", 25_028_904),
    ]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert run(line) == 0
    out = capfd.readouterr().out
    assert "70,144" in out
    assert "+0.74 %" in out
    assert "arXiv:1611.05431 Table 3" in out


def test_classes_count(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["design", "--like", "resnet50", "--cardinality", "1", "--classes", "10", "--json"]) == 0
    row = json.loads(capfd.readouterr().out)[0]
    assert row["parameters"] == 23_508_032 + 2048 * 10 + 10


def test_times_are_told_where_they_are_wanted(capfd: pytest.CaptureFixture[str]) -> None:
    line = ["design", "--like", "cifar_resnext11_1x8d", "--cardinality", "1,2", "--measure", "--json"]
    assert run(line) == 0
    rows = json.loads(capfd.readouterr().out)
    assert all(row["training_ms"] > row["inference_ms"] > 0 for row in rows)
    assert {row["batch_size"] for row in rows} == {64}


@pytest.mark.parametrize("flag", ["--cardinality", "--width", "--depth", "--image-size"])
def test_lists_that_are_none_are_refused(flag: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["design", "--like", "resnet50", flag, "1;2"]) == 2
    assert "is no list of whole numbers" in capfd.readouterr().err
