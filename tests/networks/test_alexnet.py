"""AlexNet against its formulas written out for two GPUs, against torchvision's, and against the paper's numbers."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from resnext import catalog
from resnext.complexity import count, describe
from resnext.errors import UserError
from resnext.layers import LocalResponseNorm
from resnext.networks.alexnet import parse

NAMES = ("alexnet", "alexnet_ungrouped", "alexnet_one_tower")
SMALL = {"channels": (8, 12, 16, 20, 24), "hidden": 40}


def meta(name: str, **options: object) -> nn.Module:
    with torch.device("meta"):
        return catalog.create(name, **options)


def normalised(x: Tensor) -> Tensor:
    """Section 3.3, channel by channel: b_i = a_i / (2 + 1e-4·Σ a_j²)^0.75, j from i − 2 to i + 2 and no further."""
    channels = x.shape[1]
    sums = [x[:, max(0, i - 2) : min(channels, i + 3)].square().sum(1) for i in range(channels)]
    return x / (2 + 1e-4 * torch.stack(sums, dim=1)) ** 0.75


def written_out(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """The paper's network in evaluation, with a tower on either GPU."""

    def conv(x: Tensor, name: str, **options: int) -> Tensor:
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], **options).relu()

    def two_towers(x: Tensor, name: str, padding: int) -> Tensor:
        kernels, biases = weights[f"{name}.weight"].chunk(2), weights[f"{name}.bias"].chunk(2)
        towers = zip(x.chunk(2, dim=1), kernels, biases, strict=True)
        return torch.cat([F.conv2d(half, *tensors, padding=padding).relu() for half, *tensors in towers], dim=1)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    x = conv(F.pad(x, (2, 2, 2, 2)), "stem.conv1", stride=4)
    x = F.max_pool2d(normalised(x), 3, 2)
    x = F.max_pool2d(normalised(two_towers(x, "stage1.conv2", 2)), 3, 2)
    x = conv(x, "stage2.conv3", padding=1)
    x = two_towers(two_towers(x, "stage2.conv4", 1), "stage2.conv5", 1)
    x = F.max_pool2d(x, 3, 2).flatten(1)
    return linear(linear(linear(x, "head.fc6").relu(), "head.fc7").relu(), "head.fc8")


def randomise(network: nn.Module) -> None:
    """Give weights the scale that keeps activations alive, and biases values that are told apart."""
    for parameter in network.parameters():
        fan = parameter[0].numel() if parameter.ndim > 1 else 10
        nn.init.normal_(parameter, std=math.sqrt(2 / fan))


def test_the_network_is_the_papers_formulas() -> None:
    torch.manual_seed(1)
    network = catalog.create("alexnet", num_classes=7, **SMALL).eval()
    randomise(network)
    images = 50 * torch.randn(2, 3, 224, 224)  # of the size of the paper's pixels, for which its LRN was made
    parameters = dict(network.named_parameters())
    ours, theirs = network(images), written_out(images, parameters)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item())
    direction = torch.randn_like(ours)
    gradients = [torch.autograd.grad((y * direction).sum(), list(parameters.values())) for y in (ours, theirs)]
    for name, gradient, expected in zip(parameters, *gradients, strict=True):
        assert (gradient - expected).abs().max() <= 1e-4 * expected.abs().max(), name


@pytest.mark.parametrize("training", [False, True])
def test_one_tower_is_torchvisions_with_its_weights_its_dropout_and_its_seed(training: bool) -> None:
    networks = []
    for create in (lambda: torchvision.models.alexnet(weights=None), lambda: catalog.create("alexnet_one_tower")):
        torch.manual_seed(2)
        networks.append(create().train(training))
    theirs, ours = networks
    parameters = [list(network.parameters()) for network in (ours, theirs)]
    assert all(torch.equal(mine, other) for mine, other in zip(*parameters, strict=True))
    images = torch.randn(2, 3, 95, 127)
    results = []
    for network, tensors in zip((ours, theirs), parameters, strict=True):
        torch.manual_seed(3)
        logits = network(images)
        results.append((logits.detach(), torch.autograd.grad(logits.logsumexp(1).sum(), tensors)))
    (logits, gradients), (expected, their_gradients) = results
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()
    for gradient, other in zip(gradients, their_gradients, strict=True):
        assert (gradient - other).abs().max() <= 1e-4 * other.abs().max()


