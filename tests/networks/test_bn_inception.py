"""BN-Inception against the paper's table and formulas written out, and TF-slim's sizes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnext import catalog
from resnext.complexity import describe
from resnext.errors import UserError
from resnext.networks.bn_inception import BNInceptionConfig, parse

NAMES = ("bn_inception", "bn_inception_slim")

# Figure 5, by module: #1×1; #3×3 reduce, #3×3; double #3×3 reduce, double #3×3; pool and its projection. Then the
# side of the map that leaves.
FIGURE = {
    "3a": ("64; 64,64; 64,96; avg 32", 28),
    "3b": ("64; 64,96; 64,96; avg 64", 28),
    "3c": ("-; 128,160; 64,96; max -", 14),
    "4a": ("224; 64,96; 96,128; avg 128", 14),
    "4b": ("192; 96,128; 96,128; avg 128", 14),
    "4c": ("160; 128,160; 128,160; avg 128", 14),
    "4d": ("96; 128,192; 160,192; avg 128", 14),
    "4e": ("-; 128,192; 192,256; max -", 7),
    "5a": ("352; 192,320; 160,224; avg 128", 7),
    "5b": ("352; 192,320; 192,224; max 128", 7),
}
PLACES = dict(zip(FIGURE, "1122222333", strict=True))
# Maps that leave: as the widths add up, and as the figure prints them and TF-slim has them.
OUT = {
    "bn_inception": (256, 320, 576, 576, 576, 608, 608, 1056, 1024, 1024),
    "bn_inception_slim": (256, 320, 576, 576, 576, 576, 576, 1024, 1024, 1024),
}


def place(module: str) -> str:
    return f"stage{PLACES[module]}.inception{module}"


def row(module: str) -> tuple[int, list[int], str, int]:
    """Return a row's 1×1 width (0: none), its other convolutions', the kind of pool, and the projection's (0: none)."""
    single, triple, double, pool = (cell.strip() for cell in FIGURE[module][0].split(";"))
    kind, project = pool.split()
    (reduce3, conv3), (reduce_double, last) = (map(int, cell.split(",")) for cell in (triple, double))
    inner = [reduce3, conv3, reduce_double, last, last]
    return int(single.replace("-", "0")), inner, kind, int(project.replace("-", "0"))


@pytest.mark.parametrize(
    ("name", "options", "parameters", "macs", "depth"),
    [
        ("bn_inception", {}, 11_285_224, 2_032_600_064, 34),
        ("bn_inception", {"bias": True}, 11_295_240, 2_032_600_064, 34),
        ("bn_inception_slim", {}, 11_188_288, 1_934_857_216, 35),
    ],
)
def test_costs(name: str, options: dict[str, object], parameters: int, macs: int, depth: int) -> None:
    """Depth: three convolutions in the stem, three in each of ten modules, a linear layer."""
    told = describe(name, **options)
    assert (told["parameters"], told["training_parameters"], told["macs"]) == (parameters, parameters, macs)
    assert told["depth"] == depth


def test_auxiliary_classifiers_would_not_make_the_papers_parameters_either() -> None:
    head = 576 * 128 + 2 * 128 + 2048 * 1024 + 1024 + 1024 * 1000 + 1000
    parameters = describe("bn_inception")["parameters"]
    assert round(head / 1e6, 1) == 3.2
    assert 13.6 not in [round((parameters + heads * head) / 1e6, 1) for heads in range(3)]
    with torch.device("meta"):
        network = catalog.create("bn_inception", num_classes=7)
        losses = network.training_logits(torch.empty(2, 3, 224, 224))
    assert network.auxiliary is None
    assert [(weight, logits.shape) for weight, logits in losses] == [(1.0, (2, 7))]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("module", FIGURE)
def test_a_module_is_its_row_of_figure_5(name: str, module: str) -> None:
    single, inner, _, project = row(module)
    if name == "bn_inception_slim" and module in ("4c", "4d"):
        project = 96
    layers = [layer for layer in describe(name)["layers"] if layer["name"].startswith(f"{place(module)}.")]
    convolutions = [layer for layer in layers if layer["kind"] == "Conv2d"]
    assert [layer["output"][0] for layer in convolutions] == [c for c in (single, *inner, project) if c]


@pytest.mark.parametrize("name", NAMES)
def test_shapes_by_module(name: str) -> None:
    with torch.device("meta"):
        network = catalog.create(name).eval()
        shapes: dict[str, tuple[int, ...]] = {}
        for key, module in network.named_modules():
            module.register_forward_hook(lambda _, __, out, key=key: shapes.__setitem__(key, tuple(out.shape[1:])))
        network(torch.empty(1, 3, 224, 224))
    assert shapes["stem.conv1"] == (64, 112, 112)
    assert shapes["stem.conv2"] == (192, 56, 56)
    assert shapes["stem"] == (192, 28, 28)
    assert [shapes[place(module)] for module in FIGURE] == [
        (maps, side, side) for maps, (_, side) in zip(OUT[name], FIGURE.values(), strict=True)
    ]


@pytest.mark.parametrize(("first", "weights", "mega"), [("full", 9_408, 118.01), ("separable", 2_712, 34.02)])
def test_the_first_convolution(first: str, weights: int, mega: float) -> None:
    """GoogLeNet's table prints 2.7K and 34M, which only the separable one has."""
    layers = [layer for layer in describe("bn_inception", first=first)["layers"] if "stem.conv1" in layer["name"]]
    convolutions = [layer for layer in layers if layer["kind"] == "Conv2d"]
    assert sum(layer["parameters"] for layer in convolutions) == weights
    assert round(sum(layer["macs"] for layer in convolutions) / 1e6, 2) == mega
    assert convolutions[-1]["output"] == [64, 112, 112]


