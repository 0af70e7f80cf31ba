"""The sections of a recipe: data, optimiser, schedule, machine."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from resnext.data.preprocessing import Preprocessing

STRICT = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Data(BaseModel):
    """How files become pixels. Sizes in pixels; `mean` and `std` per channel, in units of 0…1.

    In the first `early_epochs` the network trains on inputs shrunk to `early_size`, which costs less.
    """

    model_config = STRICT
    image_size: int = Field(ge=1, le=4096)
    resize: int = Field(ge=1, le=8192)
    channels: Literal[1, 3] = 3
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    validation: float = Field(default=0.1, gt=0, lt=1)
    early_size: int | None = Field(default=None, ge=1)
    early_epochs: int = Field(default=0, ge=0)
    cache_gib: float = Field(default=8.0, ge=0, le=1e6)
    max_unreadable: float = Field(default=0.01, ge=0, le=1)

    @model_validator(mode="after")
    def _early_is_smaller(self) -> Data:
        if self.early_size is not None and self.early_size > self.image_size:
            raise ValueError("early_size must not be above image_size")
        return self

    def preprocessing(self) -> Preprocessing:
        """Return the preprocessing that these fields describe; raises UserError where they do not fit together."""
        return Preprocessing(
            image_size=self.image_size,
            resize=self.resize,
            channels=self.channels,
            mean=self.mean,
            std=self.std,
            interpolation=self.interpolation,
        )


class Optimizer(BaseModel):
    """SGD (Nesterov) or AdamW; weight decay acts on everything (`decay="all"`) or spares biases and normalisation."""

    model_config = STRICT
    name: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = Field(gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = True
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(default=5e-4, ge=0)
    decay: Literal["all", "weights"] = "all"
    clip_norm: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _betas_are_shares(self) -> Optimizer:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError("betas must lie in 0…1, without 1")
        return self


class Schedule(BaseModel):
    """The learning rate over a run, as a multiple of `optimizer.learning_rate`; times are in epochs."""

    model_config = STRICT
    name: Literal["one-cycle", "cosine", "step", "constant"] = "one-cycle"
    warmup_epochs: float = Field(default=0, ge=0)
    milestones: tuple[float, ...] = ()
    factor: float = Field(default=0.1, gt=0, le=1)
    final: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _step_has_milestones(self) -> Schedule:
        if self.name == "step" and not self.milestones:
            raise ValueError("a step schedule needs milestones, the epochs at which the rate drops")
        if list(self.milestones) != sorted(self.milestones) or any(epoch < 0 for epoch in self.milestones):
            raise ValueError("milestones must ascend from 0 or more")
        return self


class Machine(BaseModel):
    """What the run uses of the machine; none of it changes what is learned beyond rounding."""

    model_config = STRICT
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    workers: int = Field(default=-1, ge=-1, description="threads that read images; -1: one a core")
    compile: Literal["auto", "on", "off"] = "auto"
    checkpoint_every: float = Field(default=10.0, gt=0, description="minutes")
