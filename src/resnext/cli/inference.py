"""The options of every command that infers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cyclopts import Parameter


@Parameter(name="*")
@dataclass(frozen=True)
class Inference:
    """What of the machine is used: left alone, the bundle's optimised engine where it fits, else torch in fp32."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] | None = None
    """In torch. fp32 gives the same probabilities everywhere; auto is the fastest this machine computes in hardware."""
    engine: Literal["auto", "torch"] = "auto"
    """torch leaves the bundle's optimised engine aside, as a device and a precision do."""

    @property
    def in_torch(self) -> str | None:
        """The precision of torch that is asked for; None where none is, and nothing against an optimised engine."""
        return self.precision or ("fp32" if self.engine == "torch" else None)
