"""How much time does stochastic depth save?

    python benchmarks/stochastic_depth.py [--network cifar_resnet110] [--final-survival 0.5] [--rounds 12] [--steps 6]

The paper (arXiv:1603.09382 Table 2) measured 0.73 to 0.76 of the time of constant depth for ResNet-110 with p_L = 0.5,
where 40.25 of 54 blocks are computed on average. Both networks train by the recipe `cifar10_resnet110_stochastic_depth`
on random pixels, in one process, a few steps of each in turn; a step is everything from uint8 pixels to the update. The
ratio is of medians over rounds; the blocks that were in fact open are told beside it, as few steps may draw luckily.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, field

import numpy as np
import torch
from environment import print_environment

from resnext import catalog
from resnext.data.loader import Batch
from resnext.residual import residual_blocks
from resnext.training import recipe
from resnext.training.recipe import Recipe
from resnext.training.step import TrainingStep

RATE = 0.01
IMAGES = 128


@dataclass
class Lane:
    """One network in training: its step, what its rounds took, and how many blocks were open in each step."""

    step: TrainingStep
    seconds: list[float] = field(default_factory=list)
    opened: list[int] = field(default_factory=list)
    steps: int = 0

    def run(self, batch: Batch, count: int) -> None:
        """Take some steps and note how long a step of this round took."""
        blocks = residual_blocks(self.step.network)
        passes = {"open": 0}
        hooks = [block.register_forward_hook(lambda module, *_: count_open(module, passes)) for block in blocks]
        started = time.perf_counter()
        for _ in range(count):
            self.step(batch, 0, self.steps, RATE)
            self.steps += 1
        self.seconds.append((time.perf_counter() - started) / count)
        for hook in hooks:
            hook.remove()
        self.opened.append(passes["open"])


def count_open(module: torch.nn.Module, passes: dict[str, int]) -> None:
    """Count a block that was computed."""
    passes["open"] += not module.is_closed  # type: ignore[operator]


def lane(network: str, final_survival: float, precision: str) -> Lane:
    """Return a network of this survival with the step that `resnext train` runs."""
    written = recipe.load("cifar10_resnet110_stochastic_depth")
    said = {"network": network, "options": {"final_survival": final_survival}, "machine": {"precision": precision}}
    complete = Recipe.from_dict(recipe.merge(written, said))
    torch.manual_seed(0)
    built = catalog.create(network, num_classes=10, final_survival=final_survival)
    built.train()
    return Lane(TrainingStep(built, complete, complete.data.preprocessing(), 10))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="cifar_resnet110")
    parser.add_argument("--final-survival", type=float, default=0.5)
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=6)
    options = parser.parse_args()
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (IMAGES, 32, 32, 3), dtype=np.uint8)
    batch = Batch(np.arange(IMAGES), pixels, generator.integers(0, 10, IMAGES), 0)
    lanes = {
        "constant depth": lane(options.network, 1.0, options.precision),
        f"stochastic depth, p_L = {options.final_survival:g}": lane(
            options.network, options.final_survival, options.precision
        ),
    }
    for number in range(options.rounds + 1):
        for each in list(lanes.values())[:: 1 if number % 2 else -1]:
            each.run(batch, options.steps)
    print_environment()
    constant = lanes["constant depth"]
    print(
        f"{options.network}, 32 px, batch {IMAGES}, {constant.step.precision}, seed 0, "
        f"{options.rounds} rounds of {options.steps} steps\n"
    )
    print("| network | seconds a step, median (range) | blocks computed a step | ratio |")
    print("|---|---|---|---|")
    base = statistics.median(constant.seconds[1:])
    for name, each in lanes.items():
        kept = each.seconds[1:]  # the first round warms up
        middle, opened = statistics.median(kept), sum(each.opened[1:]) / (options.rounds * options.steps)
        print(f"| {name} | {middle:.3f} ({min(kept):.3f} to {max(kept):.3f}) | {opened:.2f} | {middle / base:.3f} |")


if __name__ == "__main__":
    main()
