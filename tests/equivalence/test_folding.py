"""Folded batch norm and folded normalisation: the same function, of every network, and nothing else is touched."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from networks.test_resnet import randomise_norms
from resnext import catalog
from resnext.data.preprocessing import Preprocessing
from resnext.equivalence.folding import PixelConvolution, flow, fold, fold_normalisation
from resnext.errors import UserError
from resnext.layers import ConvNorm
from resnext.networks.resnext import SummedBottleneck
from small import ALL, SMALL

# Networks that keep batch norms: those that read a sum, or open a child. How many: one for each unit that is not
# the first of its stage, one for each stage but the first (in WRNs that one too), and one in the head.
PREACTIVATED = {
    ("cifar_preact_resnet14", ()): 6,
    ("cifar_preact_resnet164", ("blocks",)): 3,
    ("preact_resnet200", ("blocks", "width", "final_survival")): 3,
    ("wrn_16_1", ()): 7,
    ("wrn_10_2_b131", ("final_survival",)): 4,
}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def small(name: str, options: dict[str, object]) -> tuple[nn.Module, int]:
    """Return a network that looks trained, in evaluation mode, and the side of images for it."""
    torch.manual_seed(1)
    network = catalog.create(name, num_classes=5, **options)
    randomise_norms(network)
    return network.eval(), max(32, network.smallest)


def largest_error(actual: Tensor, expected: Tensor) -> float:
    """Return the largest difference relative to the largest number."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def norms(network: nn.Module) -> list[str]:
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.BatchNorm2d) and not name.startswith("auxiliary")
    ]


@pytest.mark.parametrize(("name", "options"), ALL)
def test_folding_changes_no_output_and_no_feature(name: str, options: dict[str, object]) -> None:
    network, side = small(name, options)
    images = torch.randn(2, 3, side + 8, side, dtype=torch.float64)
    exact, folded = fold(copy.deepcopy(network).double()), fold(network)
    with torch.inference_mode():
        single = network.features(images.float())
        single_folded = folded.features(images.float())
        assert largest_error(single_folded["head"], single["head"]) <= 1e-4
        network.double()
        double, double_folded = network.features(images), exact.features(images)
        assert double.keys() == double_folded.keys() == single_folded.keys()
        for child, feature in double.items():
            assert largest_error(double_folded[child], feature) <= 1e-10, child
        assert largest_error(exact.dense(images), network.dense(images)) <= 1e-10
    assert len(norms(exact)) == PREACTIVATED.get((name, tuple(options)), 0)


@pytest.mark.parametrize(("name", "options"), [pairs[-1] for pairs in SMALL.values()])
def test_the_original_is_untouched(name: str, options: dict[str, object]) -> None:
    network, _ = small(name, options)
    network.train()
    before, kinds = copy.deepcopy(network.state_dict()), [type(module) for module in network.modules()]
    folded = fold(network)
    fold_normalisation(network, MEAN, STD)
    assert network.training
    assert [type(module) for module in network.modules()] == kinds
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert not any(module.training for module in folded.modules())
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    shared = {parameter.data_ptr() for parameter in network.parameters()}
    assert not shared & {parameter.data_ptr() for parameter in folded.parameters()}


