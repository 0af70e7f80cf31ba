"""Weights made elsewhere as a network of ours, and as a bundle."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from resnext import bundle as bundles
from resnext import catalog, durable
from resnext.bundle import Bundle, Contents
from resnext.data.preprocessing import Preprocessing
from resnext.errors import UserError
from resnext.layers import Network
from resnext.weights import licences, published, reading
from resnext.weights.published import Published
from resnext.weights.spec import Spec
from resnext.weights.translation import Translated, has_auxiliary, translate

CLASSIFIERS = (
    *("fc.weight", "last_linear.weight", "classif.weight", "classifier.6.weight"),
    *("head.fc.weight", "head.pooled.fc.weight", "head.fc8.weight"),
)
"""What the last layer is called, by those who made weights and by us."""


@dataclass(frozen=True)
class Weights:
    """Tensors from elsewhere under their own names, and which network of ours they are for."""

    about: Published
    network: str
    options: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def warning(self) -> str:
        """What a user must know before using them, or nothing."""
        return licences.warning(self.about.licence, self.about.source)

    @property
    def preprocessing(self) -> Preprocessing:
        """What the weights were published with; for a file of unknown origin what torchvision does for ImageNet."""
        if self.about.preprocessing is not None:
            return self.about.preprocessing
        side = catalog.resolve(self.network).image_size
        return Preprocessing(image_size=side, resize=round(side / 0.875), rounding="torchvision")

    @property
    def num_classes(self) -> int:
        """The number of classes: the rows of the classifier. Raises UserError where there is none."""
        for name in CLASSIFIERS:
            if name in self.tensors:
                return int(self.tensors[name].shape[0])
        raise UserError(f"{self.about.source} has no classifier that is known here. Take weights of a whole network.")

    def into(self, network: nn.Module, *, new_classes: bool = False) -> Translated:
        """Return the tensors as the state of a network; raises UserError where they do not fit."""
        return translate(self.tensors, network, source=self.about.source, new_classes=new_classes)

    def load_into(self, network: nn.Module, *, new_classes: bool = False) -> tuple[str, ...]:
        """Put the tensors in a network; return the names of those of a classifier for other classes, which stay fresh.

        Raises UserError where they do not fit; then the network is as it was.
        """
        translated = self.into(network, new_classes=new_classes)
        problems = network.load_state_dict(translated.tensors, strict=False)
        assert set(problems.missing_keys) == set(translated.replaced), problems
        assert not problems.unexpected_keys, problems
        return translated.replaced


def find(spec: str, network: str | None = None) -> Weights:
    """Return the weights that `spec` means; `network` names ours where nothing beside the weights does.

    Raises UserError for a place that there is not, a network that is not ours, or a file that is not read.
    """
    return opened(published.find(Spec.parse(spec)), network)


def opened(about: Published, network: str | None = None) -> Weights:
    """Return published weights with their tensors read; as `find`."""
    if about.network and network and network != about.network:
        raise UserError(f"{about.source} is {about.network}, not {network}. Leave --network out, or name that one.")
    name = about.network or network
    if not name:
        raise UserError(f"{about.source} does not say which network it is for. Name it with --network.")
    catalog.resolve(name)
    tensors = reading.read(about.file)
    options: dict[str, Any] = dict(about.options)
    if not has_auxiliary(tensors) and "auxiliary" in _options(name):
        options["auxiliary"] = False
    return Weights(about, name, options, tensors)


def _options(network: str) -> set[str]:
    """Return the options that a network has."""
    return set(vars(catalog.resolve(network).config))


def build(weights: Weights) -> tuple[nn.Module, Contents]:
    """Return the network with these weights, without auxiliary classifiers, and what a bundle tells of it."""
    import torch

    count = weights.num_classes
    with torch.device("meta"):
        network = catalog.create(weights.network, num_classes=count, **weights.options)
    network.load_state_dict(weights.into(network).tensors, assign=True)
    options = dict(weights.options)
    assert isinstance(network, Network)
    if network.auxiliary is not None:
        network.auxiliary = None
        options["auxiliary"] = False
    names = weights.about.classes
    if len(names) != count:
        names = published.imagenet() if count == 1000 else tuple(str(index) for index in range(count))
    contents = Contents(
        network=weights.network,
        options=options,
        classes=names,
        preprocessing=weights.preprocessing,
        licence=licences.text(weights.about.licence, weights.about.source),
    )
    return network.eval(), contents


def as_bundle(spec: str) -> Path:
    """Return a bundle of the weights that `spec` means: their own where they have one, or else one in the cache."""
    about = published.find(Spec.parse(spec))
    if about.bundle is not None:
        return about.bundle
    name = re.sub(r"[^\w.-]+", "-", about.source)
    place = durable.cache_directory() / "weights" / f"{name}-{durable.sha256(about.file)[:16]}"
    if not (place / bundles.DESCRIPTION).is_file():
        write(opened(about), place)
    return place


def write(weights: Weights, out: Path) -> Bundle:
    """Write weights as a bundle, which is verified as it is read back; raises UserError where they do not fit."""
    network, contents = build(weights)
    return bundles.write(out, contents, {name: value.numpy() for name, value in network.state_dict().items()})
