"""The inputs of a step, and its loss: smoothed targets for own and for auxiliary logits, and counted errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from resnext.data.loader import Batch
from resnext.training.recipe import Recipe
from resnext.training.step import TrainingStep


class Fixed(nn.Module):
    """A network with one auxiliary head, whose logits are given."""

    def __init__(self, own: Tensor, auxiliary: Tensor) -> None:
        super().__init__()
        self.own, self.auxiliary = nn.Parameter(own), nn.Parameter(auxiliary)

    def training_logits(self, images: Tensor) -> list[tuple[float, Tensor]]:
        return [(1.0, self.own), (0.3, self.auxiliary)]


def recipe_of(**fields: object) -> Recipe:
    raw = {
        "network": "",
        "epochs": 1,
        "batch_size": 4,
        "data": {"image_size": 1, "resize": 1, "mean": [0.0] * 3, "std": [1.0] * 3},
        "optimizer": {"learning_rate": 0.1},
        "machine": {"device": "cpu", "precision": "fp32"},
    }
    return Recipe.from_dict({**raw, **fields})


def step_of(network: nn.Module, classes: int, smoothing: float) -> TrainingStep:
    recipe = recipe_of(label_smoothing=smoothing)
    return TrainingStep(network, recipe, recipe.data.preprocessing(), classes)


@pytest.mark.parametrize(("classes", "true", "other"), [(1000, 0.9001, 0.0001), (10, 0.91, 0.01)])
def test_every_loss_has_the_smoothed_targets_of_the_paper(classes: int, true: float, other: float) -> None:
    # arXiv:1512.00567 section 7: q'(k) = 0.9·[k = y] + 0.1/K.
    torch.manual_seed(0)
    own, auxiliary = torch.randn(4, classes), torch.randn(4, classes)
    labels = np.array([0, 3, 3, 7])
    batch = Batch(np.arange(4), np.zeros((4, 1, 1, 3), np.uint8), labels, 0)
    targets = np.full((4, classes), other)
    targets[np.arange(4), labels] = true
    assert targets.sum(1) == pytest.approx(1)
    losses = [-(targets * logits.log_softmax(1).numpy()).sum(1).mean() for logits in (own, auxiliary)]
    outcome = step_of(Fixed(own.clone(), auxiliary.clone()), classes, 0.1)(batch, 0, 0, 0.1)
    assert outcome.loss == pytest.approx(losses[0] + 0.3 * losses[1], rel=1e-5)
    assert outcome.errors is None


def test_errors_are_counted_on_the_network_s_own_logits_before_the_update() -> None:
    own = torch.eye(4, 10)  # ranks classes 0, 1, 2 and 3 first
    auxiliary = torch.zeros(4, 10)
    auxiliary[:, 9] = 5.0
    batch = Batch(np.arange(4), np.zeros((4, 1, 1, 3), np.uint8), np.array([0, 1, 2, 9]), 0)
    outcome = step_of(Fixed(own, auxiliary), 10, 0.0)(batch, 0, 0, 10.0, count_errors=True)
    assert outcome.errors == 1


def test_early_inputs_are_shrunk_after_the_mean_image_was_subtracted() -> None:
    generator = np.random.default_rng(0)
    sizes = {"image_size": 8, "resize": 8, "early_size": 4, "early_epochs": 1}
    recipe = recipe_of(data={**sizes, "mean": [0.5] * 3, "std": [0.2, 0.25, 0.4]})
    image = generator.random((8, 8, 3), np.float32)
    network = Fixed(torch.zeros(4, 10), torch.zeros(4, 10))
    step = TrainingStep(network, recipe, recipe.data.preprocessing().with_mean_image(image), 10)
    pixels = generator.integers(0, 256, (4, 8, 8, 3), np.uint8)
    batch = Batch(np.arange(4), pixels, np.arange(4), 0)
    normalised = torch.from_numpy((pixels / 255 - image) / [0.2, 0.25, 0.4]).permute(0, 3, 1, 2).float()
    shrunk = functional.interpolate(normalised, 4, mode="bilinear", antialias=True)
    for epoch, expected in enumerate([shrunk, normalised]):
        inputs, labels = step._inputs(batch, epoch, 0)
        torch.testing.assert_close(inputs, expected, rtol=0, atol=1e-5)
        assert labels.tolist() == [0, 1, 2, 3]