@settings(max_examples=25, deadline=None)
@given(
    groups=st.integers(1, 3),
    rows=st.integers(1, 3),
    columns=st.integers(1, 3),
    kernel=st.sampled_from([1, 3, (1, 3)]),
    stride=st.integers(1, 2),
    bias=st.booleans(),
    affine=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_convolution_and_its_norm_are_one_convolution(
    groups: int, rows: int, columns: int, kernel: int, stride: int, bias: bool, affine: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    layers = ConvNorm(groups * columns, groups * rows, kernel, stride=stride, groups=groups, relu=False)
    layers.norm = nn.BatchNorm2d(groups * rows, affine=affine)
    if affine:
        randomise_norms(layers)
    layers.norm.running_var.uniform_(1e-3, 10)
    if bias:
        layers.conv.bias = nn.Parameter(torch.randn(groups * rows))
    layers.double().eval()
    images = torch.randn(2, groups * columns, 5, 6, dtype=torch.float64)
    folded = fold(layers)
    assert isinstance(folded.get_submodule("norm"), nn.Identity)
    torch.testing.assert_close(folded(images), layers(images), rtol=0, atol=1e-10)


def test_it_is_computed_in_float64_and_rounded_once() -> None:
    torch.manual_seed(2)
    layers = ConvNorm(7, 30, 3).eval()
    randomise_norms(layers)
    norm, weight = layers.norm, layers.conv.weight.double()
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    folded = fold(layers)
    torch.testing.assert_close(folded.conv.weight, (weight * scale.view(-1, 1, 1, 1)).float(), rtol=0, atol=0)
    expected = (norm.bias.double() - norm.running_mean.double() * scale).float()
    torch.testing.assert_close(folded.conv.bias, expected, rtol=0, atol=0)


def test_networks_may_run_in_other_threads_meanwhile() -> None:
    running, side = small("cifar_resnet8", {})
    network, _ = small("inception_v3", {})
    images, stopped, outputs = torch.randn(1, 3, side, side), threading.Event(), []

    def run() -> None:
        with torch.inference_mode():
            outputs.append(running(images))
            while not stopped.is_set():
                outputs.append(running(images))

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(run)
        for _ in range(3):
            flow(network)
        stopped.set()
        other.result()
    assert all(torch.equal(output, outputs[0]) for output in outputs)


class ReadTwice(nn.Module):
    """The norm's convolution is read elsewhere, too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        return self.norm(maps) + maps


class RunTwice(ReadTwice):
    """One convolution before the norm and elsewhere."""

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.conv(self.conv(images).relu()))


class NormTwice(ReadTwice):
    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.norm(self.conv(images)))


class OtherSum(ReadTwice):
    """The norm reads the sum of a convolution and the image."""

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.conv(images) + images)


class SumReadTwice(ReadTwice):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Conv2d(2, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        total = self.conv(images) + self.other(images)
        return self.norm(total) + total


class ReluBetween(ReadTwice):
    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.conv(images).relu())


class BatchStatistics(ReadTwice):
    """A norm without running statistics takes those of the batch at test."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(2, track_running_stats=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.conv(images))


@pytest.mark.parametrize("kind", [ReadTwice, RunTwice, NormTwice, OtherSum, SumReadTwice, ReluBetween, BatchStatistics])
def test_norms_that_cannot_be_folded_stay(kind: type[nn.Module]) -> None:
    torch.manual_seed(3)
    module = kind().double().eval()
    if kind is not BatchStatistics:
        randomise_norms(module)
    images = torch.randn(2, 2, 3, 3, dtype=torch.float64)
    folded = fold(module)
    assert norms(folded) == ["norm"]
    assert torch.equal(folded(images), module(images))


def test_a_norm_behind_a_sum_of_convolutions_goes_into_all_of_them() -> None:
    torch.manual_seed(4)
    block = SummedBottleneck(5, 6, width=9, cardinality=3, stride=2).double().eval()
    randomise_norms(block)
    images = torch.randn(2, 5, 7, 7, dtype=torch.float64)
    folded = fold(block)
    assert norms(folded) == []
    torch.testing.assert_close(folded(images), block(images), rtol=0, atol=1e-10)
    biases = [path.get_submodule("expand").bias for path in folded.paths.children()]
    assert [bias is not None for bias in biases] == [True, False, False], "the shift is added once"


@pytest.mark.parametrize(("name", "options"), [pairs[0] for pairs in SMALL.values()] + SMALL["resnext"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_enter_a_network_that_normalises_by_itself(name: str, options: dict[str, object], channels: int) -> None:
    torch.manual_seed(5)
    network = catalog.create(name, num_classes=5, in_channels=channels, **options).double().eval()
    randomise_norms(network)
    side = max(32, network.smallest)
    mean, std = MEAN[:channels], STD[:channels]
    pixels = torch.randint(0, 256, (2, channels, side + 3, side), dtype=torch.uint8)
    centre, unit = (torch.tensor(each, dtype=torch.float64).view(-1, 1, 1) for each in (mean, std))
    normalised = (pixels / torch.tensor(255.0, dtype=torch.float64) - centre) / unit
    takes_pixels = fold_normalisation(fold(network), mean, std)
    with torch.inference_mode():
        expected = network(normalised)
        for given_pixels in (pixels, pixels.double(), pixels.contiguous(memory_format=torch.channels_last)):
            assert largest_error(takes_pixels(given_pixels), expected) <= 1e-10
        assert takes_pixels.features(pixels).keys() == network.features(normalised).keys()


@settings(max_examples=40, deadline=None)
@given(
    kernel=st.integers(1, 5),
    padding=st.integers(0, 3),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    border=st.sampled_from(["zeros", "reflect"]),
    groups=st.sampled_from([1, 3]),
    bias=st.booleans(),
    height=st.integers(9, 12),
    with_image=st.booleans(),
    other_size=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_border_is_one_of_normalised_images(
    kernel: int,
    padding: int,
    stride: int,
    dilation: int,
    border: str,
    groups: int,
    bias: bool,
    height: int,
    with_image: bool,
    other_size: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    conv = nn.Conv2d(3, 6, kernel, stride, padding, dilation, groups, bias, border).double()
    image = random.random((height, 10, 3), np.float32) if with_image else None
    mean, std = random.uniform(0, 1, 3), random.uniform(0.05, 1, 3)
    pixels = random.integers(0, 256, (2, height + other_size, 10, 3), np.uint8)
    centre = mean if image is None or other_size else image.astype(np.float64)
    normalised = torch.from_numpy(((pixels / 255 - centre) / std).transpose(0, 3, 1, 2))
    mode = "constant" if border == "zeros" else border
    bordered = F.pad(normalised, (padding,) * 4, mode)
    expected = F.conv2d(bordered, conv.weight, conv.bias, stride, 0, dilation, groups)
    folded = PixelConvolution(copy.deepcopy(conv), mean.tolist(), std.tolist(), image)
    torch.testing.assert_close(folded(torch.from_numpy(pixels).permute(0, 3, 1, 2)), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("with_image", [False, True])
def test_it_is_the_preprocessing_s_normalisation(with_image: bool) -> None:
    network, side = small("cifar_resnext11_4x4d", {})
    random = np.random.default_rng(1)
    preprocessing = Preprocessing(image_size=side, resize=side)
    if with_image:
        preprocessing = preprocessing.with_mean_image(random.random((side, side, 3), np.float32))
    folded = fold_normalisation(network, preprocessing.mean, preprocessing.std, preprocessing.mean_image)
    for size in (side, side + 8):
        pixels = random.integers(0, 256, (3, size, size, 3), np.uint8)
        with torch.inference_mode():
            expected = network(torch.from_numpy(preprocessing.normalise(pixels)))
            actual = folded(torch.from_numpy(pixels).permute(0, 3, 1, 2))
        assert largest_error(actual, expected) <= 1e-4


class ThreeTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(self.conv(images))


class Halves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.one(images) + self.other(images)


@pytest.mark.parametrize(
    "network",
    [
        Halves(),
        nn.Sequential(nn.ReLU(), nn.Conv2d(3, 2, 1)),
        ThreeTwice(),
    ],
)
def test_other_beginnings_are_refused(network: nn.Module) -> None:
    with pytest.raises(UserError, match="first convolution") as caught:
        fold_normalisation(network, MEAN, STD)
    assert len(str(caught.value).splitlines()) <= 3
