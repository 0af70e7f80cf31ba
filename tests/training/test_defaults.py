"""What is chosen for a network that the caller names: sizes that it takes, a learning rate that it bears."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from making import write_colours
from resnext.errors import UserError
from resnext.training.plan import Plan, Wish, plan
from resnext.training.recipe import Recipe, load


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colours(tmp_path_factory.mktemp("data") / "photos", 6, size=70)


def planned(photos: Path, place: Path, **fields: object) -> Plan:
    return plan(photos, wish=Wish(place / "run"), recipe=None, fields={"batch_size": 8, **fields})


@pytest.mark.parametrize(
    ("network", "rate"),
    [
        ("alexnet", 0.000625),
        ("vgg11", 0.000625),
        ("vgg11_bn", 0.000625),
        ("googlenet", 0.000625),
        ("googlenet_bn", 0.0125),
        ("resnet18", 0.0125),
    ],
)
def test_networks_with_hidden_layers_without_batch_norm_get_a_lower_rate(
    network: str, rate: float, photos: Path, tmp_path: Path
) -> None:
    chosen = planned(photos, tmp_path, network=network)
    assert chosen.recipe.optimizer.learning_rate == rate
    assert any("without batch norm" in note for note in chosen.notes) == (rate < 0.01)


def test_a_rate_that_is_given_is_kept(photos: Path, tmp_path: Path) -> None:
    chosen = planned(photos, tmp_path, network="vgg11", learning_rate=0.05)
    assert chosen.recipe.optimizer.learning_rate == 0.05
    assert not any("without batch norm" in note for note in chosen.notes)


@pytest.mark.parametrize(("network", "size"), [("inception_v3", 96), ("resnet18", 64), ("alexnet", 64)])
def test_the_image_size_is_one_that_the_network_takes(network: str, size: int, photos: Path, tmp_path: Path) -> None:
    assert planned(photos, tmp_path, network=network).recipe.data.image_size == size


@pytest.mark.parametrize("name", ["imagenet_googlenet", "imagenet_resnext50_32x4d", "cifar10_resnet20"])
def test_what_a_published_recipe_leaves_out_is_off(name: str, photos: Path, tmp_path: Path) -> None:
    """Not guessed: label smoothing, which the defaults use for photos, is not in these papers."""
    chosen = plan(photos, wish=Wish(tmp_path / "run"), recipe=name, fields={}).recipe
    complete = Recipe.from_dict(load(name))
    measured = {"colour_axes": ()}
    assert replace(chosen.augmentation, **measured) == replace(complete.augmentation, **measured)
    without = {"augmentation"}
    assert chosen.model_dump(exclude=without) == complete.model_dump(exclude=without)
    assert chosen.label_smoothing == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 7}, "options.num_classes follows from the data"),
        ({"kernels": [float("nan")]}, "options.kernels: give a finite number"),
        ({"a": {"b": 5}}, "options.a: give a finite number"),
    ],
)
def test_options_that_no_network_has_are_refused(
    options: dict[str, object], message: str, photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        planned(photos, tmp_path, network="cifar_resnet8", options=options)


def test_options_may_be_lists_of_decimals(photos: Path, tmp_path: Path) -> None:
    scales = {"scales": [0.2, 0.1, 0.15], "blocks": [1, 1, 1]}
    chosen = planned(photos, tmp_path, network="inception_resnet_v1", options=scales)
    assert chosen.recipe.options == {"scales": (0.2, 0.1, 0.15), "blocks": (1, 1, 1)}
