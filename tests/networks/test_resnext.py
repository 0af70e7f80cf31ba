"""ResNeXt: the paper's numbers, the equality with ResNet at one path, and the grammar of names."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from resnext import catalog
from resnext.complexity import count
from resnext.errors import UserError
from resnext.networks.resnext import FORMS, AggregatedBottleneck, ResNeXt, ResNeXtConfig, parse


def parameters(module: nn.Module, *, norms: bool = True) -> int:
    kinds = (nn.Conv2d, nn.Linear, nn.BatchNorm2d) if norms else (nn.Conv2d, nn.Linear)
    found = [part for part in module.modules() if isinstance(part, kinds)]
    return sum(parameter.numel() for part in found for parameter in part.parameters())


# C, d, equation (4), and with the affine parameters of batch norm (Table 2).
SETTINGS = [
    (1, 64, 69_632, 70_400),
    (2, 40, 69_760, 70_592),
    (4, 24, 69_888, 70_784),
    (8, 14, 71_456, 72_416),
    (32, 4, 70_144, 71_168),
]


@pytest.mark.parametrize(("cardinality", "base_width", "weights", "with_norms"), SETTINGS)
def test_a_block_of_stage_1_has_the_parameters_of_equation_4(
    cardinality: int, base_width: int, weights: int, with_norms: int
) -> None:
    block = AggregatedBottleneck(256, 256, width=cardinality * base_width, cardinality=cardinality, stride=1)
    assert cardinality * (256 * base_width + 9 * base_width**2 + base_width * 256) == weights
    assert parameters(block, norms=False) == weights
    assert parameters(block) == with_norms
    with torch.device("meta"):
        network = catalog.create(f"resnext50_{cardinality}x{base_width}d")
    assert parameters(network.stage1.block2) == with_norms


def test_paths_do_not_see_each_other() -> None:
    torch.manual_seed(1)
    block = AggregatedBottleneck(8, 8, width=6, cardinality=3, stride=1)
    inner = torch.randn(1, 6, 5, 5, requires_grad=True)
    block.spatial(inner)[:, 2:4].sum().backward()
    assert inner.grad is not None
    reached = inner.grad.abs().sum((0, 2, 3)) > 0
    assert reached.tolist() == [False, False, True, True, False, False]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("cardinality", "base_width", "weights", "with_norms"), SETTINGS)
def test_every_form_has_the_parameters_of_equation_4(
    form: str, cardinality: int, base_width: int, weights: int, with_norms: int
) -> None:
    """Table 2's, batch norm included: form (a) has none at the end of each path."""
    with torch.device("meta"):
        block = catalog.create(f"resnext50_{cardinality}x{base_width}d", form=form).stage1.block2
    assert isinstance(block, FORMS[form])  # type: ignore[index]
    assert parameters(block, norms=False) == weights
    assert parameters(block) == with_norms


def test_forms_a_and_b_have_a_norm_and_a_relu_where_the_paper_has_them() -> None:
    kinds = {
        form: [
            type(layer).__name__ for layer in catalog.create("cifar_resnext11_1x4d", form=form).stage1.block1.modules()
        ]
        for form in "ab"
    }
    path = ["Conv2d", "BatchNorm2d", "ReLU"] * 2
    for form, behind in (("a", ["Conv2d", "BatchNorm2d"]), ("b", ["Conv2d", "BatchNorm2d"])):
        layers = [kind for kind in kinds[form] if kind in ("Conv2d", "BatchNorm2d", "ReLU")]
        assert layers == [*path, *behind, "Conv2d", "BatchNorm2d"]  # the last two: the shortcut


