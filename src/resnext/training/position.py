"""Where a run stands, apart from its tensors."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from resnext.training.schedule import History


@dataclass
class Position:
    """Where a run stands: the next step, the epoch's sums so far, the best validation, and the schedule's history.

    `skipped` counts the steps that changed nothing, as a loss or gradient was not finite, and `skipped_in_row` those
    since the last one that did. After `returns` to an earlier checkpoint for that, learning rates are multiplied by
    `rate_factor`.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    loss_sum: float = 0.0
    images: int = 0
    best: dict[str, Any] | None = None
    history: History = field(default_factory=History)
    skipped: int = 0
    skipped_in_row: int = 0
    returns: int = 0
    rate_factor: float = 1.0

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Position:
        """Return the position that `to_dict` gave; what an older version did not record is as at the beginning."""
        return cls(**{**raw, "history": History(**raw.get("history", {}))})

    def step(self, steps_per_epoch: int) -> int:
        """Return the number of the next step, counted from the run's beginning."""
        return self.epoch * steps_per_epoch + self.step_in_epoch

    def to_dict(self) -> dict[str, Any]:
        """Return the position as plain values."""
        return asdict(self)
