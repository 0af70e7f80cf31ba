"""GoogLeNet against torchvision, against the paper's table and formulas written out, and its auxiliary classifiers."""

from __future__ import annotations

import math
import re

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from resnext import catalog
from resnext.complexity import describe
from resnext.errors import UserError
from resnext.networks.googlenet import AuxiliaryHead, ConvRelu, GoogLeNetConfig, parse

NAMES = ("googlenet", "googlenet_bn", "googlenet_torchvision")
NO_DROPOUT = {"dropout": 0.0, "auxiliary_dropout": 0.0}

# Table 1: #1×1, #3×3 reduce, #3×3, #5×5 reduce, #5×5, pool proj; maps out and their side; weights in units of 1024
# and operations in millions that these make (what the table prints is a little off, and rounded).
TABLE = {
    "3a": ((64, 96, 128, 16, 32, 32), (256, 28), 159.5, 128.0),
    "3b": ((128, 128, 192, 32, 96, 64), (480, 28), 379.0, 304.3),
    "4a": ((192, 96, 208, 16, 48, 64), (512, 14), 366.8, 73.6),
    "4b": ((160, 112, 224, 24, 64, 64), (512, 14), 438.0, 87.9),
    "4c": ((128, 128, 256, 24, 64, 64), (512, 14), 497.5, 99.9),
    "4d": ((112, 144, 288, 32, 64, 64), (528, 14), 590.5, 118.5),
    "4e": ((256, 160, 320, 32, 128, 128), (832, 14), 847.0, 170.0),
    "5a": ((256, 160, 320, 32, 128, 128), (832, 7), 1018.0, 51.1),
    "5b": ((384, 192, 384, 48, 128, 128), (1024, 7), 1409.0, 70.7),
}


def our_name(name: str) -> str:
    """Translate the name of a torchvision tensor."""
    for theirs, ours in (
        (r"^conv1\.", "stem.conv1."),
        (r"^conv2\.", "stem.reduce."),
        (r"^conv3\.", "stem.conv2."),
        (r"^fc\.", "head.fc."),
        (r"^aux1\.", "auxiliary.stage2_inception4a."),
        (r"^aux2\.", "auxiliary.stage2_inception4d."),
        (r"^(auxiliary\.\w+)\.conv\.", r"\1.reduce."),
        (r"\.fc1\.", ".hidden."),
        (r"\.fc2\.", ".fc."),
        (r"\.branch1\.", ".branch1x1."),
        (r"\.branch2\.", ".branch3x3."),
        (r"\.branch3\.", ".branch5x5."),
        (r"\.branch4\.1\.", ".branch_pool.project."),
        (r"\.0\.", ".reduce."),
        (r"\.1\.", ".spatial."),
        (r"\.bn\.", ".norm."),
    ):
        name = re.sub(theirs, ours, name)
    return re.sub(r"^inception(\d)", lambda found: f"stage{int(found[1]) - 2}.inception{found[1]}", name)


def twins() -> tuple[nn.Module, nn.Module]:
    """Return torchvision's network without dropout, with random weights and statistics, and ours with a copy."""
    torch.manual_seed(1)
    theirs = torchvision.models.googlenet(
        weights=None, init_weights=False, aux_logits=True, transform_input=False, dropout=0.0, dropout_aux=0.0
    ).double()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
    ours = catalog.create("googlenet_torchvision", **NO_DROPOUT).double()
    ours.load_state_dict({our_name(key): tensor for key, tensor in theirs.state_dict().items()}, strict=True)
    return theirs, ours


def assert_close(ours: Tensor, theirs: Tensor, part: str = "", *, tolerance: float = 1e-9) -> None:
    """Hold the largest difference to `tolerance` of the largest value."""
    assert theirs.abs().max() > 0, part
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max(), part


@pytest.mark.parametrize("size", [(224, 224), (75, 122)])
def test_logits_equal_torchvisions(size: tuple[int, int]) -> None:
    theirs, ours = twins()
    images = torch.randn(1, 3, *size, dtype=torch.float64)
    with torch.inference_mode():
        assert_close(ours.eval()(images), theirs.eval()(images))


