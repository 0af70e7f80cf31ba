"""`resnext optimize`: the fastest engine for a bundle, proved on real images, written into it; or refused.

Build the rewritten network, quantise it where that is asked for, let the stopwatch choose (`tuning.py`), compare with
the eager fp32 network on images that calibrated nothing (`proof.py`, `equivalence/certificate.py`), and write what
passed (`engines/stored.py`). Whatever fails on the way leaves an older engine as it was.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from resnext import machine
from resnext.bundle import ENGINES, Bundle
from resnext.engine import Engine, TorchEngine, choose_device
from resnext.equivalence.certificate import IMAGES_FOR_AGREEMENT, Certificate, Verdict, compare, judge
from resnext.errors import UserError
from resnext.inference import proof, quantization, remembering, scaling, tuning
from resnext.inference.engines import openvino, stored
from resnext.inference.engines.openvino import Precision
from resnext.inference.engines.stored import Record
from resnext.inference.options import Workshop, describe
from resnext.inference.proof import Images
from resnext.inference.tuning import Choice, Say

PRECISIONS = ("auto", "fp32", "bf16", "int8")


@dataclass(frozen=True)
class Effort:
    """How an engine is looked for.

    `minutes` limit the tuning, not the proof; `unproved` accepts int8 with too few images to prove it; `retune` times
    again what was chosen before on this machine; `seed` draws the images.
    """

    minutes: float = 2.0
    unproved: bool = False
    retune: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.minutes) and 0 < self.minutes <= 24 * 60):
            raise UserError(f"--minutes {self.minutes:g} cannot be. Give a time above 0, such as 2.")


@dataclass(frozen=True)
class Optimised:
    """An engine that was written into a bundle, how it was proved, and all that was timed to find it."""

    bundle: Bundle
    record: Record
    certificate: Certificate
    verdict: Verdict
    choice: Choice
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as `optimize --json` prints it."""
        return {
            "bundle": str(self.bundle.path),
            "engine": self.record.name,
            "precision": self.record.precision,
            "settings": self.record.settings,
            "merged": self.record.merged,
            "stacked": self.record.stacked,
            "images_a_second": self.choice.rate,
            "plain_images_a_second": self.choice.plain_rate,
            "certificate": self.record.certificate,
            "unproved": self.record.unproved,
            "scaled": self.record.scaled,
            "remembered": self.choice.remembered,
            "tried": list(self.choice.tried),
            "notes": list(self.notes),
        }


def optimize(
    bundle: str | Path,
    *,
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto",
    calibration: str | Path | None = None,
    effort: Effort = Effort(),
    say: Say = lambda text: None,
) -> Optimised:
    """Find the fastest engine of a precision for a bundle, prove it, and write it into the bundle.

    `auto` is bf16 where the processor multiplies it in hardware and there are images that can prove it, else fp32.
    `calibration` names images (see `proof.gather`); where it is None those of the bundle's own run serve. `say` is
    told what is done. Raises UserError for images that cannot serve, for an engine beyond its gate, by how much, for
    int8 without OpenVINO and for bf16 on a processor without it; an older engine of the bundle is then still there.
    """
    if precision not in PRECISIONS:
        raise UserError(f"There is no precision {precision!r}. Choose one of {', '.join(PRECISIONS)}.")
    opened = Bundle.open(bundle)
    images = proof.gather(opened, calibration, seed=effort.seed)
    chosen = _precision(precision, images)
    if (why := images.refusal(chosen) or _too_few(chosen, images, effort)) is not None:
        raise UserError(why)
    if (why := _reason_impossible(chosen)) is not None:
        raise UserError(why if why.endswith(".") else f"{why}.")
    if not os.access(opened.path, os.W_OK):
        raise UserError(f"{opened.path} cannot be written to, so no engine can be put there. Copy the bundle first.")
    say(f"{chosen}: {len(images.calibration):,} images calibrate, {len(images.proof):,} prove ({images.source}).")
    reference = _Remembered(opened)
    try:
        return _Optimisation(opened, images, chosen, effort, say, reference).run()
    except _Refused as refusal:
        if precision != "auto" or chosen == "fp32":
            raise
        say(f"{refusal}\nGoing on with fp32.")
        return _Optimisation(opened, images, "fp32", effort, say, reference).run()


class _Refused(UserError):
    """Nothing of this precision passed its gate."""


def _precision(asked: str, images: Images) -> Precision:
    if asked == "auto":
        return "bf16" if machine.has_fast_bfloat16() and images.refusal("bf16") is None else "fp32"
    return asked  # type: ignore[return-value]  # checked against PRECISIONS


def _too_few(precision: Precision, images: Images, effort: Effort) -> str | None:
    """Return why these images could never prove int8, before minutes are spent on it, None where they may."""
    count = len(images.proof)
    if precision != "int8" or effort.unproved or count >= IMAGES_FOR_AGREEMENT:
        return None
    return (
        f"int8 must be proved on {IMAGES_FOR_AGREEMENT:,} images at least; {images.source} leave {count:,} for that."
        "\nGive more with --calibration DATA, or accept it without proof with --unproved."
    )


def _reason_impossible(precision: Precision) -> str | None:
    """Return why this machine cannot run a precision faster than it is, None where it may."""
    if precision == "int8":
        return quantization.reason_unavailable()
    if precision == "bf16" and choose_device("auto") == "cpu" and not machine.has_fast_bfloat16():
        return "bf16 would be slower here: this processor does not multiply it. Take --precision fp32 or int8."
    return None


