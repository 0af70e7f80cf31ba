"""The state of a run: everything that its next step depends on, as tensors and JSON, kept and taken up again."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from resnext import machine
from resnext.data.preprocessing import Preprocessing
from resnext.errors import UserError
from resnext.training import checkpoint, environment
from resnext.training.background import Background
from resnext.training.forms import Forms
from resnext.training.position import Position
from resnext.training.recipe import Recipe

if TYPE_CHECKING:
    from resnext.training.step import TrainingStep


@dataclass
class Restored:
    """What a checkpoint says besides tensors: where the run stood, in which form, and what to tell the user.

    `measured`: that memory is enough was found out where it was written, with no more of it than is here.
    """

    position: Position
    forms: Forms
    measured: bool = False
    notes: list[str] = field(default_factory=list)


class Checkpoints:
    """A run's checkpoints: copied while training waits, written by the first process while it goes on.

    `before_writing` is called in the background before a checkpoint takes its place: what it refers to must be on the
    disk by then. `seconds` is what the slowest save took until now, from copy to rename.
    """

    def __init__(self, place: Path, step: TrainingStep, preprocessing: Preprocessing, background: Background) -> None:
        self.place = place
        self.step = step
        self.preprocessing = preprocessing
        self.background = background
        self.forms = Forms()
        self.environment = environment.describe(step.device, step.group.size)
        self.before_writing: Callable[[], None] = lambda: None
        self.seconds = 0.0

    def save(self, number: int, position: Position) -> float:
        """Keep the state before step `number`; return the seconds that training waited for it."""
        if not self.step.group.leads:
            return 0.0
        self.background.check()
        started = time.perf_counter()
        tensors, state = checkpoint.snapshot(self.step.tensors()), self._told(position)

        def write() -> None:
            self.before_writing()
            checkpoint.save(self.place, number, tensors, state)
            self.seconds = max(self.seconds, time.perf_counter() - started)

        self.background.submit(write)
        return time.perf_counter() - started

    def _told(self, position: Position) -> dict[str, Any]:
        step = self.step
        return {
            "position": position.to_dict(),
            "average_updates": step.average.updates if step.average is not None else 0,
            "recipe": step.recipe.deciding(),
            "preprocessing": self.preprocessing.to_dict(),
            "scaler": step.scaler.state_dict(),
            "forms": self.forms.to_dict(),
            "micro_batch": step.micro_batch,
            "memory": machine.memory_bytes(),
            "environment": self.environment,
        }

    def restore(self, *, calm: bool = False) -> Restored | None:
        """Take up the newest checkpoint in all processes; None where there is none.

        With `calm` it is the newest that was written while no step was being skipped. Raises UserError where none is
        whole or it does not fit the run.
        """
        self.background.wait()
        loaded = self._shared(calm)
        if loaded is None:
            return None
        tensors, state, skipped = loaded
        self._refuse_misfits(state)
        step = self.step
        try:
            step.restore(tensors, state["average_updates"])
        except (KeyError, RuntimeError) as error:
            raise UserError(
                f"The checkpoint in {self.place.parent} does not fit its recipe ({error}). Start a new run."
            ) from error
        if step.scaler.is_enabled() and state["scaler"]:
            step.scaler.load_state_dict(state["scaler"])
        if not step.recipe.machine.micro_batch:
            step.micro_batch = state.get("micro_batch")
        elsewhere = environment.differences(state.get("environment"), self.environment)
        notes = [*skipped, *([elsewhere] if elsewhere else [])]
        forms = Forms.from_dict(state.get("forms"))
        return Restored(Position.from_dict(state["position"]), forms, _memory_was_enough(state, step), notes)

    def _shared(self, calm: bool) -> tuple[dict[str, Tensor], dict[str, Any], list[str]] | None:
        """Load a checkpoint in the first process and hand it to the others, who need not see the run's directory."""
        from safetensors.torch import load, save

        group = self.step.group

        def accepts(state: dict[str, Any]) -> bool:
            return not calm or Position.from_dict(state["position"]).skipped_in_row == 0

        if group.size == 1:
            return checkpoint.load_newest(self.place, accepts)
        found: list[tuple[dict[str, Tensor], dict[str, Any], list[str]]] = []

        def told() -> bytes:
            loaded = checkpoint.load_newest(self.place, accepts)
            found.extend([loaded] if loaded is not None else [])
            return json.dumps(loaded[1:] if loaded is not None else None).encode()

        about = json.loads(group.agree(told))
        if about is None:
            return None
        tensors = load(group.agree(lambda: save(found[0][0])))
        return tensors, *about

    def _refuse_misfits(self, state: dict[str, Any]) -> None:
        recipe, place = self.step.recipe, self.place.parent
        # Read as a recipe, so that fields which are newer than the checkpoint have their defaults.
        trained_with = Recipe.from_dict({**state["recipe"], "epochs": recipe.epochs}, source="the checkpoint")
        if trained_with.deciding() != recipe.deciding():
            raise UserError(
                f"{place}/recipe.toml is not the recipe that its checkpoint was trained with. "
                "Put it back as it was, or start a new run with another --out."
            )
        if state.get("preprocessing", told := self.preprocessing.to_dict()) != told:
            raise UserError(
                f"{place / 'mean_image.safetensors'} is not the mean image that its checkpoint was trained with. "
                "Put it back as it was, or start a new run with another --out."
            )


def _memory_was_enough(state: dict[str, Any], step: TrainingStep) -> bool:
    """Whether a checkpoint was written with the same images a process, and no more memory than there is here."""
    alike = state.get("environment", {}).get("processes") == step.group.size
    return bool(alike and machine.memory_bytes() >= state.get("memory", math.inf))
