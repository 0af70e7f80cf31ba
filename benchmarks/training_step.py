"""How fast is one training step, computed in the form that the stopwatch chooses, against PyTorch's own?

    python benchmarks/training_step.py [--network resnext50_32x4d] [--image-size 224] [--batch-size 16]
                                       [--precision auto] [--rounds 7] [--seconds 5]

Forward, loss, backward, update on one batch over and over: no files are read and nothing is augmented. The peers are
what PyTorch's users can switch on by hand: autocast to bf16 where that is the precision, channels_last, the fused SGD,
and torch.compile; they get normalised float images, ours gets uint8 pixels and normalises them inside its timing. Every
lane has the same network, first weights, batch and rate, so the losses of the first steps are equal up to rounding, and
they are printed. Each lane is a process of its own, since malloc and thread pools belong to a process; one runs at a
time, by turns. Then the widest grouped convolution of the network, forward and backward, by itself: as it stands and
with its groups merged as the run chose.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch
from environment import print_environment
from torch import nn

from resnext import catalog, machine
from resnext.data.loader import Batch
from resnext.data.preprocessing import Preprocessing
from resnext.engine import choose_precision
from resnext.equivalence import merging
from resnext.training import forms, memory
from resnext.training.recipe import Recipe
from resnext.training.step import TrainingStep

LANES = ("resnext", "resnext, plain form", "PyTorch, eager", "PyTorch, compiled")
RATE, CLASSES, FIRST, STEPS = 0.01, 10, 3, 100_000
"""`FIRST` steps' losses are printed; the forms are chosen as for a run of so many `STEPS`."""


