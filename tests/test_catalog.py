"""The catalogue: names without torch, rows that are the tables, and what holds for every network in it."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

import resnext.networks
from networks.test_resnet import randomise_norms
from resnext import catalog
from resnext.errors import UserError
from resnext.layers import Network
from small import ALL, SMALL

MODULES = sorted(file.stem for file in Path(resnext.networks.__path__[0]).glob("*.py") if file.stem != "__init__")
NAMES = catalog.names()


def test_listing_imports_no_torch() -> None:
    code = (
        "import sys; from resnext import catalog; assert catalog.names('resnet*'); assert catalog.rows();"
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_building_on_the_meta_device_imports_no_compiler() -> None:
    """Bundles are opened in this way, and torch's compiler takes a second to import."""
    code = (
        "import sys, torch; from resnext import catalog; torch.set_default_device('meta');"
        "catalog.create('resnext50_32x4d'); assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_of_networks_has_a_table_and_a_grammar_and_rows_shows_the_table(module: str) -> None:
    imported = import_module(f"resnext.networks.{module}")
    assert imported.VARIANTS
    assert imported.parse("no network") is None
    rows = {row.pop("name"): row for row in catalog.rows()}
    assert set(imported.VARIANTS) <= set(NAMES)
    for name, variant in imported.VARIANTS.items():
        found = catalog.resolve(name)
        assert found.variant is variant
        assert rows[name] == {
            "paper": variant.paper,
            "parameters": variant.parameters,
            "training_parameters": variant.training_parameters or variant.parameters,
            "macs": variant.macs,
            "image_size": variant.image_size,
            "num_classes": variant.num_classes,
        }
        assert (found.network, found.config) == (variant.network, variant.config)
        assert re.match(r"arXiv:\d{4}\.\d{4,5}\b|NIPS 2012\b", variant.paper)
        blueprint = imported.parse(name)
        if blueprint is not None:
            assert blueprint.config == variant.config, "the grammar and the table disagree"
            assert (blueprint.network, blueprint.image_size) == (variant.network, variant.image_size)
            assert blueprint.num_classes == variant.num_classes


def test_no_module_of_networks_escapes_the_tests_of_small_ones() -> None:
    assert sorted(SMALL) == MODULES
    for module, pairs in SMALL.items():
        assert pairs
        for name, _ in pairs:
            assert catalog.resolve(name).network.__module__ == f"resnext.networks.{module}"


def test_every_listed_name_belongs_to_a_module() -> None:
    tables = [set(import_module(f"resnext.networks.{module}").VARIANTS) for module in MODULES]
    assert set(NAMES) == set().union(*tables)
    assert len(NAMES) == sum(map(len, tables))
    assert len(NAMES) >= 46


def test_names_come_in_natural_order_and_by_pattern() -> None:
    assert catalog.names("cifar_plain[0-9]*") == [f"cifar_plain{depth}" for depth in (20, 32, 44, 56, 110)]
    assert catalog.names("resnext50_*x*d") == [f"resnext50_{s}" for s in ("1x64d", "2x40d", "4x24d", "8x14d", "32x4d")]
    assert catalog.names("nothing*") == []
    assert [row["name"] for row in catalog.rows("plain*")] == ["plain18", "plain34"]


def test_rows_can_be_changed_without_harm() -> None:
    catalog.rows("resnet18")[0]["macs"] = 0
    assert catalog.rows("resnet18")[0]["macs"] == 1_814_073_344


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("resnet51", "resnet50"),
        ("ResNeXt50_32x4d", "resnext50_32x4d"),
        ("cifar_resnext_32x4d", "cifar_resnext29"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UserError, match=f"{name!r}.*Did you mean .*{near}"):
        catalog.create(name)


def test_an_unknown_name_that_resembles_nothing_is_answered_with_where_to_look() -> None:
    with pytest.raises(UserError, match="resnext networks"):
        catalog.resolve("?")


def test_an_unknown_option_is_answered_with_those_there_are() -> None:
    with pytest.raises(UserError, match=r"'shortcuts'.*'shortcut'\?\n.*blocks, block, stem, width") as caught:
        catalog.create("resnet18", shortcuts="A")
    assert "stride_in" in str(caught.value)
    with pytest.raises(UserError, match="cardinality, base_width"):
        catalog.create("resnext50_32x4d", stride_in="1x1")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet18", {"blocks": 3}, "blocks=3 is no list"),
        ("resnext50_32x4d", {"blocks": ()}, "blocks has 0 numbers"),
        ("cifar_resnet20", {"blocks": (1,) * 25}, "blocks has 25 numbers"),
        ("preact_resnet200", {"blocks": (3, 0)}, "blocks=.* is no list"),
        ("wrn_16_2", {"kernels": 3}, "kernels=3 is no list"),
        ("alexnet", {"channels": 5}, "channels=5 is no list"),
        ("wide_resnet50_2", {"blocks": "3463"}, "blocks='3463' is no list"),
        ("inception_v4", {"blocks": 4}, "blocks=4"),
        ("resnet18", {"width": (64,)}, "width=.* is not a size"),
    ],
)
def test_sizes_of_the_wrong_kind_are_refused(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        catalog.create(name, **options)
    assert len(str(caught.value).splitlines()) <= 3


@pytest.mark.parametrize(
    "numbers",
    [{"num_classes": 2.5}, {"num_classes": True}, {"num_classes": 0}, {"in_channels": 0}, {"num_classes": -3}],
)
def test_sizes_below_one_are_refused(numbers: dict[str, int]) -> None:
    with pytest.raises(UserError, match="whole number from 1"):
        catalog.create("resnet18", **numbers)


def test_options_take_the_place_of_fields_and_leave_the_table_alone() -> None:
    with torch.device("meta"):
        changed = catalog.create("resnet18", shortcut="A", num_classes=7)
        listed = catalog.create("resnet18_a", num_classes=7)
    assert {k: v.shape for k, v in changed.state_dict().items()} == {k: v.shape for k, v in listed.state_dict().items()}
    assert catalog.resolve("resnet18").config.shortcut == "B"


@pytest.mark.parametrize("name", [name for name in NAMES if "1202" not in name and "1001" not in name])
def test_every_network_keeps_the_contract(name: str) -> None:
    """On the meta device: children in order, features by name, a gradient for every parameter."""
    with torch.device("meta"):
        found = catalog.resolve(name)
        network = catalog.create(name)
        images = torch.empty(2, 3, found.image_size, found.image_size)
        assert isinstance(network, Network)
        assert dataclasses.is_dataclass(found.config)
        hash(found.config)
        assert network.training
        features = network.features(images)
        children = [child for child, _ in network.named_children() if child != "auxiliary"]
        stages = [child for child in children if child.startswith("stage")]
        assert stages == [f"stage{number}" for number in range(1, len(stages) + 1)]
        stem = ["stem"] if "stem" in children else []
        assert children == [*stem, *stages, "head"] == list(features)
        losses = network.training_logits(images)
        assert losses[0][0] == 1.0
        assert all(weight > 0 for weight, _ in losses)
        assert len(losses) == 1 + len(network.auxiliary or {})
        assert all(logits.shape == (2, found.num_classes) for _, logits in losses)
        sum(weight * logits.sum() for weight, logits in losses).backward()
        assert [key for key, parameter in network.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize(("name", "options"), ALL)
def test_every_parameter_learns(name: str, options: dict[str, object]) -> None:
    torch.manual_seed(1)
    network = catalog.create(name, num_classes=5, **options)
    side = max(32, network.smallest)
    losses = network.training_logits(torch.randn(8, 3, side, side))
    labels = torch.arange(8) % 5
    sum(weight * torch.nn.functional.cross_entropy(logits, labels) for weight, logits in losses).backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key


@pytest.mark.parametrize(("name", "options"), ALL)
def test_evaluation_does_not_depend_on_the_other_images_of_a_batch(name: str, options: dict[str, object]) -> None:
    torch.manual_seed(2)
    network = catalog.create(name, num_classes=5, **options)
    side = max(32, network.smallest)
    images = torch.randn(6, 3, side, side)
    with torch.no_grad():
        for _ in range(3):
            network(images)  # batch norm gathers statistics
        network.eval()
        together = network(images)
        alone = torch.cat([network(image[None]) for image in images])
        mixed = network(torch.cat((images[:3], 100 * images[3:])))
    assert together.std() > 0
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mixed[:3], together[:3], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "options"), ALL)
@pytest.mark.parametrize("in_channels", [1, 3, 6])
def test_images_may_have_any_number_of_channels(name: str, options: dict[str, object], in_channels: int) -> None:
    network = catalog.create(name, num_classes=4, in_channels=in_channels, **options).eval()
    with torch.inference_mode():
        smallest = network(torch.randn(2, in_channels, network.smallest, network.smallest))
        features = network.features(torch.randn(2, in_channels, network.smallest + 8, network.smallest))
    assert smallest.shape == features["head"].shape == (2, 4)


