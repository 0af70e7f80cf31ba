"""The arithmetic of measurements against numpy's, and what tables, JSON and chart make of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnext.benchmarking import chart, report
from resnext.benchmarking.contenders import BASE, LAST, Contender, lineup
from resnext.benchmarking.figures import Figures, agreement, likeness, percentile, ratio
from resnext.benchmarking.race import Plan, Race
from resnext.errors import UserError

OURS, PEER = Contender("ours", "int8"), Contender("openvino", "int8")


def figures(contender: Contender, *rates: float, likeness: float = 1.0) -> Figures:
    times = tuple(float(value) for value in range(1, 21))
    return Figures(contender, rates, times, 100.0, 1.0, likeness, {"batch": 4, "streams": 2})


@pytest.fixture
def race() -> Race:
    return Race(
        Plan("resnext50_32x4d"),
        "resnext50_32x4d",
        224,
        ("a note",),
        (
            figures(OURS, 90, 100, 130),
            figures(BASE, 10, 8, 12),
            figures(PEER, 50, 40, 80),
            figures(Contender("onnxruntime", "int8"), 200, 200, 200, likeness=0.1),
            Figures(Contender("compile", "bf16", LAST), failure="no compiler"),
        ),
    )


@pytest.mark.parametrize("count", [1, 2, 5, 100])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95, 1.0])
def test_percentiles_are_numpy_s(count: int, share: float) -> None:
    values = np.random.default_rng(count).normal(size=count)
    assert percentile(values.tolist(), share) == pytest.approx(np.percentile(values, 100 * share))


def test_ratios_are_of_medians() -> None:
    assert ratio(figures(OURS, 90, 100, 130), figures(PEER, 50, 40, 80)) == 2.0
    assert ratio(None, figures(PEER, 1.0)) is None
    assert ratio(figures(OURS, 1.0), Figures(PEER, failure="gone")) is None


def test_likeness_is_the_correlation_over_images() -> None:
    logits = np.random.default_rng(0).normal(size=(40, 7))
    centred = logits - logits.mean(0)
    other = logits + np.random.default_rng(1).normal(size=logits.shape)
    expected = np.corrcoef(centred.ravel(), (other - other.mean(0)).ravel())[0, 1]
    assert likeness(logits, other) == pytest.approx(expected)
    assert likeness(logits, logits + np.arange(7)) == pytest.approx(1.0), "what is the same for all images is no news"
    assert abs(likeness(logits, logits[::-1])) < 0.3
    assert likeness(logits, np.full_like(logits, np.nan)) == 0.0
    assert agreement(logits, logits) == 1.0
    assert agreement(logits, -logits) < 0.5


def test_the_table_says_who_is_faster_and_who_computes_something_else(race: Race) -> None:
    rows = {row[0]: dict(zip(report.COLUMNS, row, strict=True)) for row in report.table(race)}
    assert next(iter(rows)) == "torch eager fp32 NCHW", "by precision, and of one precision ours first"
    assert rows["OpenVINO int8"]["ours is"] == "2.00 ×"
    assert rows["OpenVINO int8"]["img/s"] == "50.0"
    assert rows["OpenVINO int8"]["range"] == "40.0 to 80.0"
    assert rows["resnext int8"]["× eager fp32 NCHW"] == "10.0 ×"
    assert rows["resnext int8"]["ms p50"] == "10.5"
    assert "computes something else" in rows["ONNX Runtime int8"]["remark"]
    assert "no compiler" in rows["torch.compile bf16 channels_last"]["remark"]


def test_json_holds_what_the_figures_depend_on(race: Race, tmp_path: Path) -> None:
    place = report.write(race, tmp_path / "new" / "folder", ["resnext", "benchmark"])
    told = json.loads(place.read_text())
    assert told["command"] == ["resnext", "benchmark"]
    assert {"machine", "software", "seed", "rounds", "threads", "notes"} <= told.keys()
    by_name = {row["name"]: row for row in told["contenders"]}
    assert by_name["resnext int8"]["images_a_second"] == {
        "median": 100,
        "min": 90,
        "max": 130,
        "rounds": [90, 100, 130],
    }
    assert by_name["OpenVINO int8"]["ours_is"] == 2.0
    assert by_name["ONNX Runtime int8"]["same_function"] is False
    assert by_name["torch.compile bf16 channels_last"]["failure"] == "no compiler"


def test_the_chart_is_a_picture_with_a_bar_for_everybody(race: Race, tmp_path: Path) -> None:
    chart.draw(race, tmp_path / "chart.png")
    with Image.open(tmp_path / "chart.png") as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    for colour in (chart.OUR_COLOUR, chart.PEER_COLOUR):
        wanted = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
        assert (pixels == wanted).all(1).mean() > 0.005
    nobody = Race(race.plan, race.network, 224, (), (Figures(PEER, failure="gone"),))
    with pytest.raises(UserError, match="no contender ran"):
        chart.draw(nobody, tmp_path / "none.png")


def test_the_base_of_all_ratios_always_takes_part() -> None:
    assert BASE in lineup(["eager"], ["int8"])
    assert lineup(["openvino"], ["int8"]) == [OURS, PEER]
    assert [one.peer for one in lineup(["openvino", "onnxruntime"], ["fp32"])] == ["ours", "onnxruntime", "openvino"]
    with pytest.raises(UserError, match="openvino"):
        lineup(["openvin"], ["int8"])
