"""First weights by name: their spread against the formula, and what is left alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from resnext import catalog
from resnext.training.initialisation import RULES, initialise

# A grouped convolution: every output sees 3·3·16 numbers; fan_out counts all 64 outputs, as the Torch code does.
FAN_IN, FAN_OUT = 3 * 3 * 16, 3 * 3 * 64
STANDARD_DEVIATIONS = {
    "he-fan-out": math.sqrt(2 / FAN_OUT),
    "he-fan-in": math.sqrt(2 / FAN_IN),
    "glorot": math.sqrt(2 / (FAN_IN + FAN_OUT)),
    "normal-0.01": 0.01,
    "normal-0.1": 0.1,
    "truncated-normal-0.1": 0.1 * 0.8796,  # of a normal distribution cut at two standard deviations
}


def test_every_rule_is_checked() -> None:
    assert STANDARD_DEVIATIONS.keys() == RULES.keys()


@pytest.mark.parametrize("name", STANDARD_DEVIATIONS)
def test_the_spread_is_the_formula_s(name: str) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(64, 64, 3, groups=4)
    initialise(layer, name)
    weight = layer.weight.detach()
    assert weight.std().item() == pytest.approx(STANDARD_DEVIATIONS[name], rel=0.03)  # 9,216 draws
    assert abs(weight.mean().item()) < 4 * STANDARD_DEVIATIONS[name] / math.sqrt(weight.numel())
    largest = weight.abs().max().item() / STANDARD_DEVIATIONS[name]
    limits = {"glorot": math.sqrt(3), "truncated-normal-0.1": 2 / 0.8796}
    assert largest <= limits[name] * 1.001 if name in limits else largest > 3.2


@pytest.mark.parametrize(("name", "linear"), [("he-fan-in", False), ("he-fan-out", False), ("glorot", True)])
def test_biases_and_norms_stay_and_he_s_forms_are_for_convolutions(name: str, linear: bool) -> None:
    network = catalog.create("cifar_resnet8", shortcut="B")
    network.head.fc.bias.data.fill_(0.5)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    initialise(network, name)
    changed = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {key for key, each in network.named_parameters() if each.ndim == 4 or (linear and each.ndim == 2)}


def test_a_linear_layer_s_fans_are_its_sides() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(50, 200)
    initialise(layer, "glorot")
    assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / (50 + 200)), rel=0.03)
