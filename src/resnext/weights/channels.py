"""The first convolution of a network for images of another number of channels than its weights were trained on."""

from __future__ import annotations

import torch
from torch import Tensor


def adapted(weight: Tensor, channels: int) -> Tensor:
    """Return the first convolution's weight, out×C×h×w, for images of so many channels.

    One channel gets the sum over all: a grey image then gives what it gave in C equal channels. More than C channels
    get the weights in turn, each divided by how often it occurs, with the same effect. Fewer than C but more than one
    do not occur with images.
    """
    before = weight.shape[1]
    if channels == before:
        return weight
    if channels == 1:
        return weight.sum(1, keepdim=True)
    assert channels > before, (channels, before)
    source = torch.arange(channels) % before
    times = torch.bincount(source, minlength=before)
    return weight[:, source] / times[source].view(1, -1, 1, 1)
