"""The stopwatch's choice: the fastest, the plain engine unless another is faster by more than noise, within the time.

Speeds are made up here, and the clock runs with them, so that every choice is known beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from resnext import catalog
from resnext.data.preprocessing import Preprocessing
from resnext.engine import TorchEngine
from resnext.errors import UserError
from resnext.inference import options, tuning
from resnext.inference.engines import openvino, stacking
from resnext.inference.engines.openvino import Settings
from resnext.inference.options import Option, Workshop, factor_for

SIDES = (7, 14, 28)
LAYERS = {"stage1.spatial": (32, 4), "stage2.spatial": (32, 8)}
PREPROCESSING = Preprocessing(32, 32)
Speed = Callable[[Option], float]


class Clock:
    """Stands still until somebody spends time."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Toy(Workshop):
    """Engines that are their options; building one takes a second."""

    def __init__(self, clock: Clock, *, graph: object = "graph") -> None:
        super().__init__(cast(Any, None), PREPROCESSING, cast(Any, graph))
        self.clock = clock
        self.built: list[Option] = []

    def graph_of(self, merged: Mapping[str, int], stacked: int = 0) -> Any:
        return dict(merged)

    def engine(self, option: Option) -> Any:
        self.clock.now += 1
        self.built.append(option)
        return option


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Callable[[Speed], Toy]:
    """Return a workshop for the speeds that a test wants; single layers take a millisecond each, merged or not."""

    def make(speed: Speed, times: Callable[[dict[str, int]], dict[str, float]] | None = None) -> Toy:
        clock = Clock()

        def rate(engine: Any, pixels: np.ndarray, seconds: float) -> float:
            clock.now += seconds
            return speed(engine)

        monkeypatch.setattr(tuning, "time", SimpleNamespace(perf_counter=clock.perf_counter))
        monkeypatch.setattr(tuning, "images_a_second", rate)
        monkeypatch.setattr(openvino, "grouped_layers", lambda graph: LAYERS)
        monkeypatch.setattr(stacking, "stackable_sides", lambda graph: SIDES)
        default = lambda merged: dict.fromkeys(LAYERS, 1.0)  # noqa: E731
        monkeypatch.setattr(openvino, "layer_times", lambda graph, settings: (times or default)(graph))
        monkeypatch.setattr(tuning.machine, "cores", lambda: 2)
        monkeypatch.setattr(tuning.machine, "has_fast_bfloat16", lambda: True)
        return Toy(clock)

    return make


def batch(option: Option) -> int:
    return int(option.settings.get("batch", 0))


def test_the_fastest_settings_and_the_fastest_merging_are_found(toy: Callable[..., Toy]) -> None:
    workshop = toy(lambda option: 100 + batch(option) * 10 + 50 * (option.merging == "to 32"))
    choice = tuning.tune(workshop, "bf16", minutes=10)
    assert (batch(choice.option), choice.option.merging) == (32, "to 32")
    assert choice.option.merged == {"stage1.spatial": 8, "stage2.spatial": 4}
    assert (choice.rate, choice.plain_rate) == (470, 420)


def test_a_merging_that_is_best_only_where_maps_are_stacked_is_found(toy: Callable[..., Toy]) -> None:
    """Each is looked at again once something faster is known, in its merging, its stacking and its settings."""

    def speed(option: Option) -> float:
        alone = {"to 64": 10, "to 32": 5}.get(option.merging, 0) + {7: 5, 14: 20}.get(option.stacked, 0)
        stacked = 40 * (option.merging == "to 32") + 30 * (batch(option) == 16) if option.stacked == 14 else 0
        return 100 + alone + stacked

    choice = tuning.tune(toy(speed), "bf16", minutes=10)
    assert (choice.option.merging, choice.option.stacked, batch(choice.option)) == ("to 32", 14, 16)
    assert choice.plain_rate == 100


