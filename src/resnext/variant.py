"""What the name of a network means, as data.

A network's module says what the network *is*; a `Blueprint` says which one a name means; a `Variant` adds the
facts that tests hold. Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from resnext.errors import UserError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Blueprint:
    """All that is needed to build a network, listed or not.

    `network` is called as `network(config, num_classes=…, in_channels=…)`; `config` is its frozen config;
    `paper` names the source, such as "arXiv:1611.05431 Table 1"; `image_size` is the side, in pixels, that
    the paper uses.
    """

    network: Callable[..., nn.Module]
    config: Any
    paper: str
    image_size: int
    num_classes: int = 1000


@dataclass(frozen=True, kw_only=True)
class Variant(Blueprint):
    """A listed network: one row of the literal table `VARIANTS` in its module.

    `parameters` and `macs` (multiply-adds of convolutions and linear layers for one image) are those of
    inference at `image_size` with `num_classes`; `stages` holds (channels, height, width) out of stage1 …
    stageN; `training_parameters` counts auxiliary heads as well, and is None where there are none.
    """

    parameters: int
    macs: int
    stages: tuple[tuple[int, int, int], ...]
    training_parameters: int | None = None


def check_choice(field: str, value: object, kind: object) -> None:
    """Raise UserError unless `value`, of a config's `field`, is a value of the Literal type `kind`."""
    choices = get_args(kind)
    if value not in choices:
        raise UserError(f"{field}={value!r} is not a choice; take one of {', '.join(map(repr, choices))}.")


LARGEST = {"blocks": 2_000}  # of a stage: ResNet-1202 has 200, and building takes time for each
LARGEST_SIZE = 1_000_000
MOST = 8  # numbers in a series: widths double from stage to stage


def check_sizes(**fields: object) -> None:
    """Raise UserError unless every value is a whole number from 1."""
    for field, value in fields.items():
        if type(value) is not int or value < 1:
            raise UserError(f"{field}={value!r} is not a size; give a whole number from 1.")
        _check_limit(field, value)


def check_series(**fields: object) -> None:
    """Raise UserError unless every value is a tuple of one to eight whole numbers from 1."""
    for field, value in fields.items():
        if not isinstance(value, tuple) or not all(type(size) is int and size >= 1 for size in value):
            raise UserError(f"{field}={value!r} is no list of sizes; give whole numbers from 1, such as [2, 2].")
        if not 1 <= len(value) <= MOST:
            raise UserError(f"{field} has {len(value)} numbers. Give 1 to {MOST}.")
        for size in value:
            _check_limit(field, size)


def _check_limit(field: str, size: int) -> None:
    limit = LARGEST.get(field, LARGEST_SIZE)
    if size > limit:
        raise UserError(f"{field} is more than {limit:,}, which cannot be built here. Take less.")


def check_dropout(dropout: object) -> None:
    """Raise UserError unless `dropout` is a probability below 1."""
    if not (isinstance(dropout, int | float) and not isinstance(dropout, bool) and 0 <= dropout < 1):
        raise UserError(f"dropout={dropout!r} is no probability below 1. Take 0 (off) or more.")


def check_positive(**fields: object) -> None:
    """Raise UserError unless the value of every field of a config is a number above 0."""
    for field, value in fields.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise UserError(f"{field}={value!r} is no number above 0. Take one.")
