"""What a plan becomes in memory: loaders, network and step, wired to the run's directory."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from resnext import bundle, catalog, machine
from resnext.bundle import Bundle
from resnext.data.loader import Loader
from resnext.engine import TorchEngine
from resnext.errors import UserError
from resnext.evaluation.metrics import Scores, evaluate
from resnext.training import checkpoint, forms
from resnext.training.forms import Forms
from resnext.training.initialisation import initialise
from resnext.training.journal import Observer
from resnext.training.loop import Actions, Loop, Position, refuse_too_many_unreadable
from resnext.training.pixels import open_sources, with_mean_image
from resnext.training.recipe import Recipe
from resnext.training.run import CHECKPOINTS, MEAN_IMAGE, MODEL, bundle_contents
from resnext.training.step import TrainingStep

if TYPE_CHECKING:
    from resnext.training.run import Plan

GOLDEN_IMAGES = 8


class Session:
    """A run in memory, at the position of its newest checkpoint or at the beginning."""

    def __init__(self, planned: Plan, observer: Observer) -> None:
        recipe, manifest = planned.recipe, planned.manifest
        self.planned, self.recipe = planned, recipe
        self.notes: list[str] = []
        self.preprocessing = recipe.data.preprocessing()
        self.workers = machine.cores() if recipe.machine.workers < 0 else recipe.machine.workers
        splits = [manifest.split("train"), manifest.split("val")]
        sources, notes = open_sources(
            splits,
            [recipe.data.training_preprocessing(), self.preprocessing],
            cache_gib=recipe.data.cache_gib,
            workers=self.workers,
            observer=observer,
        )
        self.pixel_notes = notes
        if recipe.data.per_pixel_mean:
            self.preprocessing = with_mean_image(
                self.preprocessing,
                sources[0],
                splits[0],
                planned.path / MEAN_IMAGE,
                workers=self.workers,
                observer=observer,
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
        self.step = TrainingStep(self._network(), recipe, self.preprocessing, len(manifest.classes))
        self.position = Position()
        recorded = self._restore() if planned.resumed else None
        steps = self.train_loader.steps * recipe.epochs
        self.forms, notes = forms.settle(self.step, steps=steps, recorded=recorded)
        self.notes += notes
        self.evaluated: nn.Module = self.step.network
        if self.step.average is not None:
            self.evaluated = copy.deepcopy(self.step.network)

    @property
    def step_number(self) -> int:
        """The number of the next step, counted from the run's beginning."""
        return self.position.epoch * self.train_loader.steps + self.position.step_in_epoch

    @property
    def description(self) -> str:
        """Device and precision in words."""
        threads = f", {torch.get_num_threads()} threads" if self.step.device.type == "cpu" else ""
        return f"{self.step.device.type}, {self.step.precision}{threads}"

    def train(self, tell: Observer) -> None:
        """Train to the recipe's last epoch."""
        self._tell = tell
        actions = Actions(validate=self._validate, keep_best=self._keep_best, save=self._save, tell=tell)
        Loop(self.step, self.train_loader, self.recipe, self.position, actions).run()

    def measure_best(self) -> dict[str, Any]:
        """Score the kept bundle on validation in fp32, through its own engine, and record that in it."""
        kept = Bundle.open(self.planned.path / MODEL)
        engine = TorchEngine(kept.build(), kept.contents.preprocessing, device=self.recipe.machine.device)
        results = self._results(evaluate(engine, self.validation_loader), "fp32")
        bundle.write(
            self.planned.path / MODEL,
            bundle_contents(self.planned, self.preprocessing, results),
            kept.read(bundle.WEIGHTS),
            self._golden(engine),
        )
        return results

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

    def _engine(self) -> TorchEngine:
        if self.step.average is not None:
            self.evaluated.load_state_dict(self.step.average.values)
        return TorchEngine(
            self.evaluated,
            self.preprocessing,
            device=self.step.device.type,
            precision=self.step.precision,
            batch_shapes=(min(self.recipe.batch_size, len(self.validation_loader.split)),),
        )

    def _validate(self) -> Scores:
        def progress(done: int, total: int) -> None:
            self._tell({"event": "progress", "of": "validation", "done": done, "total": total})

        scores = evaluate(self._engine(), self.validation_loader, progress)
        refuse_too_many_unreadable(self.validation_loader, self.recipe.data.max_unreadable)
        return scores

    def _keep_best(self, scores: Scores) -> None:
        weights = {
            name: value.detach().to("cpu", copy=True).contiguous().numpy()
            for name, value in self.step.evaluated_weights().items()
            if not name.startswith("auxiliary.")
        }
        contents = bundle_contents(self.planned, self.preprocessing, self._results(scores, self.step.precision))
        bundle.write(self.planned.path / MODEL, contents, weights)

    def _results(self, scores: Scores, precision: str) -> dict[str, Any]:
        epoch = self.position.best["epoch"] if self.position.best else self.position.epoch
        return {
            **scores.to_dict(),
            "data": "the validation images of this run, on which the best epoch was chosen",
            "precision": precision,
            "epoch": epoch,
        }

    def _golden(self, engine: TorchEngine) -> tuple[Any, Any]:
        for batch in self.validation_loader.sequential():
            if len(batch.labels):
                pixels = batch.pixels[:GOLDEN_IMAGES]
                return pixels, engine(pixels)
        raise AssertionError("validation was scored, so it has images")

    def _save(self) -> None:
        average = self.step.average
        state = {
            "position": self.position.to_dict(),
            "average_updates": average.updates if average is not None else 0,
            "recipe": self.recipe.deciding(),
            "preprocessing": self.preprocessing.to_dict(),
            "scaler": self.step.scaler.state_dict(),
            "forms": self.forms.to_dict(),
        }
        checkpoint.save(self.planned.path / CHECKPOINTS, self.step_number, self.step.tensors(), state)

    def _restore(self) -> Forms | None:
        """Take up the newest checkpoint and return the form that it was computed in; None where there is none."""
        loaded = checkpoint.load_newest(self.planned.path / CHECKPOINTS)
        if loaded is None:
            self.notes.append("No checkpoint was written before the run stopped; it begins again.")
            return None
        tensors, state, skipped = loaded
        self.notes += skipped
        # Read as a recipe, so that fields which are newer than the checkpoint have their defaults.
        trained_with = Recipe.from_dict({**state["recipe"], "epochs": self.recipe.epochs}, source="the checkpoint")
        if trained_with.deciding() != self.recipe.deciding():
            raise UserError(
                f"{self.planned.path}/recipe.toml is not the recipe that its checkpoint was trained with. "
                "Put it back as it was, or start a new run with another --out."
            )
        if state.get("preprocessing", told := self.preprocessing.to_dict()) != told:
            raise UserError(
                f"{self.planned.path / MEAN_IMAGE} is not the mean image that its checkpoint was trained with. "
                "Put it back as it was, or start a new run with another --out."
            )
        try:
            self.step.restore(tensors, state["average_updates"])
        except (KeyError, RuntimeError) as error:
            raise UserError(
                f"The checkpoint in {self.planned.path} does not fit its recipe ({error}). Start a new run."
            ) from error
        if self.step.scaler.is_enabled() and state["scaler"]:
            self.step.scaler.load_state_dict(state["scaler"])
        self.position = Position.from_dict(state["position"])
        self.notes.append(f"Resumed at step {self.step_number}, epoch {self.position.epoch + 1}.")
        return Forms.from_dict(state.get("forms"))
