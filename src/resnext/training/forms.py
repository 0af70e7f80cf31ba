"""The form in which a run computes: equal functions, chosen by stopwatch when it begins.

Two things can be chosen. How many groups of a grouped convolution are computed as one (`equivalence/merging.py`),
for each shape of convolution by itself: forward and backward are timed on the run's own batch, precision and device.
And whether batch norm, ReLU and residual sum are one operation (`equivalence/fusing.py`, on CPUs, not under
torch.compile, which fuses by itself): timed on the network's own shapes. Merging is decided for compiled runs too,
since a compiled network calls the same convolutions. Parameters, and so checkpoints and bundles, are the same in every
form.

Forms differ by rounding, so a run that goes on takes the form that its checkpoint names: to the same bits, on a
machine of the same kind.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from resnext import complexity, engine, machine
from resnext.equivalence import fusing, merging
from resnext.training.racing import Contenders, races
from resnext.training.step import TrainingStep

WORTH_STEPS = 50  # shorter runs are over before a choice pays
SECONDS_FOR_MERGING, SECONDS_FOR_FUSING = 3.0, 2.0  # of timing, at most
GAIN = 0.05  # a merge that is not faster by this share is not chosen, as it may be noise
FUSED = 2

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Forms:
    """A choice: how many groups are `merged`, by the convolution's name, and whether batch norms are `fused`.

    `form` is the recipe's word, "auto" or "plain"; `place` is where it was chosen: machine, device and precision.
    """

    form: str = "plain"
    merged: Mapping[str, int] = field(default_factory=dict)
    fused: bool = False
    place: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, raw: dict[str, Any] | None) -> Forms:
        """Return the choice that `to_dict` gave; None, from versions that had nothing to choose, is the plain form."""
        return cls() if raw is None else cls(**raw)

    def to_dict(self) -> dict[str, Any]:
        """Return the choice as plain values."""
        return asdict(self)

    def in_words(self) -> str:
        """Say what is not computed as it stands in the network; "" where nothing is."""
        said = ["batch norm, ReLU and sum fused"] if self.fused else []
        if self.merged:
            said.insert(0, f"groups of convolutions merged ({_by_stage(self.merged)})")
        return f"Chosen by stopwatch, equal up to rounding: {' and '.join(said)}." if said else ""


def _by_stage(merged: Mapping[str, int]) -> str:
    found: dict[str, set[int]] = {}
    for name, factor in merged.items():
        found.setdefault(name.split(".")[0], set()).add(factor)
    return ", ".join(
        f"{stage} {' and '.join(f'×{factor}' for factor in sorted(each))}" for stage, each in found.items()
    )


def settle(step: TrainingStep, *, steps: int, recorded: Forms | None) -> tuple[Forms, list[str]]:
    """Choose the form of a run of so many steps in all, put it in force in the step's network, and say so in notes.

    `recorded` is the choice in the checkpoint that the run goes on from. It is taken where it holds here: the same
    kind of machine, device and precision. Otherwise, and in a new run, the stopwatch chooses; with the recipe's form
    "plain" everything is as it stands. Of several processes the first one decides for all.
    """
    form, place = step.recipe.machine.form, _place(step)
    forms, notes = Forms(form, place=place), list[str]()
    if form == "auto" and recorded is not None and _holds(recorded, place):
        forms = recorded
    elif form == "auto" and steps >= WORTH_STEPS:
        told = json.loads(step.group.agree(lambda: _chosen_and_told(step, steps, place)))
        forms, notes = Forms.from_dict(told["forms"]), told["notes"]
    _put_in_force(forms, step.network)
    notes += filter(None, [forms.in_words()])
    if recorded is not None and (recorded.merged, recorded.fused) != (forms.merged, forms.fused):
        notes.append(
            "Until here the run was computed in another form (on another machine, or with another --form or "
            "--precision): it goes on equal up to rounding, not bit for bit."
        )
    return forms, notes


def _put_in_force(forms: Forms, network: nn.Module) -> None:
    merging.merge_in_training(network, forms.merged)
    if forms.fused:
        fusing.fuse(network)


def _holds(recorded: Forms, place: Mapping[str, Any]) -> bool:
    """Whether a recorded choice holds in this place; that of versions which recorded none does everywhere."""
    if not recorded.place:
        return True
    here = recorded.form == "auto" and recorded.place == place
    return here and (not recorded.fused or fusing.reason_unavailable() is None)


def _place(step: TrainingStep) -> dict[str, Any]:
    name = torch.cuda.get_device_name(step.device) if step.device.type == "cuda" else step.device.type
    return {**machine.fingerprint(), "device": name, "precision": step.precision}


def _chosen_and_told(step: TrainingStep, steps: int, place: dict[str, Any]) -> bytes:
    forms, notes = _chosen(step, steps, place)
    return json.dumps({"forms": forms.to_dict(), "notes": notes}).encode()


_CHOSEN: dict[str, tuple[Forms, list[str]]] = {}
"""What was chosen in this process, so that equal runs of one process choose alike, and pay once."""


def _chosen(step: TrainingStep, steps: int, place: dict[str, Any]) -> tuple[Forms, list[str]]:
    """Let the stopwatch choose; the notes say what there was no choice about."""
    recipe = step.recipe
    run = (recipe.network, recipe.options, recipe.data.image_size, recipe.batch_size, recipe.machine.compile, steps)
    key = repr((run, place, torch.get_num_threads()))
    if key not in _CHOSEN:
        shapes = _shapes(step)
        norms, notes = _fusible(step, shapes)
        _CHOSEN[key] = Forms("auto", _merging(step, shapes, steps), _fusing(step, norms, steps), place), notes
    return _CHOSEN[key][0], [*_CHOSEN[key][1]]


def _shapes(step: TrainingStep) -> dict[str, Shape]:
    """Return the shape C×H×W that each layer of the network puts out, by name, counted without running it."""
    if not merging.mergeable(step.network) and not _may_fuse(step):
        return {}
    data = step.recipe.data
    layers = complexity.count(step.network, data.image_size, data.channels).layers
    return {layer.name: layer.output for layer in layers}


def _merging(step: TrainingStep, shapes: Mapping[str, Shape], steps: int) -> dict[str, int]:
    """Return how many groups to merge in each convolution where that is faster, by name."""
    alike: dict[tuple[object, ...], dict[str, nn.Conv2d]] = {}
    for name, conv in merging.mergeable(step.network).items():
        if name in shapes and len(merging.factors(conv)) > 1:
            window = conv.kernel_size, conv.stride, conv.padding, conv.dilation
            layer = *shapes[name], *window, conv.in_channels, conv.groups, conv.bias is not None
            alike.setdefault(layer, {})[name] = conv

    def contenders(key: tuple[object, ...]) -> Contenders:
        name, conv = next(iter(alike[key].items()))
        return _merged_passes(step, conv, shapes[name])

    counts = {key: len(convs) for key, convs in alike.items()}
    chosen: dict[str, int] = {}
    for key, seconds in races(counts, contenders, steps, SECONDS_FOR_MERGING, step.device):
        best = min(seconds, key=lambda factor: seconds[factor])
        if seconds[best] <= (1 - GAIN) * seconds[1]:
            chosen |= dict.fromkeys(alike[key], best)
    return chosen


def _merged_passes(step: TrainingStep, conv: nn.Conv2d, shape: Shape) -> Contenders:
    """Return passes of a convolution that puts out this shape, by how many of its groups are merged."""
    images = _images(step, (conv.in_channels, *_size_before(conv, shape)))
    passes: Contenders = {}
    for factor in merging.factors(conv):
        twin = copy.deepcopy(conv)
        merging.merge_in_training(twin, {"": factor})
        passes[factor] = partial(_forward_and_backward, step, twin, images)
    return passes


def _size_before(conv: nn.Conv2d, shape: Shape) -> tuple[int, int]:
    """Return the smallest height and width of images from which a convolution makes this shape."""
    left, right, top, bottom = conv._reversed_padding_repeated_twice

    def before(axis: int, padding: int) -> int:
        reach = conv.dilation[axis] * (conv.kernel_size[axis] - 1) + 1
        return max(1, (shape[1 + axis] - 1) * conv.stride[axis] + reach - padding)

    return before(0, top + bottom), before(1, left + right)


def _may_fuse(step: TrainingStep) -> bool:
    norms = any(isinstance(each, nn.BatchNorm2d) for each in step.network.modules())
    return norms and step.device.type == "cpu" and step.recipe.machine.compile != "on"


def _fusible(step: TrainingStep, shapes: Mapping[str, Shape]) -> tuple[Counter[Shape], list[str]]:
    """Count the batch norms that could be fused, by shape; where the kernel is missing, say why there are none."""
    if not _may_fuse(step):
        return Counter(), []
    if reason := fusing.reason_unavailable():
        return Counter(), [f"Batch norm runs in torch's own way: {reason}"]
    norms = (name for name, each in step.network.named_modules() if isinstance(each, nn.BatchNorm2d))
    return Counter(shapes[name] for name in norms if name in shapes), []


def _fusing(step: TrainingStep, norms: Counter[Shape], steps: int) -> bool:
    """Whether batch norms of these shapes, fused with the ReLU behind them, are not slower in all."""
    timed = [*races(norms, partial(_norm_passes, step), steps, SECONDS_FOR_FUSING, step.device)]
    return bool(timed) and sum(norms[shape] * (seconds[1] - seconds[FUSED]) for shape, seconds in timed) >= 0


def _norm_passes(step: TrainingStep, shape: Shape) -> Contenders:
    """Return passes of batch norm and ReLU over images C×H×W, as they stand and fused."""
    images = _images(step, shape)
    plain, fused = (
        nn.Sequential(nn.BatchNorm2d(shape[0]), nn.ReLU(inplace=True)).to(step.device).train() for _ in range(2)
    )
    fusing.fuse(fused)
    run = partial(_forward_and_backward, step)
    return {1: partial(run, plain, images), FUSED: partial(run, fused, images)}


def _images(step: TrainingStep, shape: Shape) -> Tensor:
    """Return a batch N×C×H×W as the run's activations are: in its precision, channels last in memory."""
    autocast = engine.autocast(step.device, step.precision)
    dtype = torch.float32 if step.precision == "fp32" else autocast.fast_dtype
    count = -(-step.recipe.batch_size // step.group.size)
    images = torch.ones(min(count, step.micro_batch or count), *shape, dtype=dtype, device=step.device)
    return images.to(memory_format=torch.channels_last).requires_grad_()


def _forward_and_backward(step: TrainingStep, module: nn.Module, images: Tensor) -> None:
    images.grad = None
    module.zero_grad()
    with engine.autocast(step.device, step.precision):
        outputs: Tensor = module(images)
    torch.autograd.backward(outputs, outputs.detach())
