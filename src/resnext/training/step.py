"""One training step: pixels and labels in, one update of the weights, the loss out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from resnext import body, engine
from resnext.data import augmentation, order
from resnext.data.loader import Batch
from resnext.data.order import Part
from resnext.data.preprocessing import Preprocessing
from resnext.layers import Network
from resnext.training import microbatch, synchronised
from resnext.training import optimizer as optimizers
from resnext.training.distributed import ALONE, Group
from resnext.training.freezing import Freezing
from resnext.training.gates import Gates, refuse_compiling
from resnext.training.recipe import Recipe

STREAM_OF_TORCH = 100  # apart from the streams of augmentation


@dataclass(frozen=True)
class Outcome:
    """What one step did: mean loss over its `images`, the seconds of its two parts, and top-1 errors if counted.

    `skipped` says why the weights were left as they were ("loss" or "gradient" not finite, "images" too few);
    `stopping` whether a process of the run was asked to stop.
    """

    loss: float
    compute_seconds: float
    update_seconds: float
    errors: int | None = None
    images: int = 0
    skipped: str = ""
    stopping: bool = False


@dataclass
class _Sums:
    """What a process adds up over its part of a step: losses and errors of images, and how many there were."""

    loss: float = 0.0
    errors: int = 0
    images: int = 0


class TrainingStep:
    """Hold what a step needs and changes: network, optimiser, moving average, and how they are computed.

    `micro_batch` is how many images are computed at once (None: all). `class_weights` multiply the images' losses
    (K numbers, 1 on the average of the training images); the sum is divided by the number of images all the same, not
    by the sum of their weights, so that it does not matter which images are computed together.
    """

    def __init__(
        self,
        network: nn.Module,
        recipe: Recipe,
        preprocessing: Preprocessing,
        num_classes: int,
        group: Group = ALONE,
        class_weights: NDArray[np.float64] | None = None,
    ) -> None:
        options = recipe.machine
        self.recipe = recipe
        self.preprocessing = preprocessing
        self.num_classes = num_classes
        self.group = group
        self.device = torch.device(engine.choose_device(options.device))
        self.class_weights = None
        if class_weights is not None:
            self.class_weights = torch.from_numpy(class_weights.astype(np.float32)).to(self.device)
        self.precision = engine.choose_precision(options.precision, self.device.type)
        self.micro_batch: int | None = options.micro_batch or None
        self.network = network.to(self.device).to(memory_format=torch.channels_last)
        if options.compile == "on":
            refuse_compiling(network)
        shared = recipe.batch_norm == "synchronised" and group.size > 1
        self.presence = synchronised.synchronise(network) if shared else synchronised.Presence()
        self._module: nn.Module | None = None
        self.freezing = Freezing(cast(Network, network), recipe.transfer)
        self.takes_vectors = False
        self.optimizer = optimizers.build(network, recipe.optimizer, self.device, self.freezing.rate)
        self.average = optimizers.MovingAverage(network, recipe.ema_decay) if recipe.ema_decay else None
        self.gates = Gates(network, recipe.seed, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self._buffers = list(network.buffers())
        self._kept = [buffer.clone() for buffer in self._buffers]

    def __call__(
        self,
        batch: Batch,
        epoch: int,
        step: int,
        learning_rate: float,
        *,
        count_errors: bool = False,
        stopping: bool = False,
    ) -> Outcome:
        """Train on one batch; `step` counts from the run's beginning and seeds gates and what torch itself draws.

        `count_errors` counts the images, as augmented, whose true class the network did not rank first before the
        update. `stopping` tells the other processes that this one was asked to stop. Where the loss or a gradient is
        not finite, nothing is changed: neither weights, nor running statistics, nor the optimiser's state.
        """
        started = time.perf_counter()
        self._copy(self._buffers, self._kept)
        part = batch.part or Part(0, len(batch.indices), len(batch.indices))
        mine = self._sums_of(batch, part, epoch, step, count_errors=count_errors)
        bad_loss, bad_gradient = not math.isfinite(mine.loss), not math.isfinite(self._gradient_norm())
        told = [mine.loss / part.copies, mine.errors / part.copies, mine.images / part.copies]
        totals = self.group.sums([*told, bad_loss, bad_gradient, stopping])
        images, any_stopping = round(totals[2]), totals[5] > 0
        computed = time.perf_counter()
        skipped = "loss" if totals[3] else "gradient" if totals[4] else "images" if images < 2 else ""
        if skipped:
            self._copy(self._kept, self._buffers)
            self.optimizer.zero_grad(set_to_none=True)
        else:
            self._update(learning_rate, factor=part.whole / images)
        errors = round(totals[1]) if count_errors else None
        seconds = computed - started, time.perf_counter() - computed
        return Outcome(totals[0] / max(1, images), *seconds, errors, images, skipped, any_stopping)

    @property
    def module(self) -> nn.Module:
        """The network's training pass, with gradients averaged over processes; made when it is first asked for.

        What runs backward through the network before that, such as a rehearsal, exchanges nothing.
        """
        if self._module is None:
            compiled = self.recipe.machine.compile == "on" and not self.takes_vectors
            plain = (
                _EndingLogits(self.network) if self.takes_vectors else _TrainingLogits(self.network, compiled=compiled)
            )
            self._module = self.group.parallel(plain)
        return self._module

    def begin_epoch(self, epoch: int, *, vectors: bool = False) -> None:
        """Set the network to train as the recipe has it in an epoch; its batches hold `vectors` in place of images."""
        changed = self.freezing.apply(epoch)
        if changed or vectors != self.takes_vectors:
            self._module = None  # data-parallel training must know which gradients there will be
        self.takes_vectors = vectors

    def rehearse(self, images: int) -> None:
        """Compute a pass forward and backward over so many black images, and leave no trace of it but its memory."""
        side, channels = self.recipe.data.image_size, self.recipe.data.channels
        pixels = np.zeros((images, side, side, channels), np.uint8)
        self._copy(self._buffers, self._kept)
        inputs = engine.to_inputs(pixels, self.preprocessing, self.device)
        targets = torch.zeros(images, dtype=torch.int64, device=self.device)
        with engine.autocast(self.device, self.precision):
            loss = self._loss(cast(Any, self.network).training_logits(inputs), targets)
        torch.autograd.backward(loss)
        self.optimizer.zero_grad(set_to_none=True)
        self._copy(self._kept, self._buffers)

    def _sums_of(self, batch: Batch, part: Part, epoch: int, step: int, *, count_errors: bool) -> _Sums:
        """Leave the gradients of a batch; computed in smaller parts, from the beginning, where memory is exhausted."""
        present = len(batch.indices) > 1
        self.presence.silent = not present
        if not present:
            batch = self._nothing()
        while True:
            try:
                torch.manual_seed(_seed(self.recipe.seed, step, self.group.rank))
                inputs, targets = self._inputs(batch, epoch, step)
                sums = self._backward(inputs, targets, step, part, weight=float(present), count_errors=count_errors)
            except (RuntimeError, MemoryError) as error:
                if not microbatch.is_out_of_memory(error) or self.group.size > 1:
                    raise
                exhausted = True  # the error holds what was computed until it is gone
            else:
                exhausted = False
            if not exhausted:
                return sums if present else _Sums()
            self.micro_batch = microbatch.halved(len(batch.indices), self.micro_batch)
            self._copy(self._kept, self._buffers)

    def _backward(
        self, inputs: Tensor, targets: Tensor, step: int, part: Part, *, weight: float, count_errors: bool
    ) -> _Sums:
        """Add up the gradients of the loss over parts of a batch, so that the processes' mean is the step's mean."""
        self.optimizer.zero_grad(set_to_none=True)
        sums, total = _Sums(images=len(inputs)), torch.zeros((), device=self.device)
        factor = weight * self.group.size / (part.whole * part.copies)
        pieces = [*microbatch.parts(len(inputs), self.micro_batch)]
        for rows in pieces:
            last = rows is pieces[-1]
            with (
                nullcontext() if last else self.group.without_exchange(self.module),
                self.gates.drawn(step, rows.stop - rows.start, part.start + rows.start),
            ):
                with engine.autocast(self.device, self.precision):
                    outputs = self.module(inputs[rows])
                    loss = self._loss(outputs, targets[rows])
                torch.autograd.backward(self.scaler.scale(loss * factor))
            total += loss.detach()
            if count_errors:
                sums.errors += int((outputs[0][1].argmax(1) != targets[rows]).sum())
        sums.loss = total.item()
        return sums

    def _loss(self, outputs: list[tuple[float, Tensor]], targets: Tensor) -> Tensor:
        """Add up the images' losses by the network's own logits and by its auxiliary ones, with the same targets."""
        options: dict[str, Any] = {"weight": self.class_weights, "label_smoothing": self.recipe.label_smoothing}
        losses = (
            weight * functional.cross_entropy(each, targets, **options, reduction="sum") for weight, each in outputs
        )
        return sum(losses, start=torch.zeros((), device=self.device))

    def _inputs(self, batch: Batch, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        if self.takes_vectors:
            vectors, labels = torch.from_numpy(batch.pixels), torch.from_numpy(batch.labels)
            return vectors.to(self.device), labels.to(self.device)
        inputs = engine.to_inputs(batch.pixels, self.preprocessing, self.device)  # N×C×S×S
        if (size := self.recipe.data.size_in(epoch)) < inputs.shape[-1]:
            inputs = functional.interpolate(inputs, size, mode="bilinear", antialias=True)
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

    def _nothing(self) -> Batch:
        """Return two black images for a process that has none in a step, so that it takes part in every exchange."""
        side, channels = self.recipe.data.image_size, self.recipe.data.channels
        shape = (2, body.width(self.network)) if self.takes_vectors else (2, side, side, channels)
        pixels = np.zeros(shape, np.float32 if self.takes_vectors else np.uint8)
        return Batch(np.zeros(2, np.int64), pixels, np.zeros(2, np.int64), 0)

    def _gradient_norm(self) -> float:
        """Return the joint L2 norm of all gradients; with a loss scaler, which looks itself, it is not asked for."""
        if self.scaler.is_enabled():
            return 0.0
        gradients = [each.grad for each in self.network.parameters() if each.grad is not None]
        return float(nn.utils.get_total_norm(gradients))

    @staticmethod
    def _copy(source: list[Tensor], target: list[Tensor]) -> None:
        if source:  # a network without batch norm has no running statistics
            torch._foreach_copy_(target, source)

    def _update(self, learning_rate: float, *, factor: float) -> None:
        """Change the weights by the gradients times `factor`."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["rate"]
        if factor != 1:
            torch._foreach_mul_([each.grad for each in self.network.parameters() if each.grad is not None], factor)
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


class _TrainingLogits(nn.Module):
    """A network whose forward pass gives all logits that are trained, as data-parallel training wants it."""

    def __init__(self, network: nn.Module, *, compiled: bool) -> None:
        super().__init__()
        self.network = network
        logits: Callable[[Tensor], list[tuple[float, Tensor]]] = cast(Any, network).training_logits
        self.logits = torch.compile(logits) if compiled else logits

    def forward(self, images: Tensor) -> list[tuple[float, Tensor]]:
        return self.logits(images)


class _EndingLogits(nn.Module):
    """The classifier alone, from vectors, as `_TrainingLogits` is the whole network from images."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.ending = body.ending(network)

    def forward(self, vectors: Tensor) -> list[tuple[float, Tensor]]:
        return [(1.0, self.ending(vectors))]


def _seed(seed: int, step: int, process: int) -> int:
    return int(order.uniforms(seed, step, np.full(1, process, np.int64), 1, stream=STREAM_OF_TORCH)[0, 0] * 2**53)
