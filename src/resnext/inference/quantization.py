"""A network in int8: its graph quantised by NNCF after training, from a few hundred images.

Three ways, from the usual one to those that keep more of the accuracy and take longer. Who comes with a gate
(`equivalence/certificate.py`) tries them in turn until one passes.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from resnext.errors import UserError
from resnext.inference.engines import openvino

if TYPE_CHECKING:
    from resnext.inference.engines.openvino import Graph

MISSING = "int8 is quantised by OpenVINO's NNCF, which is not installed: pip install 'resnext[cpu]'"


@dataclass(frozen=True)
class Way:
    """How to quantise: `name` for people; the others are NNCF's.

    `mixed`: activations that can be negative have a zero point, instead of a range around zero. `thorough`: biases
    are corrected layer by layer on what the layers before, already quantised, really give.
    """

    name: str
    mixed: bool = False
    thorough: bool = False


WAYS = (
    Way("symmetric"),
    Way("with zero points", mixed=True),
    Way("with zero points and thorough bias correction", mixed=True, thorough=True),
)
"""In the order of trial. The first one is NNCF's default."""


def reason_unavailable() -> str | None:
    """Return None where a network can be quantised here; else why not, and what to do."""
    if (why := openvino.reason_unavailable()) is not None:
        return why
    from importlib.util import find_spec

    return None if find_spec("nncf") is not None else MISSING


def quantise(graph: Graph, images: Iterator[np.ndarray], count: int, way: Way = WAYS[0]) -> Graph:
    """Return a copy of a graph that computes in int8 where that is known to be safe.

    `images` yields batches of pixels uint8 N×S×S×C, `count` in all, which tell how large activations become. Weights
    have a scale for each output channel. Raises UserError where NNCF is missing or cannot quantise the graph.
    """
    openvino.library()  # first, so that its telemetry stays away
    with _quiet():
        try:
            import nncf
        except ImportError as error:
            raise UserError(f"{MISSING}.") from error
        singles = [one[None] for batch in images for one in batch]
        if not singles:
            raise UserError("There was no image to calibrate int8 with. Give images that can be read.")
        try:
            quantised: Graph = nncf.quantize(graph.clone(), nncf.Dataset(singles), **_options(nncf, count, way))
        except (RuntimeError, ValueError, nncf.ValidationError) as error:
            first = str(error).strip().splitlines()[0]
            raise UserError(f"NNCF cannot quantise this network: {first}\nUse --precision bf16 or fp32.") from error
    return quantised


def _options(nncf: Any, count: int, way: Way) -> dict[str, Any]:
    preset = nncf.QuantizationPreset.MIXED if way.mixed else nncf.QuantizationPreset.PERFORMANCE
    return {"preset": preset, "subset_size": count, "fast_bias_correction": not way.thorough}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the remarks of NNCF, and of what it imports, and its progress bars off both streams."""
    loggers = [logging.getLogger(name) for name in ("nncf", "torch.utils.cpp_extension")]
    disabled = [logger.disabled for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.disabled = True
        try:
            yield
        finally:
            for logger, before in zip(loggers, disabled, strict=True):
                logger.disabled = before
