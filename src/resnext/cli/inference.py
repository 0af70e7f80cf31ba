"""The options of every command that infers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cyclopts import Parameter


@Parameter(name="*")
@dataclass(frozen=True)
class Inference:
    """What of the machine is used."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    """fp32 gives the same probabilities everywhere; auto is the fastest this machine computes in hardware."""
