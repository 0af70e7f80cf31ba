"""The fastest of engines that compute the same, chosen by stopwatch on this machine, within a time limit.

What can be chosen: how many groups of each grouped convolution are computed as one, which maps are stacked for 1×1
convolutions, the images of a piece, the streams that work on pieces side by side, their threads, and whether OpenVINO
or torch runs it. Each layer's merging is chosen from the times of single layers; everything else from images a second
of whole engines. The least time of several
counts, since what disturbs a machine makes times longer, never shorter. In the end the best take turns with the plain
engine, which is not rewritten, and only who is faster by more than noise takes its place.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from resnext import machine
from resnext.engine import Engine
from resnext.errors import UserError
from resnext.inference.engines import openvino, stacking
from resnext.inference.engines.openvino import Precision, Settings
from resnext.inference.options import Option, Workshop, describe, factor_for, openvino_settings, torch_options

WIDTHS = (8, 16, 32, 64, 128)
"""Channels of a merged group that are tried for each layer; wider ones only add work."""

FEWEST_STACKED = 4
"""Images of a piece at least where stacking is tried first: of fewer there is little to stack."""

SECONDS = 0.4
"""How long an engine is timed at a time; its best call counts."""

GAIN = 0.02
"""An engine takes the plain one's place where it is faster by this share, and a layer is merged likewise."""

FINALISTS, ROUNDS = 3, 5
SHARE_FOR_PLAIN, SHARE_FOR_ALL = 0.35, 0.8
"""Shares of the time limit by which the plain engine's settings, and all that is tried singly, must be through."""

