"""What is benchmarked: a bundle, or a network of the catalogue with fresh weights.

Peers run this package's own network: it has, layer for layer, what timm and torchvision build under the same name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from resnext import bundle as bundles
from resnext import catalog
from resnext.benchmarking import pictures
from resnext.benchmarking.place import CALIBRATION, CHECK, REFERENCE
from resnext.bundle import Bundle, Contents
from resnext.data.preprocessing import Preprocessing
from resnext.errors import UserError
from resnext.residual import residual_blocks

DAMPED = 0.25
"""Without it rounding errors grow from block to block, as they do not in trained networks."""

CHECKED, SETTLING, PIECE = 64, 32, 16
"""Images on which every contender is compared with the reference, and on which fresh batch norms settle."""

SPEED_ONLY = "Fresh weights: these figures are of speed only."


def prepare(
    what: str, folder: Path, *, image_size: int | None, calibration: str | None, images: int, seed: int
) -> dict[str, Any]:
    """Put images and reference logits into a scratch folder, and the bundle of a network that has none.

    `images` of them calibrate. Returns `bundle`, where it is, `image_size`, `classes` and `notes`. Raises UserError
    for what is neither a bundle nor a network, and for images that cannot serve.
    """
    counts = (CHECKED, images)
    if Path(what).is_dir():
        if image_size is not None:
            raise UserError("--image-size is for a network by its name; a bundle has the size it was trained with.")
        bundle = Bundle.open(what)
        check, calibrating, notes = pictures.of_bundle(bundle, calibration, counts, seed)
    else:
        side = catalog.resolve(what).image_size if image_size is None else image_size
        preprocessing = Preprocessing(image_size=side, resize=max(side, side * 256 // 224))
        if calibration is None:
            check, calibrating = pictures.crops(preprocessing, counts, seed)
            notes = []
        else:
            check, calibrating, notes = pictures.of_folder(calibration, preprocessing, counts)
        bundle = _fresh(what, folder / "bundle", preprocessing, calibrating, seed)
        notes.insert(0, SPEED_ONLY)
    np.save(folder / CHECK, check)
    np.save(folder / CALIBRATION, calibrating)
    np.save(folder / REFERENCE, logits(bundle.build(), bundle.contents.preprocessing, check))
    contents = bundle.contents
    return {
        "bundle": str(bundle.path),
        "network": contents.network,
        "image_size": contents.preprocessing.image_size,
        "notes": notes,
    }


def _fresh(name: str, place: Path, preprocessing: Preprocessing, pixels: np.ndarray, seed: int) -> Bundle:
    """Write the bundle of a network with fresh weights that behaves as a trained one where numbers are rounded.

    Its batch norms are settled on images, and its residual blocks add little to what they are given.
    """
    torch.manual_seed(seed)
    network = catalog.create(name).eval()
    for block in residual_blocks(network):
        with torch.no_grad():
            _norms(block)[-1].weight.mul_(DAMPED)
    for norm in _norms(network):
        norm.train()
        norm.momentum = None  # the plain mean over the batches
    logits(network, preprocessing, pixels[:SETTLING])
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    classes = tuple(map(str, range(catalog.resolve(name).num_classes)))
    return bundles.write(place, Contents(name, {}, classes, preprocessing), weights)


def _norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    """Return the batch norms of a network or of a block's residual."""
    named = module.named_modules()
    return [one for name, one in named if isinstance(one, nn.BatchNorm2d) and not name.startswith("shortcut")]


@torch.inference_mode()
def logits(network: nn.Module, preprocessing: Preprocessing, pixels: np.ndarray) -> np.ndarray:
    """Return the logits N×K of uint8 pixels N×S×S×C, in eager torch and float32."""
    pieces = [pixels[start : start + PIECE] for start in range(0, len(pixels), PIECE)]
    return np.concatenate([network(torch.from_numpy(preprocessing.normalise(piece))).numpy() for piece in pieces])
