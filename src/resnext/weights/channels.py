"""The first convolution of a network for images of another number of channels than its weights were trained on."""

from __future__ import annotations

import torch
from torch import Tensor


def adapted(weight: Tensor, channels: int) -> Tensor:
    """Return the first convolution's weight, out×C×h×w, for images of so many channels.

    A grey image gives in them what it gave in C equal channels. Of fewer channels each gets the sum over those that it
    stands for, taken in turn: one the sum over all. More than C get the weights in turn, each divided by how often it
    occurs.
    """
    before = weight.shape[1]
    if channels <= before:
        return torch.stack([weight[:, place::channels].sum(1) for place in range(channels)], dim=1)
    source = torch.arange(channels) % before
    times = torch.bincount(source, minlength=before)
    return weight[:, source] / times[source].view(1, -1, 1, 1)