SEARCH = 2
"""Raised where the search learns to try more, so that earlier choices are made again."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Choice:
    """The option that was chosen, the images a second of it and of the plain engine, and a row for all that was tried.

    `remembered`: it was chosen earlier, for the same network on the same kind of machine, and not timed again.
    """

    option: Option
    rate: float
    plain_rate: float
    tried: tuple[dict[str, Any], ...] = ()
    remembered: bool = False


def tune(workshop: Workshop, precision: Precision, *, minutes: float, say: Say = lambda text: None) -> Choice:
    """Choose the fastest engine of this precision; it takes about so many minutes, and not less than one trial."""
    search = _Search(workshop, precision, minutes * 60, say)
    plain = search.plain()
    search.try_rewritten(plain)
    return search.decide(plain)


class _Search:
    """What was timed so far: images a second by option."""

    def __init__(self, workshop: Workshop, precision: Precision, seconds: float, say: Say) -> None:
        self.workshop = workshop
        self.precision = precision
        self.say = say
        self.started, self.seconds = time.perf_counter(), seconds
        self.timed: list[tuple[Option, float]] = []
        self.failure: UserError | RuntimeError | None = None
        side, channels = workshop.preprocessing.image_size, workshop.preprocessing.channels
        self.pixels = np.random.default_rng(0).integers(0, 256, (64, side, side, channels), np.uint8)

    def late(self, share: float) -> bool:
        """Whether this share of the time is over."""
        return time.perf_counter() - self.started > share * self.seconds

    def plain(self) -> list[Option]:
        """Time the network as it stands, at all settings that there is time for; return them, the fastest first."""
        self._try_all(self._plain_options(), SHARE_FOR_PLAIN if self.widths() or self.sides() else SHARE_FOR_ALL)
        if not self.timed:
            assert self.failure is not None
            raise self.failure
        return self.fastest()

    def try_rewritten(self, plain: list[Option]) -> None:
        """Time what differs from the fastest so far in its merging, its stacking or its settings, until none is faster.

        Settings are tried in the order in which they were fastest for the plain engine, those of as many streams first.
        """
        variants = {"none": {}, **self.variants(plain[0])}
        best = None
        while best != (best := self.fastest()[0]):
            for others in (self._merged(variants), self._stacked(plain), self._elsewhere(plain)):
                self._try_all(others, SHARE_FOR_ALL)
        changes: dict[str, Any] = {"shared": True} if best.kind == "torch" else {}
        if self.precision == "int8" and machine.has_fast_bfloat16():
            changes = {"rest": "fp32"}
        if changes:
            self._try_all([replace(best, settings={**best.settings, **changes})], SHARE_FOR_ALL)

    def _merged(self, variants: Mapping[str, Mapping[str, int]]) -> Iterator[Option]:
        """Yield the fastest so far with its groups merged in other ways."""
        best = self.fastest()[0]
        return (replace(best, merged=merged, merging=name) for name, merged in variants.items())

    def _stacked(self, plain: list[Option]) -> Iterator[Option]:
        """Yield OpenVINO's fastest so far with maps stacked, in pieces that have some."""
        best = next((option for option in self.fastest() if option.kind == "openvino"), None)
        if best is not None:
            places = (option.settings for option in (best, *plain) if option.settings.get("batch", 0) >= FEWEST_STACKED)
            settings = next(places, best.settings)
            yield from (replace(best, settings=settings, stacked=side) for side in (0, *self.sides()))

    def _elsewhere(self, plain: list[Option]) -> Iterator[Option]:
        """Yield the fastest so far with the settings of other plain engines of its kind."""
        best = self.fastest()[0]
        alike = [option.settings for option in plain if option.kind == best.kind]
        alike.sort(key=lambda settings: settings.get("streams") != best.settings.get("streams"))
        return (replace(best, settings=settings) for settings in alike)

    def decide(self, plain: list[Option]) -> Choice:
        """Let the fastest take turns with the plain engine; hysteresis is on the plain one's side."""
        finalists = [option for option in self.fastest() if option.merged or option.stacked][:FINALISTS]
        options = list(plain[:1])
        options += [each for each in (*finalists, *self.fastest()[:1]) if each not in options]
        engines = [self.workshop.engine(option) for option in options]
        rates = [0.0] * len(options)
        for number in range(ROUNDS):
            for place in range(len(options)):
                rates[place] = max(rates[place], images_a_second(engines[place], self.pixels, SECONDS))
            if self.late(1.0) and number:
                break
        best = max(range(len(options)), key=rates.__getitem__)
        if rates[best] < (1 + GAIN) * rates[0]:
            best = 0
        finals = [
            {**each.row, "images_a_second": rate, "final": True} for each, rate in zip(options, rates, strict=True)
        ]
        tried = [{**option.row, "images_a_second": rate} for option, rate in self.timed]
        return Choice(options[best], rates[best], rates[0], (*tried, *finals))

    def fastest(self) -> list[Option]:
        """Return the options timed so far, the fastest first."""
        return [option for option, _ in sorted(self.timed, key=lambda each: -each[1])]

    def _try_all(self, options: Iterable[Option], share: float) -> None:
        """Time options until this share of the time is over, one that works in any case; others are left out."""
        for option in options:
            if self.timed and self.late(share):
                return
            if any(option == timed for timed, _ in self.timed):
                continue
            try:
                rate = images_a_second(self.workshop.engine(option), self.pixels, SECONDS)
            except (UserError, RuntimeError) as failure:
                self.failure = failure
                self.say(f"{describe(option)}: left out. {str(failure).strip().partition(chr(10))[0]}")
                continue
            self.timed.append((option, rate))
            self.say(f"{describe(option)}: {rate:.1f} img/s")

    def _plain_options(self) -> list[Option]:
        if self.workshop.graph is None:
            return torch_options(self.precision, self.workshop.device)
        options = [Option("openvino", asdict(settings)) for settings in openvino_settings(self.precision)]
        if self.precision != "int8":
            options.insert(2, torch_options(self.precision, self.workshop.device)[0])
        return options

    def widths(self) -> dict[str, tuple[int, int]]:
        """Return (groups, channels a group) of the layers that could be merged, by name."""
        if self.workshop.graph is not None:
            return openvino.grouped_layers(self.workshop.graph)
        from resnext.equivalence.merging import mergeable

        convs = mergeable(self.workshop.network)
        return {name: (conv.groups, conv.in_channels // conv.groups) for name, conv in convs.items()}

    def sides(self) -> tuple[int, ...]:
        """Return the sides of the maps that could be stacked."""
        return () if self.workshop.graph is None else stacking.stackable_sides(self.workshop.graph)

    def variants(self, plain: Option) -> dict[str, dict[str, int]]:
        """Return ways to merge, by name: each layer as it is fastest by itself, and all to the same width."""
        layers = self.widths()
        uniform: dict[str, dict[str, int]] = {}
        for width in WIDTHS:
            chosen = {name: factor_for(*layer, width) for name, layer in layers.items()}
            if any(factor > 1 for factor in chosen.values()) and chosen not in uniform.values():
                uniform[f"to {width}"] = chosen
        if not uniform or all(option.kind == "torch" for option, _ in self.timed):
            return uniform
        profiling = self.fastest_openvino()
        by_layer = self._by_layer(uniform, layers, profiling)
        return {"by layer": by_layer, **{name: each for name, each in uniform.items() if each != by_layer}}

    def fastest_openvino(self) -> Settings:
        """Return the settings of the fastest OpenVINO engine so far."""
        return next(Settings(**option.settings) for option in self.fastest() if option.kind == "openvino")

    def _by_layer(
        self, uniform: Mapping[str, Mapping[str, int]], layers: Mapping[str, tuple[int, int]], settings: Settings
    ) -> dict[str, int]:
        """Return for each layer the factor with which it alone is fastest, by the profiles of whole graphs."""
        best = dict.fromkeys(layers, (1, np.inf))
        for chosen in ({}, *uniform.values()):
            if chosen and self.late(SHARE_FOR_ALL):
                break
            times = openvino.layer_times(self.workshop.graph_of(chosen), settings)
            for name, (_, least) in best.items():
                taken = times.get(name, np.inf)
                if taken < (1 - GAIN) * least:
                    best[name] = (chosen.get(name, 1), taken)
            self.say(f"profiled {_sum(times, layers):.2f} ms in grouped layers, groups {_widest(chosen, layers)} wide")
        return {name: factor for name, (factor, _) in best.items() if factor > 1}


def images_a_second(engine: Engine, pixels: np.ndarray, seconds: float) -> float:
    """Return the images a second of the fastest of the calls within so many seconds, after one to warm up.

    The calls have as many images as the engine likes at a time, taken from `pixels` again and again.
    """
    images = np.take(pixels, np.arange(engine.batch_size) % len(pixels), axis=0)
    engine(images)
    least, ending = np.inf, time.perf_counter() + seconds
    while True:
        started = time.perf_counter()
        engine(images)
        now = time.perf_counter()
        least = min(least, now - started)
        if now >= ending:
            return float(len(images) / least)


def _sum(times: Mapping[str, float], layers: Iterable[str]) -> float:
    return sum(times.get(name, 0.0) for name in layers)


def _widest(chosen: Mapping[str, int], layers: Mapping[str, tuple[int, int]]) -> int:
    return max(chosen.get(name, 1) * channels for name, (_, channels) in layers.items())
