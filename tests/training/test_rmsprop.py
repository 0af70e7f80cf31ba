"""RMSProp in TensorFlow's meaning, against its formula and against timm."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from timm.optim import RMSpropTF

from resnext.training import optimizer, sections


def built(parameter: torch.nn.Module, **fields: object) -> torch.optim.Optimizer:
    options = sections.Optimizer.model_validate({"name": "rmsprop", "learning_rate": 0.1, **fields})
    return optimizer.build(parameter, options, torch.device("cpu"))


def gradients(steps: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).normal(0, 2, (steps, 3, 4)).astype(np.float32))


def test_it_is_the_formula_with_the_rate_changing_on_the_way() -> None:
    layer = torch.nn.Linear(4, 3, bias=False)
    ours = built(layer, rho=0.9, epsilon=1.0, momentum=0.8, weight_decay=0.01)
    weight = layer.weight.detach().numpy().astype(np.float64)
    square, velocity = np.ones((3, 4)), np.zeros((3, 4))
    for step, gradient in enumerate(gradients(6)):
        rate = 0.1 * 0.5**step
        ours.param_groups[0]["lr"] = rate
        layer.weight.grad = torch.from_numpy(gradient)
        ours.step()
        decayed = gradient + 0.01 * weight
        square = 0.9 * square + 0.1 * decayed**2
        velocity = 0.8 * velocity + rate * decayed / np.sqrt(square + 1.0)
        weight = weight - velocity
        np.testing.assert_allclose(layer.weight.detach().numpy(), weight, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(layer.weight.grad.numpy(), gradient)


@pytest.mark.parametrize("epsilon", [1.0, 1e-3])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_it_agrees_with_timm(epsilon: float, momentum: float) -> None:
    ours, theirs = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    theirs.load_state_dict(ours.state_dict())
    options = {"alpha": 0.95, "eps": epsilon, "momentum": momentum, "weight_decay": 4e-5}
    mine = built(ours, rho=0.95, epsilon=epsilon, momentum=momentum, weight_decay=4e-5)
    their = RMSpropTF(theirs.parameters(), lr=0.1, **options)
    for gradient in gradients(8):
        for layer, optimiser in ((ours, mine), (theirs, their)):
            layer.weight.grad, layer.bias.grad = torch.from_numpy(gradient), torch.from_numpy(gradient[:, 0].copy())
            optimiser.step()
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.bias, theirs.bias)


def test_torch_s_own_rmsprop_is_another_one() -> None:
    ours, theirs = torch.nn.Linear(4, 3, bias=False), torch.nn.Linear(4, 3, bias=False)
    theirs.load_state_dict(ours.state_dict())
    their = torch.optim.RMSprop(theirs.parameters(), lr=0.1, alpha=0.9, eps=1.0, momentum=0.9)
    for layer, optimiser in ((ours, built(ours, weight_decay=0.0)), (theirs, their)):
        layer.weight.grad = torch.ones(3, 4)
        optimiser.step()
    assert not torch.allclose(ours.weight, theirs.weight, rtol=1e-3)


def test_parameters_without_a_gradient_stay_as_they_are() -> None:
    layer = torch.nn.Linear(4, 3)
    before = layer.bias.detach().clone()
    ours = built(layer)
    layer.weight.grad = torch.ones(3, 4)
    ours.step()
    assert torch.equal(layer.bias, before)
    assert layer.bias not in ours.state
