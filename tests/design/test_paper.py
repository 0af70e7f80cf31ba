"""The paper's equations, every figure of docs/paper.md, and what is often said and not so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from resnext import catalog, complexity
from resnext.design.families import FAMILIES, Point
from resnext.networks.resnext import SummedBottleneck
from resnext.training import recipe

PAGE = (Path(__file__).parents[2] / "docs" / "paper.md").read_text(encoding="utf-8")


def cells(pattern: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(pattern, PAGE, re.MULTILINE)]


def test_every_cost_on_the_page_is_counted() -> None:
    rows = cells(r"^\| `.+\|$")
    assert len(rows) >= 25
    for name, parameters, macs, *_ in rows:
        (row,) = catalog.rows(name.strip("`"))
        assert (parameters, macs) == (f"{row['parameters']:,}", f"{row['macs']:,}"), name


def test_table_2_on_the_page_is_equation_4() -> None:
    rows = cells(r"^\| \d+ \|.+\|$")
    assert len(rows) == 5
    for c, d, width, block, macs in ([int(cell.replace(",", "")) for cell in row] for row in rows):
        assert block == c * (256 * d + 3 * 3 * d * d + d * 256) == FAMILIES[0].block(Point(50, d, c))
        assert (width, macs) == (c * d, block * 56 * 56)


def test_recipes_that_the_page_names_are_there() -> None:
    assert set(re.findall(r"--recipe (\w+)", PAGE)) <= recipe.published().keys()


def test_equation_1_a_neuron_is_a_sum_over_paths() -> None:
    inputs, weights = torch.randn(7, dtype=torch.float64), torch.randn(7, dtype=torch.float64)
    paths = [weight * each for weight, each in zip(weights, inputs, strict=True)]
    neuron = nn.Linear(7, 1, bias=False, dtype=torch.float64)
    neuron.weight.data = weights[None]
    torch.testing.assert_close(sum(paths), neuron(inputs)[0])


def test_equations_2_and_3_a_block_is_its_input_and_a_sum_over_paths() -> None:
    torch.manual_seed(1)
    block = SummedBottleneck(16, 16, width=12, cardinality=4).double().eval()  # a fresh batch norm changes ε alone
    images = torch.randn(2, 16, 6, 6, dtype=torch.float64).relu()
    with torch.inference_mode():
        aggregated = sum(path(images) for path in block.paths.children())
        scale = (1 + block.norm.eps) ** -0.5
        torch.testing.assert_close(block.residual(images), aggregated * scale)
        torch.testing.assert_close(block(images), functional.relu(images + aggregated * scale))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 7), st.integers(1, 6), st.integers(1, 6), st.integers(1, 6))
def test_a_grouped_convolution_has_a_gth_of_the_weights(kernel: int, groups: int, into: int, out: int) -> None:
    channels, filters = groups * into, groups * out
    conv = nn.Conv2d(channels, filters, kernel, groups=groups, bias=False, device="meta")
    assert conv.weight.numel() == kernel * kernel * channels * filters // groups
    depthwise = nn.Conv2d(channels, channels, kernel, groups=channels, bias=False, device="meta")
    assert depthwise.weight.numel() == kernel * kernel * channels


def test_it_is_of_2017() -> None:
    assert "CVPR 2017" in PAGE
    assert "CVPR 2016" not in PAGE


def test_a_block_learns_what_is_to_be_added() -> None:
    block = catalog.create("cifar_resnet8").stage1.block1.eval()
    images = torch.randn(1, 16, 8, 8).relu()
    with torch.inference_mode():
        torch.testing.assert_close(block(images), functional.relu(block.residual(images) + images))
        nn.init.zeros_(block.second.norm.weight)
        torch.testing.assert_close(block(images), images)  # F = 0 is the identity


def test_wide_resnets_drop_right_before_the_second_convolution() -> None:
    block = catalog.create("wrn_16_2", dropout=0.3).stage1.block2
    kinds = [type(layer) for layer in block.modules() if not list(layer.children())]
    order = [
        kind for kind in kinds if kind in (nn.BatchNorm2d, nn.ReLU, nn.Dropout, nn.Dropout2d) or "Conv" in kind.__name__
    ]
    place = next(number for number, kind in enumerate(order) if kind in (nn.Dropout, nn.Dropout2d))
    assert "Conv" in order[place + 1].__name__
    assert [kind.__name__ for kind in order[place - 2 : place]] == ["BatchNorm2d", "ReLU"]
    assert sum("Conv" in kind.__name__ for kind in order[:place]) == 1


@pytest.mark.parametrize("name", ["resnext50_32x4d", "cifar_resnext29_8x64d"])
def test_no_form_is_cheaper_on_paper(name: str) -> None:
    costs = {form: complexity.describe(name, form=form) for form in "abc"}
    assert len({(cost["parameters"], cost["macs"]) for cost in costs.values()}) == 1


def test_paths_of_two_layers_are_one_wider_dense_block() -> None:
    torch.manual_seed(2)
    paths = [
        nn.Sequential(nn.Conv2d(8, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 8, 3, padding=1, bias=False))
        for _ in range(3)
    ]
    dense = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 8, 3, padding=1, bias=False))
    dense[0].weight.data = torch.cat([path[0].weight for path in paths])
    dense[0].bias.data = torch.cat([path[0].bias for path in paths])
    dense[2].weight.data = torch.cat([path[2].weight for path in paths], dim=1)
    images = torch.randn(2, 8, 6, 6)
    with torch.inference_mode():
        torch.testing.assert_close(sum(path(images) for path in paths), dense(images), rtol=1e-4, atol=1e-5)


def test_resnext_is_as_heavy_as_resnet_by_design() -> None:
    for depth in (50, 101):
        ours, theirs = (catalog.rows(name)[0] for name in (f"resnext{depth}_32x4d", f"resnet{depth}"))
        for what in ("parameters", "macs"):
            assert 0.97 < int(str(ours[what])) / int(str(theirs[what])) < 1.04


def test_alexnet_was_split_in_three_layers() -> None:
    convs = [part for part in catalog.create("alexnet").modules() if isinstance(part, nn.Conv2d)]
    assert [conv.groups for conv in convs] == [1, 2, 1, 2, 2]


def test_plain_networks_have_what_residual_ones_have_but_the_shortcuts() -> None:
    """What degrades in a plain network is not for want of parameters."""
    for depth in (20, 56):
        plain, residual = (catalog.rows(f"cifar_{kind}{depth}")[0] for kind in ("plain", "resnet"))
        assert (plain["parameters"], plain["macs"]) == (residual["parameters"], residual["macs"])


def test_equation_4_counts_parameters_and_the_area_multiplies_them() -> None:
    layers = complexity.describe("resnext50_32x4d")["layers"]
    block = [layer for layer in layers if layer["name"].startswith("stage1.block2.") and layer["kind"] == "Conv2d"]
    assert sum(layer["parameters"] for layer in block) == 70_144
    assert sum(layer["macs"] for layer in block) == 70_144 * 56 * 56
