"""Tensors under other names, as the state of a network of ours; every tensor of both sides is accounted for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from resnext import body
from resnext.errors import UserError
from resnext.weights.channels import adapted
from resnext.weights.naming import NAMINGS

SHOWN = 6
"""Tensors that an error lists by name; it counts the others."""

RGB = 3
COUNTER = "num_batches_tracked"  # of a batch norm; files from before torch 0.4.1 have none, and nothing is made of it


@dataclass(frozen=True)
class Translated:
    """The state of a network, and which of its tensors were left as they are because the classes differ."""

    tensors: dict[str, Tensor]
    replaced: tuple[str, ...]


def translate(
    tensors: Mapping[str, Tensor], network: nn.Module, *, source: str, new_classes: bool = False
) -> Translated:
    """Return tensors from elsewhere as the state of `network`, which itself is not changed and may be on "meta".

    A first convolution for another number of channels is adapted (`channels.py`).

    Their names may be ours, torchvision's or timm's: those are taken that fit best. With `new_classes` classifiers of
    another number of classes are left out. Floating-point tensors become float32. `source` names the file in errors.

    Raises UserError where a tensor is left over or missing, or has another shape, and lists them; and where a weight is
    not finite.
    """
    state = network.state_dict()
    names = _best(tensors, network, state)
    lacking = [theirs for ours, theirs in names.items() if theirs not in tensors and not ours.endswith(COUNTER)]
    left_over = sorted(tensors.keys() - set(names.values()))
    if lacking or left_over:
        raise UserError(_misfit(source, network, lacking, left_over))
    first = next(name for name, tensor in state.items() if tensor.ndim == 4)
    classifiers = set(_classifiers(network)) if new_classes else set()
    translated: dict[str, Tensor] = {}
    replaced = []
    for ours, theirs in names.items():
        if theirs not in tensors:
            translated[ours] = torch.zeros((), dtype=torch.int64)
            continue
        given = tensors[theirs]
        if ours == first and given.ndim == 4 and given.shape[1] == RGB:
            given = adapted(given, state[ours].shape[1])
        tensor = _shaped(given, state[ours])
        if tensor is None and ours in classifiers:
            replaced.append(ours)
            continue
        if tensor is None:
            shapes = " and ".join("×".join(map(str, each.shape)) for each in (tensors[theirs], state[ours]))
            raise UserError(
                f"{source} does not fit {type(network).__name__}: {theirs} and our {ours} have shapes {shapes}.\n"
                "Name the network that these weights were made for with --network."
            )
        if not torch.isfinite(tensor).all():
            raise UserError(f"{source} is of no use: {theirs} holds values that are no numbers (NaN or infinite).")
        translated[ours] = tensor
    return Translated(translated, tuple(replaced))


def has_auxiliary(tensors: Iterable[str]) -> bool:
    """Whether there are auxiliary classifiers among tensors, whoever named them."""
    return any(name.startswith(("auxiliary.", "AuxLogits.", "aux1.", "aux2.")) for name in tensors)


def _best(tensors: Mapping[str, Tensor], network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return what each of our tensors is called in the naming that knows the most of the given ones."""
    candidates = list(_candidates(network, state))
    return max(candidates, key=lambda names: len(tensors.keys() & set(names.values())))


def _candidates(network: nn.Module, state: Mapping[str, Tensor]) -> Iterator[dict[str, str]]:
    yield {name: name for name in state}
    family = type(network).__module__.rpartition(".")[2]
    modules = dict.fromkeys(name.rpartition(".")[0] for name in state)
    for naming in NAMINGS.get(family, {}).values():
        theirs = naming(modules)
        if modules.keys() <= theirs.keys():
            parts = {name: name.rpartition(".") for name in state}
            yield {name: f"{theirs[module]}.{tensor}" for name, (module, _, tensor) in parts.items()}


def _shaped(tensor: Tensor, like: Tensor) -> Tensor | None:
    """Return a tensor in the shape and kind of another, or None where it cannot be.

    A fully connected layer that is written as a convolution over the whole map is the same numbers in the same order.
    """
    if tensor.ndim == 4 and like.ndim == 2 and tensor.shape[0] == like.shape[0]:
        tensor = tensor.flatten(1)
    if tensor.shape != like.shape or tensor.is_floating_point() != like.is_floating_point():
        return None
    return tensor.to(like.dtype)


def _classifiers(network: nn.Module) -> Iterator[str]:
    """Yield the names of the tensors whose shapes follow the number of classes."""
    heads = [("head", network.get_submodule("head"))]
    auxiliary = network.get_submodule("auxiliary") if getattr(network, "auxiliary", None) is not None else None
    if auxiliary is not None:
        heads += [(f"auxiliary.{name}", head) for name, head in auxiliary.named_children()]
    for place, head in heads:
        last = body.last_linear(head)
        yield from (f"{place}.{last}.{tensor}" for tensor in ("weight", "bias"))


def _misfit(source: str, network: nn.Module, lacking: list[str], left_over: list[str]) -> str:
    parts = [f"it lacks {_listed(lacking)}"] if lacking else []
    parts += [f"it has {_listed(left_over)}, which has no place"] if left_over else []
    return (
        f"{source} does not fit this {type(network).__name__}: {'; '.join(parts)}.\n"
        "Name the network that these weights were made for with --network."
    )


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"