def written_out(images: Tensor, weights: dict[str, Tensor], *, separable: bool, epsilon: float) -> Tensor:
    """The network in training mode as formulas: batch statistics, no dropout."""

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        kernels = weights[f"{name}.conv.weight"]
        x = F.conv2d(x, kernels, weights.get(f"{name}.conv.bias"), stride, kernels.shape[-1] // 2)
        mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, unbiased=False)
        gamma, beta = (weights[f"{name}.norm.{part}"].view(1, -1, 1, 1) for part in ("weight", "bias"))
        return ((x - mean) / (variance + epsilon).sqrt() * gamma + beta).relu()

    def halving_pool(x: Tensor) -> Tensor:
        return F.max_pool2d(F.pad(x, (0, 1 - x.shape[3] % 2, 0, 1 - x.shape[2] % 2), value=-math.inf), 3, 2)

    def max_pool(x: Tensor, stride: int) -> Tensor:
        return F.max_pool2d(F.pad(x, (1, 1, 1, 1), value=-math.inf), 3, stride)

    def average_pool(x: Tensor) -> Tensor:
        sums = F.conv2d(x.flatten(0, 1)[:, None], torch.ones(1, 1, 3, 3).to(x), padding=1)
        counts = F.conv2d(torch.ones(1, 1, *x.shape[2:]).to(x), torch.ones(1, 1, 3, 3).to(x), padding=1)
        return (sums / counts).view(x.shape)

    def inception(x: Tensor, module: str) -> Tensor:
        name, (single, _, kind, project) = place(module), row(module)
        stride = 1 if single else 2
        branches = [conv(x, f"{name}.branch1x1")] if single else []
        branches.append(conv(conv(x, f"{name}.branch3x3.reduce"), f"{name}.branch3x3.spatial", stride))
        double = conv(conv(x, f"{name}.branch3x3_double.reduce"), f"{name}.branch3x3_double.spatial1")
        branches.append(conv(double, f"{name}.branch3x3_double.spatial2", stride))
        pooled = average_pool(x) if kind == "avg" else max_pool(x, stride)
        branches.append(conv(pooled, f"{name}.branch_pool.project") if project else pooled)
        return torch.cat(branches, 1)

    if separable:
        depthwise = weights["stem.conv1.depthwise.weight"]
        by_colour = [F.conv2d(images[:, c : c + 1], depthwise[8 * c : 8 * c + 8], None, 2, 3) for c in range(3)]
        x = conv(torch.cat(by_colour, 1), "stem.conv1.pointwise")
    else:
        x = conv(images, "stem.conv1", stride=2)
    x = halving_pool(conv(conv(halving_pool(x), "stem.reduce"), "stem.conv2"))
    for module in FIGURE:
        x = inception(x, module)
    return x.mean((2, 3)) @ weights["head.fc.weight"].T + weights["head.fc.bias"]


@pytest.mark.parametrize(
    ("name", "options"), [("bn_inception", {"bias": True}), ("bn_inception_slim", {"dropout": 0.0})]
)
@pytest.mark.parametrize("size", [(96, 128), (203, 70)])
def test_the_network_is_the_papers_formulas(name: str, options: dict[str, object], size: tuple[int, int]) -> None:
    torch.manual_seed(1)
    network = catalog.create(name, num_classes=9, **options).double()
    for key, tensor in network.state_dict().items():
        if key.endswith((".norm.weight", ".norm.bias", "conv.bias")):
            tensor += torch.randn_like(tensor) / 5
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    separable, epsilon = (True, 1e-3) if name.endswith("slim") else (False, 1e-5)
    with torch.no_grad():
        expected = written_out(images, network.state_dict(), separable=separable, epsilon=epsilon)
        logits = network(images)
    assert expected.std() > 0
    assert (logits - expected).abs().max() <= 1e-9 * expected.abs().max()


def test_biases_start_at_zero_and_batch_norm_cancels_them() -> None:
    torch.manual_seed(2)
    network = catalog.create("bn_inception", num_classes=9, bias=True).double()
    images = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    biases = {key: tensor for key, tensor in network.state_dict().items() if key.endswith("conv.bias")}
    assert sum(bias.numel() for bias in biases.values()) == 10_016
    with torch.no_grad():
        before = network(images)
        for bias in biases.values():
            assert not bias.any()
            bias.normal_()
        torch.testing.assert_close(network(images), before)


@pytest.mark.parametrize(("name", "expected"), [("bn_inception", []), ("bn_inception_slim", [0.2])])
def test_dropout_is_slims_alone(name: str, expected: list[float]) -> None:
    with torch.device("meta"):
        assert [part.p for part in catalog.create(name).modules() if isinstance(part, nn.Dropout)] == expected


@pytest.mark.parametrize("name", NAMES)
def test_the_smallest_image_leaves_one_place_before_the_head(name: str) -> None:
    with torch.device("meta"):
        network = catalog.create(name)
        features = network.features(torch.empty(2, 3, network.smallest, network.smallest))
    assert features["stage3"].shape == (2, 1024, 1, 1)
    with pytest.raises(UserError, match="32 or more"):
        describe(name, image_size=network.smallest - 1)


def test_the_family_has_no_grammar() -> None:
    assert parse("bn_inception_wide") is None
    with pytest.raises(UserError, match=r"Did you mean .*bn_inception"):
        catalog.resolve("bninception")


@pytest.mark.parametrize(
    "options", [{"first": "5x5"}, {"project": 0}, {"bias": None}, {"epsilon": 0}, {"dropout": 1.0}]
)
def test_options_that_make_no_network_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        BNInceptionConfig(**options)
