"""What a plan becomes in memory: loaders, network and step, wired to the run's directory."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from resnext import catalog, machine
from resnext.data.loader import Files, Loader
from resnext.data.manifest import Split
from resnext.errors import UserError
from resnext.layers import Network
from resnext.training import checkpoint, features, forms, imbalance, microbatch, pretrained
from resnext.training.background import Background
from resnext.training.distributed import ALONE, Group
from resnext.training.features import Precomputed
from resnext.training.forms import Forms
from resnext.training.initialisation import initialise
from resnext.training.journal import Observer
from resnext.training.loop import Actions, Loop
from resnext.training.pixels import open_sources, with_mean_image
from resnext.training.plan import MEAN_IMAGE
from resnext.training.position import Position
from resnext.training.state import Checkpoints, Restored
from resnext.training.step import TrainingStep
from resnext.training.validation import Validation

if TYPE_CHECKING:
    from resnext.training.plan import Plan


class Session:
    """A run in memory, at the position of its newest checkpoint or at the beginning; one of `group`'s processes."""

    def __init__(
        self, planned: Plan, observer: Observer, group: Group = ALONE, background: Background | None = None
    ) -> None:
        recipe, manifest = planned.recipe, planned.manifest
        self.planned, self.recipe, self.group = planned, recipe, group
        self.notes: list[str] = []
        self.preprocessing = recipe.data.preprocessing()
        cores = machine.cores()
        self.workers = group.workers(cores) if recipe.machine.workers < 0 else recipe.machine.workers
        splits = [manifest.split("train"), manifest.split("val")]
        for split in splits:
            refuse_unknown_labels(split)
        self._open_loaders(splits, observer)
        classes = len(manifest.classes)
        weights = imbalance.class_weights(splits[0].labels, classes) if recipe.class_weights == "balanced" else None
        self.step = TrainingStep(self._begun(self._network()), recipe, self.preprocessing, classes, group, weights)
        self.position = Position()
        background = background or Background()
        self.checkpoints = Checkpoints(planned.checkpoints, self.step, self.preprocessing, background)
        restored = self._restore() if planned.resumed else None
        self.forms = self._settle(restored)
        self.checkpoints.forms = self.forms
        self.validation = Validation(planned, self.step, self.validation_loader, background)
        self.vectors = self._vectors(observer)

    def _open_loaders(self, splits: list[Split], observer: Observer) -> None:
        recipe, planned = self.recipe, self.planned
        sources, self.pixel_notes = open_sources(
            splits,
            [recipe.data.training_preprocessing(), self.preprocessing],
            cache_gib=recipe.data.cache_gib,
            workers=self.workers,
            observer=observer,
        )
        if recipe.data.per_pixel_mean:
            self.preprocessing = with_mean_image(
                self.preprocessing,
                sources[0],
                splits[0],
                planned.path / MEAN_IMAGE,
                workers=self.workers,
                observer=observer,
                group=self.group,
            )
        self.train_loader, self.validation_loader = (
            Loader(
                source,
                split,
                self.preprocessing,
                augmentation=augmentation,
                batch_size=recipe.batch_size,
                workers=self.workers,
                seed=recipe.seed,
            )
            for source, split, augmentation in zip(sources, splits, (recipe.augmentation, None), strict=True)
        )
        self.train_loader = self.train_loader.sampled(recipe.sampling).for_process(self.group.rank, self.group.size)
        self.group.agree(lambda: b"ready")  # decoding may have taken longer than an exchange may

    def _restore(self) -> Restored | None:
        restored = self.checkpoints.restore()
        if restored is None:
            self.notes.append("No checkpoint was written before the run stopped; it begins again.")
            return None
        self.position = restored.position
        self.notes += restored.notes
        self.notes.append(f"Resumed at step {self.step_number}, epoch {self.position.epoch + 1}.")
        return restored

    def _settle(self, restored: Restored | None) -> Forms:
        """Settle how many images are computed at once, and then in which form."""
        count = -(-self.recipe.batch_size // self.group.size)
        measured = restored is not None and restored.measured
        said = microbatch.settle(self.step, count, self.group, measured=measured)
        whole_epochs = self.recipe.epochs - (self.recipe.transfer.head_epochs if self._makes_vectors else 0)
        steps = self.train_loader.steps * whole_epochs
        recorded = None if restored is None else restored.forms
        chosen, notes = forms.settle(self.step, steps=steps, recorded=recorded)
        self.notes += [*notes, *([] if said is None else [said])]
        return chosen

    @property
    def step_number(self) -> int:
        """The number of the next step, counted from the run's beginning."""
        return self.position.step(self.train_loader.steps)

    @property
    def description(self) -> str:
        """Device, precision and processes in words."""
        threads = f", {torch.get_num_threads()} threads" if self.step.device.type == "cpu" else ""
        processes = f", {self.group.size} processes" if self.group.size > 1 else ""
        return f"{self.step.device.type}, {self.step.precision}{threads}{processes}"

    def train(self, tell: Observer) -> None:
        """Train to the recipe's last epoch."""
        actions = Actions(
            validate=lambda: self.validation.validate(tell),
            keep_best=lambda scores: self.validation.keep_best(scores, self._best_epoch()),
            checkpoints=self.checkpoints,
            tell=tell,
        )
        Loop(self.step, self.train_loader, self.recipe, self.position, actions, self.vectors).run()

    def measure_best(self) -> dict[str, Any]:
        """Score the kept bundle on validation in fp32, through its own engine, and record that in it."""
        return self.validation.measure_best(self._best_epoch())

    def _best_epoch(self) -> int:
        return int(self.position.best["epoch"]) if self.position.best else self.position.epoch

    def _begun(self, network: nn.Module) -> nn.Module:
        """Give a network the weights that the run begins with, unless it goes on from a checkpoint."""
        transfer, group = self.recipe.transfer, self.group
        if not transfer.weights:
            return network

        def load() -> bytes:
            goes_on = self.planned.resumed and bool(checkpoint.listed(self.planned.checkpoints))
            return b"" if goes_on else json.dumps(pretrained.load(network, self.recipe)).encode()

        if told := group.agree(load):
            group.broadcast(network.state_dict().values())
            self.notes += json.loads(told)
        return network

    @property
    def _makes_vectors(self) -> bool:
        """Whether the epochs of the classifier alone read vectors; several processes run the frozen body instead."""
        transfer = self.recipe.transfer
        return transfer.cache_features and transfer.head_epochs > 0 and self.group.size == 1

    def _vectors(self, observer: Observer) -> Precomputed | None:
        """Make the vectors of all images for the epochs of the classifier alone, where there are any left."""
        if not self._makes_vectors or self.position.epoch >= self.recipe.transfer.head_epochs:
            return None
        made = []
        for loader, flip in ((self.train_loader, self.recipe.augmentation.flip), (self.validation_loader, 0.0)):
            plain = Loader(
                Files(loader.split, self.preprocessing),
                loader.split,
                self.preprocessing,
                batch_size=features.BATCH,
                workers=self.workers,
            )
            vectors = features.compute(
                plain,
                cast(Network, self.step.network),
                mirrored=flip > 0,
                device=self.step.device.type,
                precision=self.step.precision,
                observer=observer,
            )
            loader.unreadable.update(vectors.unreadable)
            made.append(Precomputed.of(loader, vectors, flip))
        self.validation.vectors = made[1]
        return made[0]

    def _network(self) -> nn.Module:
        torch.manual_seed(self.recipe.seed)
        network = catalog.create(
            self.recipe.network,
            num_classes=len(self.planned.manifest.classes),
            in_channels=self.recipe.data.channels,
            **self.recipe.options,
        )
        if self.recipe.initialisation is not None:
            initialise(network, self.recipe.initialisation)
        return network


def refuse_unknown_labels(split: Split) -> None:
    """Raise UserError where an image's label is no class: a manifest that was changed after it was written."""
    wrong = (split.labels < 0) | (split.labels >= len(split.classes))
    if wrong.any():
        index = int(wrong.argmax())
        raise UserError(
            f"{split.path(index)} has the label {split.labels[index]}, but there are {len(split.classes)} classes, "
            "numbered from 0.\nThe run's manifest is damaged: start a new run with another --out."
        )