def test_one_tower_costs_what_torchvision_publishes() -> None:
    published = torchvision.models.AlexNet_Weights.DEFAULT.meta
    [row] = catalog.rows("alexnet_one_tower")
    assert row["parameters"] == published["num_params"]
    assert round(int(str(row["macs"])) / 1e9, 3) == published["_ops"]


def test_layers_have_the_papers_neurons_kernels_and_depth() -> None:
    told = describe("alexnet")
    neurons = [math.prod(layer["output"]) for layer in told["layers"] if layer["kind"] in ("Conv2d", "Linear")]
    assert neurons == [290_400, 186_624, 64_896, 64_896, 43_264, 4096, 4096, 1000]
    shapes = [tuple(parameter.shape) for parameter in meta("alexnet").parameters() if parameter.ndim > 1]
    assert shapes == [
        (96, 3, 11, 11),
        (256, 48, 5, 5),
        (384, 256, 3, 3),
        (384, 192, 3, 3),
        (256, 192, 3, 3),
        (4096, 6 * 6 * 256),
        (4096, 4096),
        (1000, 4096),
    ]
    outputs = {layer["name"]: layer["output"][1:] for layer in told["layers"]}
    assert [outputs[f"{name}"] for name in ("stem.pool1", "stage1.pool2", "stage2.pool5")] == [
        [27, 27],
        [13, 13],
        [6, 6],
    ]
    assert all(describe(name)["depth"] == 8 for name in NAMES)


def test_227_pixels_without_padding_are_224_with() -> None:
    """The two readings of the paper's input, which is too small for its own maps."""
    without = meta("alexnet")
    without.stem.conv1.padding = (0, 0)
    padded, unpadded = count(meta("alexnet"), 224), count(without, 227)
    assert [stage.output for stage in padded.stages] == [stage.output for stage in unpadded.stages]
    assert (padded.parameters, padded.macs) == (unpadded.parameters, unpadded.macs)


def reached(layer: nn.Module, channels: int, outputs: slice) -> list[bool]:
    """Return which input channels of a convolution move the outputs in question."""
    images = torch.randn(1, channels, 9, 9, requires_grad=True)
    [gradient] = torch.autograd.grad(layer(images)[:, outputs].sum(), images)
    return (gradient.abs().sum((0, 2, 3)) > 0).tolist()


