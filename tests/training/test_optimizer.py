"""The optimiser's groups, the moving average and clipped gradients, against plain arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from resnext import catalog
from resnext.training import optimizer, sections


def options(**fields: object) -> sections.Optimizer:
    return sections.Optimizer.model_validate({"learning_rate": 0.1, **fields})


def test_decay_acts_on_all_parameters_or_on_weights_only() -> None:
    network = catalog.create("cifar_resnet20")
    everything = optimizer.parameter_groups(network, options(decay="all"))
    assert [len(group["params"]) for group in everything] == [len(list(network.parameters()))]
    weights, rest = optimizer.parameter_groups(network, options(decay="weights", weight_decay=0.1))
    assert weights["weight_decay"] == 0.1
    assert rest["weight_decay"] == 0.0
    assert {parameter.ndim for parameter in rest["params"]} == {1}
    assert len(weights["params"]) + len(rest["params"]) == len(list(network.parameters()))


def test_one_nesterov_step_is_the_published_formula() -> None:
    # Sutskever et al. as torch writes it: v ← m·v + g, w ← w − rate·(g + m·v), g with the decay in it.
    layer = torch.nn.Linear(3, 2, bias=False)
    start = layer.weight.detach().clone()
    built = optimizer.build(layer, options(momentum=0.9, weight_decay=0.01), torch.device("cpu"))
    velocity, expected = torch.zeros_like(start), start.clone()
    for _ in range(3):
        layer.zero_grad()
        layer(torch.ones(1, 3)).sum().backward()
        gradient = torch.ones(2, 3) + 0.01 * expected
        velocity = 0.9 * velocity + gradient
        expected = expected - 0.1 * (gradient + 0.9 * velocity)
        built.step()
    np.testing.assert_allclose(layer.weight.detach().numpy(), expected.numpy(), rtol=1e-5)


def test_moving_average_follows_its_recursion_and_copies_counters() -> None:
    network = torch.nn.BatchNorm1d(2)
    average = optimizer.MovingAverage(network, decay=0.5)
    value, warm = 1.0, 0
    for step in range(1, 13):
        with torch.no_grad():
            network.weight.fill_(step)
            network.num_batches_tracked.fill_(step)
        average.update(network)
        decay = min(0.5, (1 + step) / (10 + step))
        warm += decay == 0.5
        value = decay * value + (1 - decay) * step
        np.testing.assert_allclose(average.values["weight"].numpy(), value, rtol=1e-6)
        assert average.values["num_batches_tracked"].item() == step
    assert warm == 5  # (1 + n)/(10 + n) reaches 1/2 at n = 8


def with_gradients(*values: list[float]) -> list[torch.Tensor]:
    parameters = [torch.zeros(len(each), requires_grad=True) for each in values]
    for parameter, each in zip(parameters, values, strict=True):
        parameter.grad = torch.tensor(each)
    return parameters


def test_gradients_are_clipped_by_their_joint_norm_and_keep_their_direction() -> None:
    parameters = with_gradients([3.0, -4.0], [12.0, 0.0, 0.5])
    before = torch.cat([each.grad for each in parameters])
    optimizer.clip(parameters, 2.0)
    after = torch.cat([each.grad for each in parameters])
    assert after.norm().item() == pytest.approx(2, rel=1e-5)
    torch.testing.assert_close(after, before * (2 / before.norm()))


@pytest.mark.parametrize(("values", "norm"), [([1.0, -1.7], 2.0), ([30.0, 40.0], None)])
def test_gradients_below_the_norm_or_without_one_are_left_to_the_bit(values: list[float], norm: float | None) -> None:
    parameters = with_gradients(values)
    optimizer.clip(parameters, norm)
    assert parameters[0].grad.tolist() == torch.tensor(values).tolist()