def images(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels uint8 N×S×S×3 with some structure, and classes."""
    generator = np.random.default_rng(0)
    shape = options.batch_size, options.image_size, options.image_size, 3
    return generator.integers(0, 256, shape, np.uint8), generator.integers(0, CLASSES, options.batch_size)


def network(options: argparse.Namespace) -> nn.Module:
    """Return the network with the first weights that all lanes have."""
    torch.manual_seed(0)
    return catalog.create(options.network, num_classes=CLASSES).train()


def recipe(options: argparse.Namespace, form: str) -> Recipe:
    """Return the recipe of ours."""
    side = options.image_size
    return Recipe.from_dict(
        {
            "network": options.network,
            "epochs": 1,
            "batch_size": options.batch_size,
            "label_smoothing": 0.0,
            "data": {"image_size": side, "resize": side, "mean": Preprocessing.mean, "std": Preprocessing.std},
            "optimizer": {
                "name": "sgd",
                "learning_rate": RATE,
                "momentum": 0.9,
                "nesterov": False,
                "weight_decay": 1e-4,
                "decay": "all",
            },
            "machine": {"precision": options.precision, "form": form},
        }
    )


def our_step(options: argparse.Namespace, form: str) -> tuple[Callable[[], float], dict[str, Any]]:
    """Return a step as `resnext train` runs it, and what was chosen."""
    complete = recipe(options, form)
    step = TrainingStep(network(options), complete, complete.data.preprocessing(), CLASSES)
    chosen, _ = forms.settle(step, steps=STEPS, recorded=None)
    pixels, labels = images(options)
    batch, numbers = Batch(np.arange(len(labels)), pixels, labels, 0), iter(range(STEPS))
    told = {"form": chosen.in_words(), "merged": dict(chosen.merged)}
    return lambda: step(batch, 0, next(numbers), RATE).loss, told


def peer_step(options: argparse.Namespace, *, compiled: bool) -> tuple[Callable[[], float], dict[str, Any]]:
    """Return a step as PyTorch's users write it."""
    net = network(options).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE, momentum=0.9, weight_decay=1e-4, fused=True)
    if compiled:
        net.compile()
    pixels, labels = images(options)
    inputs = torch.from_numpy(recipe(options, "plain").data.preprocessing().normalise(pixels))
    inputs, targets = inputs.to(memory_format=torch.channels_last), torch.from_numpy(labels)
    loss_of = nn.CrossEntropyLoss()

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16"):
            loss = loss_of(net(inputs), targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return step, {}


def convolution_steps(options: argparse.Namespace, chosen: dict[str, int]) -> dict[str, Callable[[], None]]:
    """Return passes forward and backward of the first grouped convolution, as it stands and merged as chosen."""
    convs = merging.mergeable(network(options))
    name, conv = next(iter(convs.items()))
    side = options.image_size if options.network.startswith("cifar") else options.image_size // 4
    inputs = torch.randn(options.batch_size, conv.in_channels, side, side)
    inputs = inputs.to(memory_format=torch.channels_last).requires_grad_()
    conv.to(memory_format=torch.channels_last)
    twin = nn.Sequential(copy.deepcopy(conv))  # a holder, in which it has a name to be merged by
    merging.merge_in_training(twin, {"0": chosen.get(name, 1)})

    def passes(module: nn.Module) -> None:
        module.zero_grad()
        inputs.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16"):
            outputs = module(inputs)
        outputs.backward(outputs.detach())

    groups = f"{conv.in_channels} channels in {conv.groups} groups, {side}×{side}, {name}"
    return {groups: partial(passes, conv), f"merged ×{chosen.get(name, 1)}": partial(passes, twin)}


def work(options: argparse.Namespace) -> None:
    """Be one lane: answer each line of input, a number of seconds, with images a second, until there are no more."""
    torch.set_num_threads(machine.cores())
    kind = LANES.index(options.lane)
    with ExitStack() as stack:
        if kind < 2:
            stack.enter_context(memory.kept("cpu"))
            step, told = our_step(options, ("auto", "plain")[kind])
        else:
            step, told = peer_step(options, compiled=kind == 3)
        print(json.dumps(told | {"losses": [step() for _ in range(FIRST)]}), flush=True)
        for line in sys.stdin:
            count, started = 0, time.perf_counter()
            while not count or time.perf_counter() - started < float(line):
                step()
                count += options.batch_size
            print(json.dumps(count / (time.perf_counter() - started)), flush=True)


class Lane:
    """The process of one lane, seen from outside."""

    def __init__(self, name: str, stack: ExitStack) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *sys.argv, "--lane", name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        stack.callback(self.process.kill)
        self.told: dict[str, Any] = self.read()
        self.rates: list[float] = []

    def read(self) -> Any:
        """Return the next answer."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"A lane ended with {self.process.wait()}.")
        return json.loads(line)

    def turn(self, seconds: float) -> None:
        """Run for so many seconds."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()
        self.rates.append(self.read())


def in_turns(rounds: int, count: int) -> Iterator[int]:
    """Yield places 0…count−1 in `rounds` rounds, every other one backwards."""
    for number in range(rounds):
        yield from range(count) if number % 2 else reversed(range(count))


def show(options: argparse.Namespace, lanes: dict[str, Lane]) -> None:
    """Print the table of whole steps."""
    middle = {name: statistics.median(lane.rates) for name, lane in lanes.items()}
    print("| lane | img/s, median (range) | ours is | losses of the first steps |\n|---|---|---|---|")
    for name, lane in lanes.items():
        least, most = min(lane.rates), max(lane.rates)
        losses = ", ".join(f"{loss:.4f}" for loss in lane.told["losses"])
        gain = middle[LANES[0]] / middle[name]
        print(f"| {name} | {middle[name]:.2f} ({least:.2f} to {most:.2f}) | {gain:.2f} × | {losses} |")
    print(f"\n{lanes[LANES[0]].told['form'] or 'The stopwatch chose the plain form.'}\n")


def show_convolution(options: argparse.Namespace, chosen: dict[str, int]) -> None:
    """Time the convolution by itself and print it."""
    torch.set_num_threads(machine.cores())
    steps = convolution_steps(options, chosen)
    names, times = list(steps), {name: list[float]() for name in steps}
    with memory.kept("cpu"):
        for place in in_turns(3 * options.rounds + 2, len(names)):
            started = time.perf_counter()
            steps[names[place]]()
            times[names[place]].append(1e3 * (time.perf_counter() - started))
    kept = {name: values[2:] for name, values in times.items()}  # the first rounds warm up
    first = statistics.median(kept[names[0]])
    print("| convolution, forward and backward | ms, median (range) | gain |\n|---|---|---|")
    for name, values in kept.items():
        middle = statistics.median(values)
        print(f"| {name} | {middle:.2f} ({min(values):.2f} to {max(values):.2f}) | {first / middle:.2f} × |")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnext50_32x4d")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--lane", choices=LANES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.precision = choose_precision(options.precision, "cpu")
    if options.lane is not None:
        work(options)
        return
    with ExitStack() as stack:
        lanes = {name: Lane(name, stack) for name in LANES}
        for place in in_turns(options.rounds, len(LANES)):
            lanes[LANES[place]].turn(options.seconds)
    print_environment()
    print(
        f"{options.network}, {options.image_size} px, batch {options.batch_size}, {options.precision}, seed 0, "
        f"{options.rounds} rounds of {options.seconds:g} s in turn\n"
    )
    show(options, lanes)
    show_convolution(options, lanes[LANES[0]].told["merged"])


if __name__ == "__main__":
    main()