def test_maps_are_not_stacked_where_that_is_no_faster(toy: Callable[..., Toy]) -> None:
    workshop = toy(lambda option: 100 + 10 * (option.merging == "to 32") - option.stacked)
    choice = tuning.tune(workshop, "int8", minutes=10)
    assert (choice.option.merging, choice.option.stacked) == ("to 32", 0)
    assert {option.stacked for option in workshop.built} == {0, *SIDES}


@pytest.mark.parametrize(("gain", "merging"), [(1.015, "none"), (1.03, "to 64")])
def test_noise_does_not_take_the_plain_engine_s_place(toy: Callable[..., Toy], gain: float, merging: str) -> None:
    workshop = toy(lambda option: 100 * (gain if option.merging == "to 64" else 1.0))
    assert tuning.tune(workshop, "fp32", minutes=10).option.merging == merging


def test_who_was_fast_once_but_is_not_in_turns_is_not_chosen(toy: Callable[..., Toy]) -> None:
    seen: dict[str, int] = {}

    def speed(option: Option) -> float:
        if option.merging == "none":
            return 100.0
        seen[repr(option)] = seen.get(repr(option), 0) + 1
        return 150.0 if seen[repr(option)] == 1 else 90.0

    choice = tuning.tune(toy(speed), "bf16", minutes=10)
    assert choice.option.merging == "none"
    assert choice.rate == choice.plain_rate == 100


def test_each_layer_is_merged_as_it_is_fastest_by_itself(toy: Callable[..., Toy]) -> None:
    def times(merged: dict[str, int]) -> dict[str, float]:
        first = {1: 4.0, 4: 2.0, 8: 1.0}.get(merged.get("stage1.spatial", 1), 3.0)
        second = {1: 1.0, 2: 0.99}.get(merged.get("stage2.spatial", 1), 2.0)  # within the noise
        return {"stage1.spatial": first, "stage2.spatial": second}

    workshop = toy(lambda option: 100 + 20 * (option.merging == "by layer"), times)
    choice = tuning.tune(workshop, "int8", minutes=10)
    assert choice.option.merging == "by layer"
    assert choice.option.merged == {"stage1.spatial": 8}


@pytest.mark.parametrize("minutes", [0.001, 0.2, 1.0, 3.0])
def test_the_time_limit_is_kept(toy: Callable[..., Toy], minutes: float) -> None:
    """One trial and the final in two rounds are made in any case: less would not be a choice."""
    workshop = toy(lambda option: 100.0)
    tuning.tune(workshop, "int8", minutes=minutes)
    finals = 4 * (1 + tuning.ROUNDS * tuning.SECONDS)
    one = 1 + tuning.SECONDS
    assert workshop.clock.now <= max(minutes * 60 * tuning.SHARE_FOR_ALL, 2 * one) + one + finals
    assert workshop.built


def test_what_does_not_run_is_left_out(toy: Callable[..., Toy]) -> None:
    def speed(option: Option) -> float:
        if option.kind == "torch" or option.merging == "to 64":
            raise UserError("there is no compiler.\nInstall one.")
        return 100.0 + 10 * (option.merging in ("to 32", "to 64"))

    said: list[str] = []
    choice = tuning.tune(toy(speed), "bf16", minutes=10, say=said.append)
    assert choice.option.merging == "to 32"
    assert any("torch" in line and line.endswith("left out. there is no compiler.") for line in said)


def test_where_nothing_runs_the_reason_is_told(toy: Callable[..., Toy]) -> None:
    def speed(option: Option) -> float:
        raise RuntimeError("no such processor")

    with pytest.raises(RuntimeError, match="no such processor"):
        tuning.tune(toy(speed), "fp32", minutes=1)


def test_without_openvino_torch_s_forms_are_tried(toy: Callable[..., Toy]) -> None:
    workshop = toy(lambda option: 10 + 5 * bool(option.settings["compile"]) + 3 * (option.merging == "to 128"))
    workshop.graph = None
    workshop.network = catalog.create("cifar_resnext11_4x4d", num_classes=3)
    choice = tuning.tune(workshop, "fp32", minutes=10)
    assert (choice.option.kind, choice.option.settings["compile"]) == ("torch", True)
    assert {option.kind for option in workshop.built} == {"torch"}
    assert {option.settings["precision"] for option in workshop.built} == {"fp32"}


