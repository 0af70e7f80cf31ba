"""A stopwatch for ways to do the same: by turns, the least of some rounds, within a time limit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import torch

SHARE = 0.05  # of what the layers in question will cost the run as they stand: timing takes no more
ROUNDS = 5  # the least of so many times counts: what disturbs a machine makes times longer, never shorter
HOPELESS = 1.5  # times the best so far: what is slower, twice, is out, and what stands behind it is not tried

Key = TypeVar("Key")
Contenders = dict[int, Callable[[], None]]
"""Ways to do the same, in the order of trial; 1 is the layer as it stands."""


def races(
    counts: Mapping[Key, int], contenders: Callable[[Key], Contenders], steps: int, most: float, device: torch.device
) -> Iterator[tuple[Key, dict[int, float]]]:
    """Time the contenders for each key, of which the network has `counts`, those first that cost the run most.

    Yields seconds by contender, 1 among them. Takes at most `most` seconds and the share of the run that `SHARE` is;
    keys whose turn does not come are left out.
    """
    deadline, plain = time.perf_counter() + most, dict[Key, float]()
    for key in counts:
        if time.perf_counter() < deadline:
            plain[key] = _first(contenders(key)[1], device)
    cost = sum(seconds * counts[key] for key, seconds in plain.items())
    deadline = min(deadline, time.perf_counter() + SHARE * steps * cost)
    left = sum(plain.values())
    for key in sorted(plain, key=lambda key: -plain[key] * counts[key]):
        now = time.perf_counter()
        if now < deadline:
            # Each has time in proportion to what one pass takes: as many rounds for all.
            seconds = race(contenders(key), plain[key], now + (deadline - now) * plain[key] / left, device)
            if len(seconds) > 1:
                yield key, seconds
        left -= plain[key]


def race(contenders: Contenders, plain: float, deadline: float, device: torch.device) -> dict[int, float]:
    """Time contenders by turns, in two rounds or more, and return the least seconds of each that was tried.

    `plain` is what contender 1 took in its first round. No contender is tried first after the deadline.
    """
    least = {1: plain}
    for name, run in contenders.items():
        if name not in least:
            if time.perf_counter() > deadline:
                break
            least[name] = _first(run, device)
            if least[name] > HOPELESS * min(least.values()):
                least[name] = min(least[name], _timed(run, device))  # it may have been disturbed
            if least[name] > HOPELESS * min(least.values()):
                break
    running = [name for name, seconds in least.items() if name == 1 or seconds <= HOPELESS * min(least.values())]
    for _ in range(1, ROUNDS):
        for name in running:
            least[name] = min(least[name], _timed(contenders[name], device))
        if time.perf_counter() > deadline:
            break
    return least


def _first(run: Callable[[], None], device: torch.device) -> float:
    """Time what has not run yet: once for the kernels that this builds, and once for the time."""
    run()
    return _timed(run, device)


def _timed(run: Callable[[], None], device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize()
    started = time.perf_counter()
    run()
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - started