def test_the_state_dict_of_the_plain_form_is_as_it_was() -> None:
    """Weights made before there was a choice of forms are read."""
    with torch.device("meta"):
        names = list(catalog.create("resnext50_32x4d").stage2.block1.state_dict())
    norm = ("norm.weight", "norm.bias", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked")
    layers = ("reduce", "spatial", "expand", "shortcut")
    assert names == [f"{layer}.{each}" for layer in layers for each in ("conv.weight", *norm)]


def test_one_path_of_64_channels_is_resnet50() -> None:
    torch.manual_seed(2)
    resnet, resnext = catalog.create("resnet50").eval(), catalog.create("resnext50_1x64d").eval()
    resnext.load_state_dict(resnet.state_dict(), strict=True)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(resnet(images), resnext(images))


@settings(max_examples=15, deadline=None)
@given(
    n=st.integers(1, 4),
    cardinality=st.integers(1, 16),
    base_width=st.integers(1, 32),
    classes=st.integers(1, 99),
)
def test_cifar_names_build_what_they_say(n: int, cardinality: int, base_width: int, classes: int) -> None:
    """Sum up section 5.3's layers by hand: 3×3 with 64, three stages of n blocks, a linear layer."""
    with torch.device("meta"):
        network = catalog.create(f"cifar_resnext{9 * n + 2}_{cardinality}x{base_width}d", num_classes=classes)
    weights, affine, macs, channels = 27 * 64, 2 * 64, 27 * 64 * 32**2, 64
    for stage in range(3):
        path, out, area = base_width * 2**stage, 256 * 2**stage, (32 >> stage) ** 2
        for block in range(n):
            entering = area * 4 if stage > 0 and block == 0 else area
            first, spatial, last = (cardinality * path * c for c in (channels, 9 * path, out))
            projection = channels * out if block == 0 else 0
            weights += first + spatial + last + projection
            macs += first * entering + (spatial + last + projection) * area
            affine += 2 * (2 * cardinality * path + out + (out if block == 0 else 0))
            channels = out
    cost = count(network, 32)
    assert cost.parameters == weights + affine + 1024 * classes + classes
    assert cost.macs == macs + 1024 * classes
    assert cost.depth == 9 * n + 2


def test_the_grammar_knows_unlisted_networks() -> None:
    found = catalog.resolve("cifar_resnext20_8x8d")
    assert (found.network, found.variant, found.image_size, found.num_classes) == (ResNeXt, None, 32, 10)
    assert found.config == ResNeXtConfig((2, 2, 2), 8, 8, stem="cifar")
    wide = catalog.resolve("resnext101_1x90d")
    assert wide.config == ResNeXtConfig((3, 4, 23, 3), 1, 90)
    assert (wide.image_size, wide.num_classes) == (224, 1000)
    logits = catalog.create("cifar_resnext20_8x8d").eval()(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, 10)


@pytest.mark.parametrize("name", ["resnext50", "resnext50_0x4d", "resnext50_32x4", "resnet50_32x4d", "cifar_resnext29"])
def test_the_grammar_leaves_other_names_alone(name: str) -> None:
    assert parse(name) is None


@pytest.mark.parametrize("name", ["resnext18", "resnext34", "resnext18_32x4d", "resnext34_2x64d"])
def test_basic_blocks_have_no_grouped_form(name: str) -> None:
    with pytest.raises(UserError, match="two layers") as caught:
        catalog.resolve(name)
    assert "Fig. 4" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


def test_depths_outside_the_families_are_refused() -> None:
    with pytest.raises(UserError, match="'cifar_resnext29_30x4d' or 'cifar_resnext38_30x4d'"):
        catalog.resolve("cifar_resnext30_30x4d")
    with pytest.raises(UserError, match="50, 101 or 152"):
        catalog.resolve("resnext26_32x4d")
    with pytest.raises(UserError, match="50, 101 or 152"):
        catalog.resolve("resnext200_32x4d")


@pytest.mark.parametrize(
    "options",
    [{"cardinality": 0}, {"base_width": 2.5}, {"shortcut": "D"}, {"stem": None}, {"blocks": ()}, {"form": "d"}],
)
def test_options_that_make_no_network_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        catalog.create("resnext50_32x4d", **options)
