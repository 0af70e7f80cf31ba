"""A network by its name, with fresh weights or with weights made elsewhere."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from resnext import catalog

if TYPE_CHECKING:
    from torch import nn


def create(
    name: str,
    *,
    num_classes: int | None = None,
    in_channels: int = 3,
    weights: str | None = None,
    **options: object,
) -> nn.Module:
    """Build the network that `name` means, in training mode, with fresh weights or with those that `weights` means.

    It maps images N×in_channels×H×W to logits N×num_classes (None: the published number, or that of the weights).
    `options` replace fields of its config, as in `shortcut="A"`. `weights` is `torchvision:NAME[.TAG]`,
    `timm:NAME[.TAG]`, `hub:OWNER/REPO` or a path; with another number of classes the classifier is fresh, and with
    another number of channels the first convolution is adapted so that grey images give the same. Weights that may not
    be used commercially give a UserWarning.

    Raises UserError for a name, an option or a number that makes no network, and for weights that cannot be had or do
    not fit.
    """
    if weights is None:
        return catalog.create(name, num_classes=num_classes, in_channels=in_channels, **options)
    from resnext.weights import elsewhere

    found = elsewhere.find(weights, name)
    if found.warning:
        warnings.warn(found.warning, stacklevel=2)
    count = found.num_classes if num_classes is None else num_classes
    chosen = {**found.options, **options}
    if count == found.num_classes:
        import torch

        with torch.device("meta"):  # no weights are drawn only to be thrown away
            network = catalog.create(name, num_classes=count, in_channels=in_channels, **chosen)
        network.load_state_dict(found.into(network).tensors, assign=True)
        return network
    network = catalog.create(name, num_classes=count, in_channels=in_channels, **chosen)
    found.load_into(network, new_classes=True)
    return network
