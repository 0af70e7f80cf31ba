"""The sections of a recipe: data, optimiser, schedule, machine."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from resnext.data.augmentation import Augmentation
from resnext.data.preprocessing import Preprocessing
from resnext.errors import UserError

STRICT = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
Initialisation = Literal["he-fan-out", "he-fan-in", "glorot", "normal-0.01", "normal-0.1", "truncated-normal-0.1"]


def _listed(value: object) -> object:
    """Take one number as a list of it, and nothing as an empty one."""
    return () if value is None else (value,) if isinstance(value, int) else value


Sides = Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(_listed)]
Counts = Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(_listed)]


class Data(BaseModel):
    """How files become pixels. Sizes in pixels; `mean` and `std` per channel, in units of 0…1.

    Training cuts its images out of pixels whose shorter side is `train_resize` (None: `resize`, as validation does).
    With `per_pixel_mean` the mean of the training images' centre crops is subtracted instead of `mean`, pixel by
    pixel; it is measured when the run begins. In the first `early_epochs` the network trains on inputs shrunk to
    `early_size`, which costs less; with lists, as in `early_size = [16, 24]` and `early_epochs = [4, 8]`, for so many
    epochs each, one after another.
    """

    model_config = STRICT
    image_size: int = Field(ge=1, le=4096)
    resize: int = Field(ge=1, le=8192)
    train_resize: int | None = Field(default=None, ge=1, le=8192)
    channels: Literal[1, 3] = 3
    mean: tuple[float, ...]
    std: tuple[float, ...]
    per_pixel_mean: bool = False
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    rounding: Literal["nearest", "torchvision"] = "nearest"
    validation: float = Field(default=0.1, gt=0, lt=1)
    early_size: Sides = ()
    early_epochs: Counts = ()
    cache_gib: float = Field(default=8.0, ge=0, le=1e6)
    max_unreadable: float = Field(default=0.01, ge=0, le=1)

    @model_validator(mode="after")
    def _early_is_smaller(self) -> Data:
        if self.early_size and len(self.early_size) != len(self.early_epochs):
            raise ValueError("early_size and early_epochs must be as many, the epochs of each size")
        if any(size > self.image_size for size in self.early_size):
            raise ValueError("early_size must not be above image_size")
        return self

    def size_in(self, epoch: int) -> int:
        """Return the side of the inputs on which an epoch, from 0 on, trains."""
        for size, epochs in zip(self.early_size, self.early_epochs, strict=False):
            if epoch < epochs:
                return size
            epoch -= epochs
        return self.image_size

    def preprocessing(self) -> Preprocessing:
        """Return the preprocessing that these fields describe; raises UserError where they do not fit together."""
        return Preprocessing(
            image_size=self.image_size,
            resize=self.resize,
            channels=self.channels,
            mean=self.mean,
            std=self.std,
            interpolation=self.interpolation,
            rounding=self.rounding,
        )

    def training_preprocessing(self) -> Preprocessing:
        """Return what makes the pixels that training crops from; raises UserError as `preprocessing` does."""
        preprocessing = self.preprocessing()
        return dataclasses.replace(preprocessing, resize=self.train_resize or self.resize)

    def refuse_misfits(self, augmentation: Augmentation) -> None:
        """Raise UserError where the crops or the colour axes of an augmentation do not fit these pixels."""
        if self.train_resize is not None and self.train_resize < self.image_size:
            raise UserError(
                f"data.train_resize is {self.train_resize}, but images of {self.image_size} pixels are cut from it. "
                "Make it at least data.image_size."
            )
        low, high = augmentation.shorter_side
        if augmentation.crop == "shorter-side" and low < self.image_size:
            raise UserError(
                f"An image of {self.image_size} pixels cannot be cut from one whose shorter side is {low}. "
                "Make augmentation.shorter_side at least data.image_size."
            )
        kept = self.training_preprocessing().resize
        if augmentation.crop == "shorter-side" and high > kept:
            raise UserError(
                f"augmentation.shorter_side goes up to {high}, but training images are kept at {kept} pixels and would "
                f"be enlarged again. Set data.train_resize to {high}."
            )
        if augmentation.colour_axes and len(augmentation.colour_axes) != self.channels**2:
            raise UserError(
                f"augmentation.colour_axes has {len(augmentation.colour_axes)} numbers, but images of {self.channels} "
                f"channel(s) need {self.channels**2}. Leave it out to have it measured."
            )


class Optimizer(BaseModel):
    """SGD (Nesterov), AdamW or RMSProp in TensorFlow's meaning, with `rho` and `epsilon` (training/rmsprop.py).

    Weight decay acts on everything (`decay="all"`) or spares biases and normalisation.
    """

    model_config = STRICT
    name: Literal["sgd", "adamw", "rmsprop"] = "sgd"
    learning_rate: float = Field(gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = True
    betas: tuple[float, float] = (0.9, 0.999)
    rho: float = Field(default=0.9, ge=0, lt=1)
    epsilon: float = Field(default=1.0, gt=0)
    weight_decay: float = Field(default=5e-4, ge=0)
    decay: Literal["all", "weights"] = "all"
    clip_norm: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _betas_are_shares(self) -> Optimizer:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError("betas must lie in 0…1, without 1")
        return self


class Schedule(BaseModel):
    """The learning rate over a run, as a multiple of `optimizer.learning_rate`; times are in epochs, errors in 0…1.

    `factor` multiplies the rate at each of the `milestones` ("step"), after `every` so many epochs ("exponential"),
    or when the validation error was not improved by more than `threshold` for `patience` epochs ("plateau").
    Warm-up rises over `warmup_epochs`, or with `warmup_rate` stays at this share of the peak: for `warmup_epochs`, or
    until the training error is below `warmup_until_error`.
    """

    model_config = STRICT
    name: Literal["one-cycle", "cosine", "step", "exponential", "plateau", "constant"] = "one-cycle"
    warmup_epochs: float = Field(default=0, ge=0)
    warmup_rate: float | None = Field(default=None, gt=0, le=1)
    warmup_until_error: float | None = Field(default=None, gt=0, lt=1)
    milestones: tuple[float, ...] = ()
    every: float | None = Field(default=None, gt=0)
    patience: int = Field(default=5, ge=1)
    threshold: float = Field(default=0.0, ge=0, lt=1)
    factor: float = Field(default=0.1, gt=0, le=1)
    final: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _step_has_milestones(self) -> Schedule:
        if self.name == "step" and not self.milestones:
            raise ValueError("a step schedule needs milestones, the epochs at which the rate drops")
        if list(self.milestones) != sorted(self.milestones) or any(epoch < 0 for epoch in self.milestones):
            raise ValueError("milestones must ascend from 0 or more")
        if self.name == "exponential" and self.every is None:
            raise ValueError("an exponential schedule needs every, the epochs between two drops of the rate")
        return self

    @model_validator(mode="after")
    def _warmup_is_one_of_its_kinds(self) -> Schedule:
        by_error = self.warmup_until_error is not None
        if self.warmup_rate is None and by_error:
            raise ValueError("warmup_until_error needs warmup_rate, the share of the peak to stay at until then")
        if self.warmup_rate is not None and (self.warmup_epochs > 0) == by_error:
            raise ValueError("warmup_rate needs an end: either warmup_epochs or warmup_until_error")
        if self.warmup_rate is not None and self.name == "one-cycle":
            raise ValueError("one-cycle rises by itself; leave out warmup_rate, or take another schedule")
        return self


class Machine(BaseModel):
    """What the run uses of the machine; none of it changes what is learned beyond rounding.

    With `form` "auto" a stopwatch chooses, when a run of 50 steps or more begins, among forms of the network that
    compute the same up to rounding (`training/forms.py`); "plain" computes the network as it stands. A run that is
    stopped and resumed on its machine gives the same bits either way. Two runs of one seed do with "plain"; with
    "auto" only where the stopwatch chose the same for both, which noise can change.
    """

    model_config = STRICT
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    workers: int = Field(default=-1, ge=-1, description="threads that read images; -1: one a core")
    compile: Literal["auto", "on", "off"] = "auto"
    form: Literal["auto", "plain"] = "auto"
    checkpoint_every: float = Field(default=10.0, gt=0, description="minutes")
    micro_batch: int = Field(default=0, ge=0, description="images computed at once; 0: as many as memory holds")


class Transfer(BaseModel):
    """Weights learned elsewhere that a run begins with, and how they are taught the new classes.

    `weights` names them, `sha256` is that of their file and `licence` what may be done with them; both are filled in.
    In the first `head_epochs` only the classifier learns, at `head_rate` falling by a cosine, from vectors that the
    rest of the network makes once of each image; the schedule then has the epochs after these. There, with
    `unfreeze_every`, the last stage joins the classifier first, and every so many epochs the stage before; 0 is all at
    once. `rate_decay` is what the learning rate is multiplied by from each stage to the one before it. With
    `frozen_norm` batch norm stays as it came, with its statistics.
    """

    model_config = STRICT
    weights: str = ""
    sha256: str = ""
    licence: str = ""
    head_epochs: int = Field(default=0, ge=0)
    head_rate: float = Field(default=0.1, gt=0)
    unfreeze_every: int = Field(default=0, ge=0)
    rate_decay: float = Field(default=1.0, gt=0, le=1)
    frozen_norm: bool = False
    cache_features: bool = Field(default=True, description="make an image's vector once, not in each of `head_epochs`")