@pytest.mark.parametrize(("name", "options"), ALL)
def test_features_are_what_the_forward_pass_computes(name: str, options: dict[str, object]) -> None:
    torch.manual_seed(3)
    network = catalog.create(name, **options).eval()
    side = max(32, network.smallest)
    images = torch.randn(2, 3, side, side)
    untouched = images.clone()
    with torch.inference_mode():
        features = network.features(images)
        copies = {key: feature.clone() for key, feature in features.items()}
        assert torch.equal(features["head"], network(images))
        (weight, logits), *_ = network.training_logits(images)
        again = images
        for key, child in network.sequence():
            again = child(again)
            assert torch.equal(again, copies[key]), "a later layer wrote over an earlier one's output"
    assert weight == 1.0
    assert torch.equal(logits, features["head"])
    assert torch.equal(images, untouched)


@pytest.mark.parametrize(("name", "options"), ALL)
def test_dense_is_the_network_itself_at_the_published_size(name: str, options: dict[str, object]) -> None:
    torch.manual_seed(5)
    network = catalog.create(name, num_classes=5, **options)
    side = catalog.resolve(name).image_size
    randomise_norms(network)
    network.eval()
    with torch.inference_mode():
        images = torch.randn(2, 3, side, side)
        *_, maps, logits = network.features(images).values()
        assert logits.std() > 0
        torch.testing.assert_close(network.dense(images), logits, rtol=1e-4, atol=1e-5)
        signed = torch.randn_like(maps)
        torch.testing.assert_close(network.head.dense(signed), network.head(signed), rtol=1e-4, atol=1e-5)


def test_weights_drawn_with_one_seed_are_the_same() -> None:
    torch.manual_seed(4)
    first = catalog.create("cifar_resnet8")
    torch.manual_seed(4)
    second = catalog.create("cifar_resnet8").state_dict()
    assert all(torch.equal(value, second[key]) for key, value in first.state_dict().items())
