"""A network cut before its classifier: what makes a vector of an image, and what ranks the classes by it."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from resnext.layers import Network


def classifier(network: nn.Module) -> list[str]:
    """Return the names of the modules that make logits N×K of an image's vector N×F: the last linear layer, and the
    dropout right before it where there is one."""
    place, _, name = f"head.{last_linear(network.get_submodule('head'))}".rpartition(".")
    siblings = list(network.get_submodule(place).named_children())
    at = [sibling for sibling, _ in siblings].index(name)
    assert at == len(siblings) - 1, f"{place}.{name} is not what ends the network"
    starts = at - 1 if at and isinstance(siblings[at - 1][1], nn.Dropout) else at
    return [f"{place}.{sibling}" for sibling, _ in siblings[starts:]]


def last_linear(head: nn.Module) -> str:
    """Return the name of the last linear layer of a head: the one that has a number for each class."""
    names: list[str] = [name for name, module in head.named_modules() if isinstance(module, nn.Linear)]
    return names[-1]


def ending(network: nn.Module) -> nn.Sequential:
    """Return the classifier of a network as a module of its own, of the same layers: N×F → logits N×K."""
    return nn.Sequential(*(network.get_submodule(name) for name in classifier(network)))


def width(network: nn.Module) -> int:
    """Return F, how long an image's vector is."""
    return cast(nn.Linear, network.get_submodule(classifier(network)[-1])).in_features


class Body(nn.Module):
    """What comes before a network's classifier, of the same layers: images N×C×H×W → vectors N×F."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.path = tuple(classifier(network)[0].split("."))

    def forward(self, images: Tensor) -> Tensor:
        """Return one vector an image."""
        for name, child in self.network.sequence():
            if name == self.path[0]:
                return _up_to(child, self.path[1:], images)
            images = child(images)
        raise AssertionError("the classifier is a part of the network")


def _up_to(module: nn.Module, path: tuple[str, ...], images: Tensor) -> Tensor:
    """Run a sequence up to the layer that a path names, without it."""
    for name, child in module.named_children():
        if name == path[0]:
            return images if len(path) == 1 else _up_to(child, path[1:], images)
        images = child(images)
    raise AssertionError(f"{path} is a part of the sequence")
