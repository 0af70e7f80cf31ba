"""One training step: pixels and labels in, one update of the weights, the loss out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from resnext import engine
from resnext.data import augmentation, order
from resnext.data.loader import Batch
from resnext.data.preprocessing import Preprocessing
from resnext.errors import UserError
from resnext.training import optimizer as optimizers
from resnext.training.gates import Gates, refuse_compiling
from resnext.training.recipe import Recipe

STREAM_OF_TORCH = 100  # apart from the streams of augmentation


@dataclass(frozen=True)
class Outcome:
    """What one step did: mean loss over its images, the seconds of its two parts, and top-1 errors if counted."""

    loss: float
    compute_seconds: float
    update_seconds: float
    errors: int | None = None


class TrainingStep:
    """Hold what a step needs and changes: network, optimiser, moving average, and how they are computed."""

    def __init__(self, network: nn.Module, recipe: Recipe, preprocessing: Preprocessing, num_classes: int) -> None:
        options = recipe.machine
        self.recipe = recipe
        self.preprocessing = preprocessing
        self.num_classes = num_classes
        self.device = torch.device(engine.choose_device(options.device))
        self.precision = engine.choose_precision(options.precision, self.device.type)
        self.network = network.to(self.device).to(memory_format=torch.channels_last)
        if options.compile == "on":
            refuse_compiling(network)
        forward: Callable[[Tensor], list[tuple[float, Tensor]]] = cast(Any, network).training_logits
        self.forward = torch.compile(forward) if options.compile == "on" else forward
        self.optimizer = optimizers.build(network, recipe.optimizer, self.device)
        self.average = optimizers.MovingAverage(network, recipe.ema_decay) if recipe.ema_decay else None
        self.gates = Gates(network, recipe.seed, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def __call__(
        self, batch: Batch, epoch: int, step: int, learning_rate: float, *, count_errors: bool = False
    ) -> Outcome:
        """Train on one batch; `step` counts from the run's beginning and seeds gates and what torch itself draws.

        `count_errors` counts the images, as augmented, whose true class the network did not rank first before the
        update. Raises UserError, before the weights change, where the loss is not finite.
        """
        started = time.perf_counter()
        torch.manual_seed(_seed(self.recipe.seed, step))
        inputs, targets = self._inputs(batch, epoch, step)
        self.optimizer.zero_grad(set_to_none=True)
        with self.gates.drawn(step, len(inputs)):
            with engine.autocast(self.device, self.precision):
                outputs = self.forward(inputs)
                loss = self._loss(outputs, targets)
            torch.autograd.backward(self.scaler.scale(loss))
        value = loss.item()
        errors = int((outputs[0][1].argmax(1) != targets).sum()) if count_errors else None
        computed = time.perf_counter()
        if not np.isfinite(value):
            raise UserError(_what_to_try(value, step, learning_rate, self.precision))
        self._update(learning_rate)
        return Outcome(value, computed - started, time.perf_counter() - computed, errors)

    def _loss(self, outputs: list[tuple[float, Tensor]], targets: Tensor) -> Tensor:
        """Sum the losses of the network's own logits and of its auxiliary ones, all with the same smoothed targets."""
        smoothing = self.recipe.label_smoothing
        losses = (
            weight * functional.cross_entropy(each, targets, label_smoothing=smoothing) for weight, each in outputs
        )
        return sum(losses, start=torch.zeros((), device=self.device))

    def _inputs(self, batch: Batch, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        inputs = engine.to_inputs(batch.pixels, self.preprocessing, self.device)  # N×C×S×S
        data = self.recipe.data
        if data.early_size is not None and epoch < data.early_epochs:
            inputs = functional.interpolate(inputs, data.early_size, mode="bilinear", antialias=True)
        labels = torch.from_numpy(batch.labels).to(self.device)
        options = self.recipe.augmentation
        if not options.mixes:
            return inputs, labels
        return augmentation.mix(
            inputs,
            labels,
            augmentation=options,
            num_classes=self.num_classes,
            seed=self.recipe.seed,
            epoch=epoch,
            step=step,
        )

    def _update(self, learning_rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        if self.recipe.optimizer.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            optimizers.clip(self.network.parameters(), self.recipe.optimizer.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update(self.network)

    def evaluated_weights(self) -> dict[str, Tensor]:
        """Return the weights that validation and the bundle use: the moving average where there is one."""
        return self.network.state_dict() if self.average is None else self.average.values

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor that the next step depends on, by name."""
        tensors = {f"network/{name}": value for name, value in self.network.state_dict().items()}
        if self.average is not None:
            tensors |= {f"average/{name}": value for name, value in self.average.values.items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{key}": value for key, value in values.items() if value is not None}
        return tensors

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], updates: int) -> None:
        """Put tensors that `tensors` gave back in place, in the memory layout that they had."""
        for name, value in self.network.state_dict().items():
            value.copy_(tensors[f"network/{name}"])
        if self.average is not None:
            self.average.updates = updates
            for name, value in self.average.values.items():
                value.copy_(tensors[f"average/{name}"])
        parameters = [each for group in self.optimizer.param_groups for each in group["params"]]
        for name, value in tensors.items():
            if not name.startswith("optimizer/"):
                continue
            _, index, key = name.split("/")
            parameter = parameters[int(index)]
            # The fused optimiser walks memory, so its state must lie as and where the parameter lies.
            like = parameter if value.shape == parameter.shape else value
            self.optimizer.state[parameter][key] = torch.empty_like(like, device=parameter.device).copy_(value)


def _seed(seed: int, step: int) -> int:
    return int(order.uniforms(seed, step, np.zeros(1, np.int64), 1, stream=STREAM_OF_TORCH)[0, 0] * 2**53)


def _what_to_try(loss: float, step: int, learning_rate: float, precision: str) -> str:
    tries = [f"a lower --learning-rate (now {learning_rate:.3g}; try {learning_rate / 4:.2g})"]
    if precision != "fp32":
        tries.append(f"--precision fp32 (now {precision})")
    return (
        f"The loss became {loss} at step {step}; the run stopped before this step changed the weights.\n"
        f"Start again with another --out and {' or '.join(tries)}; the last checkpoint is kept."
    )