def test_all_that_was_timed_is_told(toy: Callable[..., Toy]) -> None:
    said: list[str] = []
    workshop = toy(lambda option: 100.0 + batch(option))
    choice = tuning.tune(workshop, "bf16", minutes=10, say=said.append)
    single = [row for row in choice.tried if not row.get("final")]
    finals = [row for row in choice.tried if row.get("final")]
    assert len(single) + len(finals) == len(workshop.built)
    assert any("torch" in line for line in said)
    assert {row["merging"] for row in single} >= {"none", "to 16", "to 32", "to 64", "to 128"}
    assert finals[0]["merging"] == "none", "the plain engine takes part in the final"
    assert all(row["images_a_second"] > 0 for row in choice.tried)


def test_a_network_without_groups_is_tuned_too(toy: Callable[..., Toy], monkeypatch: pytest.MonkeyPatch) -> None:
    workshop = toy(lambda option: 100.0 - batch(option))
    monkeypatch.setattr(openvino, "grouped_layers", lambda graph: {})
    choice = tuning.tune(workshop, "bf16", minutes=10)
    assert choice.option.merging == "none"
    assert choice.option.kind == "torch" or batch(choice.option) == 1


@pytest.mark.parametrize(("groups", "channels"), [(32, 4), (32, 16), (12, 5), (10, 4), (1, 64), (7, 100), (6, 1)])
@pytest.mark.parametrize("width", tuning.WIDTHS)
def test_a_merged_group_is_as_wide_as_it_may_be(groups: int, channels: int, width: int) -> None:
    factor = factor_for(groups, channels, width)
    assert groups % factor == 0
    assert factor == 1 or factor * channels <= width
    larger = [k for k in range(factor + 1, groups + 1) if groups % k == 0]
    assert all(k * channels > width for k in larger)


def test_threads_and_streams_suit_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores in (1, 2, 6, 16, 96):
        monkeypatch.setattr(options.machine, "cores", lambda cores=cores: cores)
        settings = options.openvino_settings("bf16")
        assert {each.threads for each in settings} == {cores}
        assert {1, cores} <= {each.streams for each in settings}
        assert all(cores % each.streams == 0 for each in settings)
        assert len({repr(asdict(each)) for each in settings}) == len(settings)


def test_what_is_chosen_in_earnest_computes_the_same() -> None:
    torch.manual_seed(0)
    network = catalog.create("cifar_resnext11_4x4d", num_classes=5).eval()
    workshop = Workshop(network, PREPROCESSING, openvino.convert(network, PREPROCESSING))
    choice = tuning.tune(workshop, "fp32", minutes=0.1)
    pixels = np.random.default_rng(1).integers(0, 256, (11, 32, 32, 3), np.uint8)
    expected = TorchEngine(network, PREPROCESSING, device="cpu")(pixels)
    np.testing.assert_allclose(workshop.engine(choice.option)(pixels), expected, atol=1e-4)
    assert choice.rate >= choice.plain_rate > 0
    assert math.isfinite(choice.rate)


def test_names_in_profiles_are_those_of_the_layers() -> None:
    """Otherwise no layer would ever be merged by its own time, and nobody would notice."""
    network = catalog.create("cifar_resnext11_4x4d", num_classes=5).eval()
    graph = openvino.convert(network, PREPROCESSING)
    layers = openvino.grouped_layers(graph)
    for merged in ({}, dict.fromkeys(layers, 2), dict.fromkeys(layers, 4)):
        times = openvino.layer_times(
            openvino.merge_groups(graph, merged) if merged else graph, Settings("fp32", 4, 1, 1)
        )
        assert layers.keys() <= times.keys()
        assert all(times[name] > 0 for name in layers)
