"""Every family learns 32 real images by heart, with its auxiliary heads: what is wired wrongly does not.

At the smallest legal image size, dropout and gates off. The slow families run with `make bench-overfitting`.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from resnext import catalog
from resnext.layers import Network

IMAGES = 32
SLOW = pytest.mark.slow

# A name, its options, Adam's learning rate.
NORMALISED = [
    pytest.param("cifar_resnet8", {}, 3e-3),
    pytest.param("cifar_preact_resnet8", {}, 3e-3),
    pytest.param("cifar_resnet8_stochastic_depth_authors", {"final_survival": 1.0}, 3e-3),
    pytest.param("wrn_10_2", {"dropout": 0.0}, 3e-3),
    pytest.param("cifar_resnext11_4x4d", {}, 3e-3),
    pytest.param("resnet50", {"blocks": (1, 1, 1, 1), "width": 16}, 3e-3),
    pytest.param("vgg11_bn", {"dropout": 0.0}, 1e-4, marks=SLOW),
    pytest.param("googlenet_bn", {"dropout": 0.0}, 1e-3, marks=SLOW),
    pytest.param("googlenet_torchvision", {"dropout": 0.0}, 1e-3, marks=SLOW),
    pytest.param("bn_inception", {}, 1e-3, marks=SLOW),
    pytest.param("inception_v2", {"dropout": 0.0}, 1e-3),
    pytest.param("inception_v3", {"dropout": 0.0}, 1e-3),
    pytest.param("inception_v4", {"dropout": 0.0}, 1e-3, marks=SLOW),
    pytest.param("inception_resnet_v1", {"dropout": 0.0}, 1e-3),
    pytest.param("inception_resnet_v2", {"dropout": 0.0}, 1e-3),
    pytest.param("cifar_resnet110_stochastic_depth", {"final_survival": 1.0}, 1e-3),
    pytest.param("preact_resnet200", {}, 1e-3, marks=SLOW),
    pytest.param("wide_resnet50_2", {}, 1e-3),
    pytest.param("resnext50_32x4d", {}, 1e-3),
    pytest.param("resnet18", {}, 1e-3),
]
PLAIN = [
    pytest.param("alexnet", {"dropout": 0.0}, 1e-4, marks=SLOW),
    pytest.param("alexnet_one_tower", {"dropout": 0.0}, 1e-4, marks=SLOW),
    pytest.param("vgg11", {"dropout": 0.0}, 1e-4, marks=SLOW),
    pytest.param("vgg16_c", {"dropout": 0.0}, 1e-4, marks=SLOW),
    pytest.param("googlenet", {"dropout": 0.0}, 3e-4),
]


def photos(folder: Path, side: int) -> tuple[Tensor, Tensor]:
    """Return 32 images of CIFAR-10, N×3×side×side from −1 to 1, and their classes."""
    files = [file for place in sorted((folder / "train").iterdir()) for file in islice(sorted(place.iterdir()), 4)]
    files = files[:IMAGES]
    names = sorted({file.parent.name for file in files})
    pixels = [np.asarray(Image.open(file).convert("RGB").resize((side, side))) for file in files]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return images, torch.tensor([names.index(file.parent.name) for file in files])


def switch_off_dropout(network: nn.Module) -> None:
    """Leave dropout out of auxiliary heads, too."""
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def learn(network: Network, images: Tensor, labels: Tensor, *, steps: int, rate: float, bound: float) -> Tensor:
    """Train until the network's own loss is below `bound`; return all losses, a row a step, a column a head."""
    switch_off_dropout(network)
    network.train().to(memory_format=torch.channels_last)
    images = images.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), lr=rate, fused=True)
    rows = []
    for _ in range(steps):
        weights, logits = zip(*network.training_logits(images), strict=True)
        losses = [F.cross_entropy(each, labels) for each in logits]
        rows.append(torch.stack(losses).detach())
        if rows[-1][0] < bound and bool((rows[-1] < 0.7 * rows[0]).all()):
            break
        optimizer.zero_grad()
        torch.stack([weight * loss for weight, loss in zip(weights, losses, strict=True)]).sum().backward()
        optimizer.step()
    return torch.stack(rows)


def assert_learned(losses: Tensor, bound: float) -> None:
    """Hold the network's own loss to `bound`, and each auxiliary one to a clear fall."""
    assert losses[-1, 0] < bound
    for head in range(1, losses.shape[1]):
        assert losses[-1, head] < 0.7 * losses[0, head], f"auxiliary head {head} does not learn"


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("name", "options", "rate"), NORMALISED)
def test_with_batch_norm(name: str, options: dict[str, object], rate: float, cifar10: Path) -> None:
    torch.manual_seed(1)
    network = catalog.create(name, num_classes=10, **options)
    assert isinstance(network, Network)
    losses = learn(network, *photos(cifar10, network.smallest), steps=200, rate=rate, bound=0.1)
    assert_learned(losses, 0.1)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("name", "options", "rate"), PLAIN)
def test_without_batch_norm(name: str, options: dict[str, object], rate: float, cifar10: Path) -> None:
    torch.manual_seed(1)
    network = catalog.create(name, num_classes=10, **options)
    assert isinstance(network, Network)
    losses = learn(network, *photos(cifar10, network.smallest), steps=400, rate=rate, bound=1.0)
    assert_learned(losses, 1.0)


@pytest.mark.parametrize(("weight", "learns"), [(0.3, True), (0.0, False)])
def test_an_auxiliary_head_that_counts_nothing_is_noticed(weight: float, learns: bool, cifar10: Path) -> None:
    torch.manual_seed(1)
    network = catalog.create("googlenet_bn", num_classes=10, dropout=0.0)
    assert isinstance(network, Network)
    network.auxiliary_weight = weight
    losses = learn(network, *photos(cifar10, network.smallest), steps=12, rate=1e-3, bound=0.0)
    assert losses.shape == (12, 3)
    falls = losses[-1, 1:] < 0.7 * losses[0, 1:]
    assert falls.tolist() == [learns, learns]