@pytest.mark.parametrize("side", [224, 99])
def test_training_equals_torchvisions(side: int) -> None:
    """Batch statistics; logits of all three classifiers, gradients of the weighted sum of their losses."""
    theirs, ours = twins()
    images, labels = torch.randn(3, 3, side, side, dtype=torch.float64), torch.arange(3)
    expected = theirs.train()(images)
    weights, logits = zip(*ours.train().training_logits(images), strict=True)
    assert weights == (1.0, 0.3, 0.3)
    for mine, other in zip(logits, (expected.logits, expected.aux_logits1, expected.aux_logits2), strict=True):
        assert_close(mine.detach(), other.detach())
    sum(weight * F.cross_entropy(mine, labels) for weight, mine in zip(weights, logits, strict=True)).backward()
    loss = F.cross_entropy(expected.logits, labels)
    (loss + 0.3 * sum(F.cross_entropy(aux, labels) for aux in expected[1:])).backward()
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    assert len(gradients) == len(list(theirs.parameters()))
    for name, parameter in theirs.named_parameters():
        assert_close(gradients[our_name(name)], parameter.grad, name, tolerance=1e-7)
    buffers = dict(ours.named_buffers())
    for name, buffer in theirs.named_buffers():
        torch.testing.assert_close(buffers[our_name(name)], buffer)