class _Optimisation:
    """One run of `optimize`."""

    def __init__(
        self,
        bundle: Bundle,
        images: Images,
        precision: Precision,
        effort: Effort,
        say: Say,
        reference: _Remembered,
    ) -> None:
        self.bundle = bundle
        self.images = images
        self.precision = precision
        self.effort = effort
        self.say = say
        self.network = bundle.build()
        self.preprocessing = bundle.contents.preprocessing
        self.device = choose_device("auto")
        self.notes: list[str] = []
        self.reference = reference

    def run(self) -> Optimised:
        """Try one way after the other until one passes its gate."""
        refused = []
        for way, workshop in self._workshops():
            choice = self._choose(workshop, way)
            self.say(f"Chosen: {describe(choice.option)}. Comparing it with torch in fp32.")
            engine = workshop.engine(choice.option)
            certificate = compare(self.reference, engine, self.images.proof)
            verdict = judge(certificate, self.precision, unproved=self.effort.unproved)
            if verdict.passed:
                scaled = self._scaled(engine)
                return self._write(workshop, choice, *(scaled or (certificate, verdict)), scaled=bool(scaled))
            refused.append(f"{way}: {verdict.reason}")
            self.say(f"Refused, {refused[-1]}")
        raise _Refused(self._refusal(refused))

    def _workshops(self) -> Iterator[tuple[str, Workshop]]:
        """Yield what engines can be built from: in int8, one way of quantising after the other."""
        graph = None
        if self.device == "cpu" and (why := openvino.reason_unavailable()) is not None:
            self.notes.append(f"torch runs it, as the faster engine is missing. {why}.")
        elif self.device == "cpu" or self.precision == "int8":
            graph = openvino.convert(self.network, self.preprocessing)
        if graph is None or self.precision != "int8":
            yield self.precision, Workshop(self.network, self.preprocessing, graph, device=self.device)
            return
        for way in quantization.WAYS:
            self.say(f"Quantising: {way.name}.")
            quantised = quantization.quantise(graph, iter(self.images.calibration), len(self.images.calibration), way)
            yield f"int8 {way.name}", Workshop(self.network, self.preprocessing, quantised)

    def _choose(self, workshop: Workshop, way: str) -> Choice:
        engines = [f"torch on {workshop.device}", *([f"openvino, {way}"] if workshop.graph is not None else [])]
        place = remembering.place_of(self.bundle, self.precision, engines)
        known = None if self.effort.retune else remembering.recall(place)
        if known is not None and self._works(workshop, known):
            self.notes.append("Settings as they were chosen before on this machine; --retune times them again.")
            return known
        choice = tuning.tune(workshop, self.precision, minutes=self.effort.minutes, say=self.say)
        remembering.remember(place, choice)
        return choice

    def _works(self, workshop: Workshop, choice: Choice) -> bool:
        """Whether what was chosen before can still be built and run: a compiler may be gone, a file damaged."""
        side, channels = self.preprocessing.image_size, self.preprocessing.channels
        try:
            workshop.engine(choice.option)(np.zeros((1, side, side, channels), np.uint8))
        except (UserError, RuntimeError, AssertionError, TypeError, ValueError):
            return False
        return True

    def _scaled(self, engine: Engine) -> tuple[Certificate, Verdict] | None:
        """Return the proof that large photos may be decoded at a part of their size; None where there is none."""
        certificate = scaling.certify(self.reference, engine, self.images.proof)
        if certificate is None:
            return None
        verdict = judge(certificate, self.precision, unproved=self.effort.unproved)
        how = "at a part of their size" if verdict.passed else f"whole, as otherwise: {verdict.reason}"
        self.say(f"Large photos are decoded {how}")
        return (certificate, verdict) if verdict.passed else None

    def _write(
        self, workshop: Workshop, choice: Choice, certificate: Certificate, verdict: Verdict, *, scaled: bool
    ) -> Optimised:
        option = choice.option
        record = Record(
            option.kind,
            self.precision,
            dict(option.settings),
            merged={name: factor for name, factor in option.merged.items() if factor > 1},
            stacked=option.stacked,
            certificate={**certificate.to_dict(), "reason": verdict.reason, "images_from": self.images.source},
            tried=list(choice.tried),
            unproved=verdict.unproved,
            scaled=scaled,
        )
        graph = workshop.graph_of(option.merged, option.stacked) if option.kind == "openvino" else None
        written = stored.write(self.bundle, record, graph)
        notes = (*self.notes, *self.images.notes)
        return Optimised(self.bundle, written, certificate, verdict, choice, notes)

    def _refusal(self, refused: Sequence[str]) -> str:
        """Say in two or three lines why nothing passed, and what to do."""
        kept = "The engine it had is kept" if (self.bundle.path / ENGINES).is_dir() else "It gets no engine"
        bf16 = " or bf16" if _reason_impossible("bf16") is None else ""
        others = {"int8": f"Try --precision fp32{bf16}.", "bf16": "Try --precision fp32."}
        return f"{refused[-1]}\n{kept}. {others.get(self.precision, 'Please report that: a rewrite should be exact.')}"


class _Remembered:
    """The network in eager torch and fp32, which computes the logits of each batch of images once."""

    def __init__(self, bundle: Bundle) -> None:
        self.engine = TorchEngine(bundle.build(), bundle.contents.preprocessing, device="cpu")
        self.logits: dict[bytes, np.ndarray] = {}

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Map uint8 pixels N×S×S×C to float32 logits N×K."""
        key = hashlib.sha256(pixels.tobytes()).digest()
        if key not in self.logits:
            self.logits[key] = self.engine(pixels)
        return self.logits[key]
