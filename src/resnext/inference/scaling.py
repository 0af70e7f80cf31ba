"""May large photos be decoded at a part of their size for an engine? Where the proof images say so.

A JPEG of 12 megapixels is decoded to what the resize needs several times as fast as whole, and its pixels are near the
same, not the same. So it is one more step from the reference to what runs, and the same gate decides over all of them:
the reference sees photos decoded whole, the engine those that were scaled.
"""

from __future__ import annotations

from itertools import islice

import numpy as np

from resnext import machine
from resnext.data.loader import Files, Loader
from resnext.equivalence.certificate import Certificate, Function, Tally
from resnext.inference.proof import BATCH, Proof

LOOKED_AT = 4
"""Batches in which some photo must come out differently, or else the images are too small to tell."""


def certify(reference: Function, candidate: Function, proof: Proof) -> Certificate | None:
    """Compare a candidate on scaled photos with its reference on whole ones.

    None where decoding differs for none of the first images, and where other images can be read in the one way than
    in the other: then nothing is known, and photos stay whole.
    """
    whole, scaled = proof.loader, _scaled(proof)
    if not isinstance(whole.source, Files) or not _differ(whole, scaled):
        return None
    tally = Tally()
    for one, other in zip(whole.sequential(), scaled.sequential(), strict=False):
        if not np.array_equal(one.indices, other.indices):
            return None
        tally.add(reference(one.pixels), candidate(other.pixels), one.labels if proof.labelled else None)
    return tally.certificate() if whole.unreadable.keys() == scaled.unreadable.keys() else None


def _scaled(proof: Proof) -> Loader:
    split, preprocessing = proof.loader.split, proof.loader.preprocessing
    source = Files(split, preprocessing, scaled=True)
    return Loader(source, split, preprocessing, batch_size=BATCH, workers=machine.cores())


def _differ(whole: Loader, scaled: Loader) -> bool:
    batches = islice(zip(whole.sequential(), scaled.sequential(), strict=False), LOOKED_AT)
    return any(not np.array_equal(one.pixels, other.pixels) for one, other in batches)