def written_out(images: Tensor, weights: dict[str, Tensor]) -> list[Tensor]:
    """The paper's network as formulas: logits of the head and, for images of 224, of both auxiliary classifiers."""

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        kernels = weights[f"{name}.conv.weight"]
        return F.conv2d(x, kernels, weights[f"{name}.conv.bias"], stride, kernels.shape[-1] // 2).relu()

    def pool(x: Tensor) -> Tensor:
        """3×3 windows from every other pixel on, as long as they start inside; they may end outside."""
        return F.max_pool2d(F.pad(x, (0, 1 - x.shape[3] % 2, 0, 1 - x.shape[2] % 2), value=-math.inf), 3, 2)

    def response_norm(x: Tensor) -> Tensor:
        squares = F.pad(x.square(), (0, 0, 0, 0, 2, 2))
        return x / (2 + 1e-4 * sum(squares[:, i : i + x.shape[1]] for i in range(5))) ** 0.75

    def inception(x: Tensor, name: str) -> Tensor:
        largest = F.max_pool2d(F.pad(x, (1, 1, 1, 1), value=-math.inf), 3, 1)
        branches = [conv(x, f"{name}.branch1x1"), conv(largest, f"{name}.branch_pool.project")]
        for kernel, place in (("3x3", 1), ("5x5", 2)):
            branch = f"{name}.branch{kernel}"
            branches.insert(place, conv(conv(x, f"{branch}.reduce"), f"{branch}.spatial"))
        return torch.cat(branches, 1)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    x = response_norm(pool(conv(images, "stem.conv1", stride=2)))
    x = pool(response_norm(conv(conv(x, "stem.reduce"), "stem.conv2")))
    auxiliary = []
    for name in TABLE:
        x = pool(x) if name in ("4a", "5a") else x
        x = inception(x, f"stage{int(name[0]) - 2}.inception{name}")
        if name in ("4a", "4d") and images.shape[2:] == (224, 224):
            head = f"auxiliary.stage2_inception{name}"
            small = conv(F.avg_pool2d(x, 5, 3), f"{head}.reduce").reshape(len(x), -1)
            auxiliary.append(linear(linear(small, f"{head}.hidden").relu(), f"{head}.fc"))
    return [linear(x.mean((2, 3)), "head.fc"), *auxiliary]


@pytest.mark.parametrize("size", [(224, 224), (107, 66)])
def test_the_network_is_the_papers_formulas(size: tuple[int, int]) -> None:
    torch.manual_seed(2)
    network = catalog.create("googlenet", **NO_DROPOUT).double()
    images = 50 * torch.randn(1, 3, *size, dtype=torch.float64)  # so large that response normalisation acts
    with torch.no_grad():
        expected = written_out(images, network.state_dict())
        logits = [each for _, each in network.training_logits(images)]
    for mine, other in zip(logits, expected, strict=size == (224, 224)):
        assert_close(mine, other)


@pytest.mark.parametrize(
    ("name", "without", "with_auxiliary", "macs"),
    [
        ("googlenet", 6_998_552, 13_378_280, 1_582_671_872),
        ("googlenet_bn", 7_005_832, 13_385_816, 1_582_671_872),
        ("googlenet_torchvision", 6_624_904, 13_004_888, 1_498_376_192),
    ],
)
def test_costs(name: str, without: int, with_auxiliary: int, macs: int) -> None:
    told, bare = describe(name), describe(name, auxiliary=False)
    assert (told["parameters"], told["training_parameters"], told["macs"]) == (without, with_auxiliary, macs)
    assert (bare["parameters"], bare["training_parameters"], bare["macs"]) == (without, without, macs)
    first = told["layers"][0]  # a full 7×7
    assert first["parameters"] - (64 if name == "googlenet" else 0) == 9_408
    assert round(first["macs"] / 1e6, 1) == 118.0


@pytest.mark.parametrize("name", TABLE)
def test_a_module_is_its_row_of_table_1(name: str) -> None:
    widths, (maps, side), kilo, mega = TABLE[name]
    place = f"stage{int(name[0]) - 2}.inception{name}."
    layers = [layer for layer in describe("googlenet")["layers"] if layer["name"].startswith(place)]
    convolutions = [layer for layer in layers if layer["kind"] == "Conv2d"]
    assert tuple(layer["output"][0] for layer in convolutions) == widths
    assert {tuple(layer["output"][1:]) for layer in layers} == {(side, side)}
    assert widths[0] + widths[2] + widths[4] + widths[5] == maps
    weights = sum(layer["parameters"] - layer["output"][0] for layer in convolutions)
    assert round(weights / 1024, 1) == kilo
    assert round(sum(layer["macs"] for layer in convolutions) / 1e6, 1) == mega


@pytest.mark.parametrize("name", NAMES)
def test_shapes_by_module(name: str) -> None:
    with torch.device("meta"):
        network = catalog.create(name).eval()
        shapes: dict[str, tuple[int, ...]] = {}
        for key, module in network.named_modules():
            module.register_forward_hook(lambda _, __, out, key=key: shapes.__setitem__(key, tuple(out.shape[1:])))
        network(torch.empty(1, 3, 224, 224))
    assert shapes["stem.conv1"] == (64, 112, 112)
    assert shapes["stem.pool1"] == shapes["stem.reduce"] == (64, 56, 56)
    assert shapes["stem.conv2"] == (192, 56, 56)
    assert shapes["stem"] == (192, 28, 28)
    for module, (_, (maps, side), *_) in TABLE.items():
        assert shapes[f"stage{int(module[0]) - 2}.inception{module}"] == (maps, side, side)
    assert not any(key.startswith("auxiliary") for key in shapes)


@pytest.mark.parametrize("name", NAMES)
def test_22_layers_with_parameters_and_27_with_pools(name: str) -> None:
    told = describe(name)
    pools = [
        layer["name"]
        for layer in told["layers"]
        if layer["kind"] in ("MaxPool2d", "GlobalAveragePool") and "branch" not in layer["name"]
    ]
    assert pools == ["stem.pool1", "stem.pool2", "stage2.pool", "stage3.pool", "head.pool"]
    assert told["depth"] == 22
    assert told["depth"] + len(pools) == 27


@pytest.mark.parametrize("side", [32, 64, 160, 224, 300])
@pytest.mark.parametrize("name", NAMES)
def test_auxiliary_classifiers_read_4a_and_4d_of_any_image_size(name: str, side: int) -> None:
    with torch.device("meta"):
        network = catalog.create(name, num_classes=7)
        assert list(network.auxiliary) == ["stage2_inception4a", "stage2_inception4d"]
        assert [head.hidden.in_features for head in network.auxiliary.values()] == [2048, 2048]
        assert [head.reduce.conv.in_channels for head in network.auxiliary.values()] == [512, 528]
        losses = network.training_logits(torch.empty(2, 3, side, side))
    assert [(weight, logits.shape) for weight, logits in losses] == [(weight, (2, 7)) for weight in (1.0, 0.3, 0.3)]


def test_auxiliary_classifiers_bring_other_maps_to_the_published_size() -> None:
    torch.manual_seed(3)
    head = AuxiliaryHead(6, 5, conv=ConvRelu, pool="5x5", dropout=0.0)
    maps = torch.randn(2, 6, 14, 14)
    torch.testing.assert_close(head(maps.repeat_interleave(2, 2).repeat_interleave(2, 3)), head(maps))


@pytest.mark.parametrize("name", NAMES)
def test_without_auxiliary_classifiers_the_logits_are_the_same(name: str) -> None:
    torch.manual_seed(4)
    network = catalog.create(name, num_classes=10).eval()
    bare = catalog.create(name, num_classes=10, auxiliary=False).eval()
    missing, unexpected = bare.load_state_dict(network.state_dict(), strict=False)
    assert not missing
    assert {key.split(".")[0] for key in unexpected} == {"auxiliary"}
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(bare(images), network(images))
        assert [weight for weight, _ in bare.training_logits(images)] == [1.0]


@pytest.mark.parametrize(
    ("name", "dropout"), [("googlenet", 0.4), ("googlenet_bn", 0.4), ("googlenet_torchvision", 0.2)]
)
def test_dropout_is_the_published_one_and_can_be_left_out(name: str, dropout: float) -> None:
    def found(**options: float) -> dict[str, float]:
        with torch.device("meta"):
            network = catalog.create(name, **options)
        return {key: module.p for key, module in network.named_modules() if isinstance(module, nn.Dropout)}

    auxiliary = {f"auxiliary.stage2_inception{module}.dropout": 0.7 for module in ("4a", "4d")}
    assert found() == {"head.dropout": dropout, **auxiliary}
    assert found(**NO_DROPOUT) == {}


def test_fresh_weights_are_uniform_by_fan_in_and_rectifiers_open() -> None:
    torch.manual_seed(5)
    network = catalog.create("googlenet")
    layers = {key: part for key, part in network.named_modules() if isinstance(part, nn.Conv2d | nn.Linear)}
    assert len(layers) == 3 + 9 * 6 + 1 + 2 * 3
    for key, layer in layers.items():
        weight, bias = layer.weight.detach(), layer.bias.detach()
        bound, n = math.sqrt(3 / math.prod(weight.shape[1:])), weight.numel()
        assert 1 - 20 / n < weight.abs().max() / bound <= 1 + 1e-6, key
        assert abs(weight.std() * math.sqrt(3) / bound - 1) < 5 / math.sqrt(n), key
        classifies = key in ("head.fc", *(f"auxiliary.stage2_inception{module}.fc" for module in ("4a", "4d")))
        assert torch.equal(bias, torch.full_like(bias, 0.0 if classifies else 0.2)), key


@pytest.mark.parametrize("name", NAMES)
def test_the_smallest_image_leaves_one_place_before_the_head(name: str) -> None:
    with torch.device("meta"):
        network = catalog.create(name)
        images = torch.empty(2, 3, network.smallest, network.smallest)
        assert network.features(images)["stage3"].shape == (2, 1024, 1, 1)
        assert len(network.training_logits(images)) == 3
    with pytest.raises(UserError, match="32 or more"):
        describe(name, image_size=network.smallest - 1)


def test_inception_v1_is_answered_with_the_names_it_may_mean() -> None:
    assert parse("googlenet_v2") is None
    with pytest.raises(UserError, match=r"'googlenet'.*'googlenet_bn'.*'googlenet_torchvision'"):
        catalog.resolve("inception_v1")


@pytest.mark.parametrize(
    "options",
    [
        {"batch_norm": "yes"},
        {"large_kernel": 5},
        {"last_pool": "1x1"},
        {"auxiliary": None},
        {"auxiliary_pool": "6x6"},
        {"dropout": 1},
        {"dropout": True},
        {"auxiliary_weight": 0.0},
        {"auxiliary_weight": math.nan},
        {"epsilon": -1e-3},
    ],
)
def test_options_that_make_no_network_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        GoogLeNetConfig(**options)
    with pytest.raises(UserError):
        GoogLeNetConfig(auxiliary_dropout=1.5)