def test_only_conv2_conv4_and_conv5_are_split_over_two_gpus() -> None:
    torch.manual_seed(4)
    network = catalog.create("alexnet", **SMALL)
    ungrouped = catalog.create("alexnet_ungrouped", **SMALL)
    for name, channels, out, is_split in (
        ("stage1.conv2", 8, 12, True),
        ("stage2.conv3", 12, 16, False),
        ("stage2.conv4", 16, 20, True),
        ("stage2.conv5", 20, 24, True),
    ):
        first = [True] * (channels // 2) + [False] * (channels // 2)
        for outputs, halves in ((slice(0, out // 2), first), (slice(out // 2, out), first[::-1])):
            expected = halves if is_split else [True] * channels
            assert reached(network.get_submodule(name), channels, outputs) == expected, name
            assert all(reached(ungrouped.get_submodule(name), channels, outputs)), name
    assert network.head.fc6.in_features == 24 * 6 * 6


def test_normalisation_is_the_papers_and_ends_with_the_channels() -> None:
    out = LocalResponseNorm()(torch.full((2, 96, 3, 4), 100.0))
    expected = torch.full((96,), 23.2368)
    for place, neighbours in ((0, 3), (1, 4)):  # channels within reach, itself among them
        expected[place] = expected[-1 - place] = 100 / (2 + 1e-4 * neighbours * 100**2) ** 0.75
    torch.testing.assert_close(out, expected.view(1, 96, 1, 1).expand_as(out), rtol=1e-6, atol=1e-4)
    norms = [name for name, module in meta("alexnet").named_modules() if isinstance(module, LocalResponseNorm)]
    assert norms == ["stem.norm1", "stage1.norm2"]
    assert not any(isinstance(module, LocalResponseNorm) for module in meta("alexnet_one_tower").modules())


def test_fresh_weights_and_biases_are_the_papers() -> None:
    torch.manual_seed(5)
    network = catalog.create("alexnet")
    ones = {"stage1.conv2", "stage2.conv4", "stage2.conv5", "head.fc6", "head.fc7"}
    layers = {name: module for name, module in network.named_modules() if hasattr(module, "weight")}
    assert len(layers) == 8
    for name, layer in layers.items():
        assert torch.equal(layer.bias, torch.full_like(layer.bias, float(name in ones))), name
        n = layer.weight.numel()
        assert abs(layer.weight.std().item() / 0.01 - 1) < 5 / math.sqrt(2 * n), name
        assert abs(layer.weight.mean().item()) < 5 * 0.01 / math.sqrt(n), name


def test_dropout_falls_on_what_the_hidden_layers_put_out() -> None:
    torch.manual_seed(6)
    network = catalog.create("alexnet", channels=(8,) * 5, hidden=3000)
    entering, leaving = {}, {}

    def watch(name: str) -> None:
        layer = network.get_submodule(f"head.{name}")
        layer.register_forward_hook(
            lambda _, inputs, output: (entering.update({name: inputs[0]}), leaving.update({name: output}), None)[-1]
        )

    for name in ("fc6", "relu6", "fc7", "relu7", "fc8"):
        watch(name)
    features = network.features(torch.randn(2, 3, 224, 224))
    assert torch.equal(entering["fc6"], features["stage2"].flatten(1))
    for hidden, following in (("relu6", "fc7"), ("relu7", "fc8")):
        alive, given = leaving[hidden] > 0, entering[following]
        kept = given != 0
        assert abs(kept[alive].float().mean().item() - 0.5) < 0.05
        assert torch.equal(given[kept], 2 * leaving[hidden][kept])
    without = catalog.create("alexnet", **SMALL, dropout=0.0)
    assert not any(isinstance(module, nn.Dropout) for module in without.modules())


@pytest.mark.parametrize("name", ["alexnet", "alexnet_one_tower"])
def test_dense_is_the_head_slid_over_a_larger_map(name: str) -> None:
    torch.manual_seed(7)
    network = catalog.create(name, num_classes=5, **SMALL).eval()
    randomise(network)
    with torch.inference_mode():
        images = torch.randn(2, 3, 288, 256)
        maps = network.features(images)["stage2"]
        assert maps.shape[2:] == (8, 7)
        crops = [network.head(maps[:, :, y : y + 6, x : x + 6]) for y in range(3) for x in range(2)]
        torch.testing.assert_close(network.dense(images), torch.stack(crops).mean(0), rtol=1e-4, atol=1e-4)
        published, small = images[:, :, :224, :224], images[:, :, :95, :224]
        torch.testing.assert_close(network.dense(published), network(published), rtol=1e-4, atol=1e-4)
        assert torch.equal(network.dense(small), network(small))


def test_63_pixels_are_the_smallest_image() -> None:
    network = meta("alexnet", **SMALL)
    assert network.smallest == 63
    assert count(network, 63).stages[-2].output == (24, 1, 1)
    with pytest.raises(RuntimeError):
        network(torch.empty(1, 3, 62, 62, device="meta"))
    with pytest.raises(UserError, match="63 or more"):
        count(network, 62)


def test_nothing_is_drawn_on_the_meta_device() -> None:
    """Drawing there makes torch import its compiler, which takes a second."""
    code = (
        "import sys, torch; from resnext import catalog; torch.set_default_device('meta');"
        "[catalog.create(name) for name in (*catalog.names('alexnet*'), *catalog.names('vgg*'))];"
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


@pytest.mark.parametrize(
    "options",
    [
        {"channels": (96, 256, 384, 384)},
        {"channels": (96, 256, 384, 384, 255)},
        {"groups": 5},
        {"groups": 0},
        {"hidden": 0},
        {"response_norm": "no"},
        {"dropout": 1.0},
        {"dropout": True},
        {"dropout": "half"},
        {"dropout_at": "fc6"},
        {"initialisation": "he"},
    ],
)
def test_options_that_make_no_network_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        catalog.create("alexnet", **options)


def test_there_is_no_grammar_beyond_the_table() -> None:
    assert [parse(name) for name in (*NAMES, "alexnet2")] == [None] * 4
    with pytest.raises(UserError, match=r"Did you mean .*alexnet"):
        catalog.resolve("alexnet2")
