"""What is chosen for a network that the caller names: sizes that it takes, a learning rate that it bears."""

from __future__ import annotations

from pathlib import Path

import pytest

from making import write_colours
from resnext.training.run import Plan, plan


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colours(tmp_path_factory.mktemp("data") / "photos", 6, size=70)


def planned(photos: Path, place: Path, **fields: object) -> Plan:
    return plan(photos, out=place / "run", recipe=None, resume=False, fields={"batch_size": 8, **fields})


@pytest.mark.parametrize(
    ("network", "rate"), [("alexnet", 0.01), ("vgg11", 0.01), ("googlenet", 0.01), ("vgg11_bn", 0.0125)]
)
def test_networks_without_batch_norm_get_their_papers_rate(
    network: str, rate: float, photos: Path, tmp_path: Path
) -> None:
    chosen = planned(photos, tmp_path, network=network)
    assert chosen.recipe.optimizer.learning_rate == rate
    assert any("no batch norm" in note for note in chosen.notes) == (rate == 0.01)


def test_a_rate_that_is_given_is_kept(photos: Path, tmp_path: Path) -> None:
    chosen = planned(photos, tmp_path, network="vgg11", learning_rate=0.05)
    assert chosen.recipe.optimizer.learning_rate == 0.05
    assert not any("no batch norm" in note for note in chosen.notes)


@pytest.mark.parametrize(("network", "size"), [("inception_v3", 96), ("resnet18", 64), ("alexnet", 64)])
def test_the_image_size_is_one_that_the_network_takes(network: str, size: int, photos: Path, tmp_path: Path) -> None:
    assert planned(photos, tmp_path, network=network).recipe.data.image_size == size
