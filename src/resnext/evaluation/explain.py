"""What a network looked at: Grad-CAM, and occlusion as the slow check of it.

R. R. Selvaraju and others, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization",
arXiv:1610.02391 section 3; M. D. Zeiler and R. Fergus, "Visualizing and Understanding Convolutional Networks",
arXiv:1311.2901 section 4.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from resnext.data.preprocessing import Preprocessing
from resnext.engine import Engine, probabilities, to_inputs

if TYPE_CHECKING:
    from resnext.layers import Network

PATCHES = 8
"""An occluding square is this part of the image's side, and moves by half its own."""

Heat = NDArray[np.float32]
Pixels = NDArray[np.uint8]


def grad_cam(network: Network, preprocessing: Preprocessing, pixels: Pixels, targets: NDArray[np.int64]) -> Heat:
    """Return where each image speaks for a class: uint8 pixels N×S×S×C and classes N → heat N×S×S from 0 to 1.

    The maps are those that the last child before the head puts out, weighted by the mean gradient of the class's logit,
    and what speaks against the class is cut off. An image in which nothing speaks for it has no heat. The network's
    mode and gradients are left as they were.
    """
    import torch

    parameter = next(network.parameters())
    inputs = to_inputs(pixels, preprocessing, parameter.device)
    *body, (_, head) = network.sequence()
    was_training = network.training
    network.eval()
    try:
        with torch.enable_grad():
            maps = inputs
            with torch.no_grad():
                for _, child in body:
                    maps = child(maps)
            maps = maps.detach().clone().requires_grad_()
            logits = head(maps.clone())  # a head may begin in place
            chosen = logits[torch.arange(len(pixels)), torch.from_numpy(targets).to(logits.device)].sum()
            (gradient,) = torch.autograd.grad(chosen, maps)
        weights = gradient.mean(dim=(2, 3), keepdim=True)
        heat = torch.relu((weights * maps.detach()).sum(dim=1, keepdim=True))
        side = preprocessing.image_size
        heat = torch.nn.functional.interpolate(heat, (side, side), mode="bilinear", align_corners=False)[:, 0]
    finally:
        network.train(was_training)
    return _scaled(heat.float().cpu().numpy())


def occlusion(engine: Engine, preprocessing: Preprocessing, pixels: Pixels, target: int) -> Heat:
    """Return how much a class's probability falls where a grey square hides a part: S×S×C → heat S×S from 0 to 1.

    Slow: about 250 passes an image.
    """
    side = preprocessing.image_size
    patch = max(2, side // PATCHES)
    starts = sorted({*range(0, side - patch + 1, max(1, patch // 2)), side - patch})
    grey = np.round(255 * np.asarray(preprocessing.mean)).astype(np.uint8)
    before = float(probabilities(engine(pixels[None]))[0, target])
    fall, seen = np.zeros((side, side)), np.zeros((side, side))
    for top in starts:
        hidden = np.repeat(pixels[None], len(starts), axis=0)
        for row, left in enumerate(starts):
            hidden[row, top : top + patch, left : left + patch] = grey
        after = probabilities(engine(hidden))[:, target]
        for left, share in zip(starts, after, strict=True):
            fall[top : top + patch, left : left + patch] += max(0.0, before - float(share))
            seen[top : top + patch, left : left + patch] += 1
    scaled: Heat = _scaled((fall / seen).astype(np.float32)[None])[0]
    return scaled


def _scaled(heat: Heat) -> Heat:
    """Divide each image's heat by its largest."""
    largest = heat.max(axis=(1, 2), keepdims=True)
    scaled: Heat = np.divide(heat, largest, out=np.zeros_like(heat), where=largest > 0)
    return scaled


def overlay(pixels: Pixels, heat: Heat) -> Pixels:
    """Lay heat S×S over pixels S×S×C: uint8 S×S×3, grey where nothing was looked at.

    The colours are viridis', which rise in lightness as well, so that they are told apart by everyone and in print.
    """
    grey = pixels.mean(axis=2, keepdims=True).repeat(3, axis=2)
    alpha = 0.65 * heat[..., None] ** 0.8
    mixed: Any = (1 - alpha) * (0.4 * grey + 0.6 * np.broadcast_to(pixels, grey.shape)) + alpha * _viridis(heat)
    laid: Pixels = np.clip(mixed, 0, 255).astype(np.uint8)
    return laid


_ANCHORS = np.array(
    (
        *((68, 1, 84), (71, 44, 122), (59, 81, 139), (44, 113, 142), (33, 144, 141)),
        *((39, 173, 129), (92, 200, 99), (170, 220, 50), (253, 231, 37)),
    ),
    dtype=np.float64,
)
"""Nine colours along viridis (S. van der Walt and N. Smith, 2015)."""


def _viridis(values: Heat) -> NDArray[np.float64]:
    places = np.linspace(0, 1, len(_ANCHORS))
    return np.stack([np.interp(values, places, _ANCHORS[:, channel]) for channel in range(3)], axis=-1)
