"""Parameters, multiply-adds, activations, depth: of every listed network, of the papers, of torchvision."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from importlib import import_module

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from resnext import catalog
from resnext.cli import run
from resnext.complexity import count, describe
from resnext.errors import UserError

# Convolutions and linear layers on the longest path, where the name does not say it: the papers' counts for AlexNet
# and GoogLeNet; for the others the longest branch of each module, added up by hand from the figures.
DEPTHS = {
    "alexnet": 8,
    "alexnet_ungrouped": 8,
    "alexnet_one_tower": 8,
    "googlenet": 22,
    "googlenet_bn": 22,
    "googlenet_torchvision": 22,
    "bn_inception": 3 + 10 * 3 + 1,
    "bn_inception_slim": 4 + 10 * 3 + 1,
    "inception_v2": 6 + 2 * 3 + 3 + 4 * 5 + 4 + 2 * 3 + 1,
    "inception_v3": 5 + 3 * 3 + 3 + 4 * 5 + 4 + 2 * 3 + 1,
    "inception_v3_torchvision": 5 + 3 * 3 + 3 + 4 * 5 + 4 + 2 * 3 + 1,
    "inception_v4": 9 + 4 * 3 + 3 + 7 * 5 + 4 + 3 * 4 + 1,
    "inception_resnet_v1": 6 + 5 * 4 + 3 + 10 * 4 + 3 + 5 * 4 + 1,
    "inception_resnet_v1_facenet": 6 + 5 * 4 + 3 + 10 * 4 + 3 + 6 * 4 + 1,
    "inception_resnet_v2": 5 + 3 + 10 * 4 + 3 + 20 * 4 + 3 + 10 * 4 + 1 + 1,
    "inception_resnet_v2_paper": 9 + 5 * 4 + 3 + 10 * 4 + 3 + 5 * 4 + 1,
}


def depth_of(name: str) -> int:
    """Return the layers that a name stands for; every name must have them."""
    if name in DEPTHS:
        return DEPTHS[name]
    if wide := re.fullmatch(r"wrn_(\d+)_\d+(?:_b(\d+)|_l(\d))?", name):
        convolutions = int(wide[3] or len(wide[2] or "33"))
        step = 3 * convolutions if wide[3] else 6
        # n counts the three projections as well, and not the linear layer.
        return 3 * convolutions * ((int(wide[1]) - 4) // step) + 2
    depth = re.match(r"(?:cifar_)?(?:preact_|wide_)?(?:resnet|resnext|plain|vgg)(\d+)", name)
    assert depth is not None, name
    return int(depth[1])


@pytest.mark.parametrize("name", catalog.names())
def test_a_row_of_the_table_is_what_the_network_measures(name: str) -> None:
    variant = catalog.resolve(name).variant
    assert variant is not None
    told = describe(name)
    assert told["parameters"] == variant.parameters
    assert told["training_parameters"] == (variant.training_parameters or variant.parameters)
    assert told["macs"] == variant.macs
    stages = {stage["name"]: tuple(stage["output"]) for stage in told["stages"]}
    assert [shape for stage, shape in stages.items() if stage.startswith("stage")] == list(variant.stages)
    assert stages["head"] == (variant.num_classes,)
    for unit in ("parameters", "macs", "activations"):
        assert sum(stage[unit] for stage in told["stages"]) == told[unit]
        assert sum(layer[unit] for layer in told["layers"]) == told[unit]
    assert told["depth"] == depth_of(name)


@pytest.mark.parametrize("name", [name for name in catalog.names() if not re.search(r"1001|1202", name)])
def test_torchs_own_counter_counts_and_shapes_the_same(name: str) -> None:
    """FlopCounterMode with every operator as torch's meta device runs it."""
    found = catalog.resolve(name)
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as flops:
        network = catalog.create(name).eval()
        features = network.features(torch.empty(1, 3, found.image_size, found.image_size))
    told = describe(name)
    assert 2 * told["macs"] == flops.get_total_flops()
    assert {stage["name"]: stage["output"] for stage in told["stages"]} == {
        child: list(feature.shape[1:]) for child, feature in features.items()
    }


def test_describing_imports_no_compiler() -> None:
    """It takes torch a second, and describing is to be quick: every kind of network keeps away from it."""
    first = [min(import_module(module).VARIANTS) for module in catalog._modules()]
    code = (
        "import sys; from resnext import describe\n"
        f"for name in {first}:\n    describe(name); assert 'torch._dynamo' not in sys.modules, name"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("resnet18", "ResNet18_Weights"),
        ("resnet34", "ResNet34_Weights"),
        ("resnet50", "ResNet50_Weights"),
        ("resnet101", "ResNet101_Weights"),
        ("resnet152", "ResNet152_Weights"),
        ("resnext50_32x4d", "ResNeXt50_32X4D_Weights"),
        ("resnext101_32x8d", "ResNeXt101_32X8D_Weights"),
        ("resnext101_64x4d", "ResNeXt101_64X4D_Weights"),
    ],
)
def test_torchvision_publishes_the_same_costs(name: str, weights: str) -> None:
    meta = getattr(torchvision.models, weights).DEFAULT.meta
    [row] = catalog.rows(name)
    assert row["parameters"] == meta["num_params"]
    assert round(int(str(row["macs"])) / 1e9, 3) == meta["_ops"]


# Name, parameters in millions, multiply-adds in billions, as printed; None: not printed.
PRINTED = [
    ("resnet18", None, 1.8),  # arXiv:1512.03385 Table 1
    ("resnet34", None, 3.6),
    ("resnet18_a", None, 1.8),
    ("resnet34_a", None, 3.6),
    ("resnet50_v1", None, 3.8),
    ("resnet101_v1", None, 7.6),
    ("resnet152_v1", None, 11.3),
    ("cifar_resnet20", 0.27, None),  # Table 6
    ("cifar_resnet32", 0.46, None),
    ("cifar_resnet44", 0.66, None),
    ("cifar_resnet56", 0.85, None),
    ("cifar_resnet110", 1.7, None),
    ("cifar_resnet1202", 19.4, None),
    ("resnext50_32x4d", 25.0, 4.2),  # arXiv:1611.05431 Table 1
    ("resnet50", 25.5, 4.1),
    ("cifar_resnext29_8x64d", 34.4, None),  # Table 7
    ("cifar_resnext29_16x64d", 68.1, None),
]


@pytest.mark.parametrize(("name", "millions", "billions"), PRINTED)
def test_the_papers_print_the_same_costs(name: str, millions: float | None, billions: float | None) -> None:
    """Papers round or cut off the digits that they do not print."""
    [row] = catalog.rows(name)
    for value, printed, unit in ((row["parameters"], millions, 1e6), (row["macs"], billions, 1e9)):
        if printed is not None:
            digits = len(str(printed).partition(".")[2])
            assert -0.5 <= (int(str(value)) / unit - printed) * 10**digits < 1


# Derived from the layer tables elsewhere, in billions and to the digits given.
DERIVED = {
    "resnext50_2x40d": 4.125,
    "resnext50_4x24d": 4.160,
    "resnext50_8x14d": 4.267,
    "resnext101_2x40d": 7.844,
    "resnext101_4x24d": 7.886,
    "resnext101_8x14d": 8.077,
    "cifar_resnext29_8x64d": 5.387,
    "cifar_resnext29_16x64d": 10.689,
    "cifar_resnet20": 0.0406,
    "cifar_resnet32": 0.0689,
    "cifar_resnet44": 0.0972,
    "cifar_resnet56": 0.1255,
    "cifar_resnet110": 0.2529,
    "cifar_resnet1202": 2.8292,
}


@pytest.mark.parametrize(("name", "billions"), DERIVED.items())
def test_multiply_adds_agree_with_the_rounded_ones(name: str, billions: float) -> None:
    [row] = catalog.rows(name)
    digits = 4 if name.startswith("cifar_resnet") and "x" not in name else 3
    assert round(int(str(row["macs"])) / 1e9, digits) == billions


@pytest.mark.parametrize(
    ("name", "options", "parameters"),
    [
        ("cifar_resnet20", {"shortcut": "B"}, 272_474),
        ("cifar_resnet56", {"shortcut": "B"}, 855_770),
        ("cifar_resnet110", {"shortcut": "B"}, 1_730_714),
        ("cifar_resnet110", {"num_classes": 100}, 1_733_812),
        ("cifar_resnet152", {}, 2_408_474),
        ("resnet34", {"shortcut": "C"}, 22_716_840),
        ("resnet50", {"shortcut": "none"}, 22_780_456),
        ("resnext50_32x4d", {"shortcut": "none"}, 22_252_328),
        ("resnext101_1x100d", {}, 85_611_336),
        ("resnext50_1x64d", {}, 25_557_032),
        ("cifar_resnext29_8x64d", {"num_classes": 100}, 34_518_948),
        ("cifar_resnext29_16x64d", {"num_classes": 100}, 68_247_460),
    ],
)
def test_options_and_unlisted_names_cost_what_they_should(
    name: str, options: dict[str, object], parameters: int
) -> None:
    assert describe(name, **options)["parameters"] == parameters


@pytest.mark.parametrize(
    ("name", "options", "macs"),
    [
        ("resnet50", {"stride_in": "1x1"}, 3_857_973_248),
        ("resnext101_1x100d", {}, 15_272_862_720),
        ("resnet50", {"shortcut": "none"}, 3.730e9),
        ("resnext50_32x4d", {"shortcut": "none"}, 3.871e9),
    ],
)
def test_options_and_unlisted_names_compute_what_they_should(
    name: str, options: dict[str, object], macs: float
) -> None:
    told = describe(name, **options)["macs"]
    assert told == macs if isinstance(macs, int) else round(told / 1e6) == round(macs / 1e6)


@pytest.mark.parametrize(("name", "body", "features"), [("resnet18", 11_176_512, 512), ("resnet50", 23_508_032, 2048)])
def test_another_number_of_classes_changes_the_classifier_only(name: str, body: int, features: int) -> None:
    told = describe(name, num_classes=10)
    assert told["parameters"] == body + 10 * features + 10
    assert told["stages"][-1]["output"] == [10]


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("resnet18", 4800),
        ("resnet34", 8512),
        ("resnet50", 26_560),
        ("resnet101", 52_672),
        ("resnet152", 75_712),
    ],
)
def test_layers_list_the_batch_norms(name: str, channels: int) -> None:
    norms = [layer for layer in describe(name)["layers"] if layer["kind"] == "BatchNorm2d"]
    assert sum(layer["output"][0] for layer in norms) == channels
    assert sum(layer["parameters"] for layer in norms) == 2 * channels


def test_describe_is_ready_for_json_and_says_what_was_asked() -> None:
    told = describe("resnet18", image_size=64, in_channels=1, num_classes=3)
    assert json.loads(json.dumps(told)) == told
    assert (told["name"], told["paper"], told["image_size"]) == ("resnet18", "arXiv:1512.03385 Table 1", 64)
    assert told["layers"][0] == {
        "name": "stem.conv",
        "kind": "Conv2d",
        "output": [64, 32, 32],
        "parameters": 49 * 64,
        "macs": 49 * 64 * 32**2,
        "activations": 64 * 32**2,
    }
    assert told["layers"][1]["activations"] == 0
    assert told["stages"][0]["activations"] == 64 * 32**2
    assert told["stages"][0]["output"] == [64, 16, 16]


def test_twice_the_side_costs_four_times_the_multiply_adds_of_the_convolutions() -> None:
    small, large = describe("resnet18", image_size=64), describe("resnet18", image_size=128)
    fc = 512 * 1000
    assert large["macs"] - fc == 4 * (small["macs"] - fc)
    assert large["activations"] == 4 * small["activations"]
    assert large["parameters"] == small["parameters"]


@pytest.mark.parametrize(("name", "size"), [("resnet50", 31), ("cifar_resnet20", 3), ("resnext50_32x4d", 0)])
def test_an_image_smaller_than_the_stride_is_refused(name: str, size: int) -> None:
    with pytest.raises(UserError, match="too small"):
        describe(name, image_size=size)
    stride = 4 if name.startswith("cifar") else 32
    assert describe(name, image_size=stride)["stages"][-2]["output"][1:] == [1, 1]


class Branches(nn.Module):
    """Costs known by heart: two convolutions on one side, one on the other, a head, and a head not used."""

    def __init__(self) -> None:
        super().__init__()
        self.long = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, groups=2))
        self.short = nn.Conv2d(2, 4, 1, bias=False)
        self.head = nn.Linear(8, 5)
        self.auxiliary = nn.Linear(8, 7)

    def forward(self, images: Tensor) -> Tensor:
        joined = torch.cat([self.long(images), self.short(images)], dim=1)
        return self.head(joined.mean((2, 3)))


def test_count_follows_branches_and_leaves_out_what_does_not_run() -> None:
    cost = count(Branches(), 6, in_channels=2)
    long, grouped, short, head = 9 * 2 * 4, 9 * 2 * 4, 2 * 4, 8 * 5
    assert cost.parameters == (long + 4) + (grouped + 4) + short + (head + 5)
    assert cost.training_parameters == cost.parameters + 8 * 7 + 7
    assert cost.macs == 36 * (long + grouped + short) + head
    assert cost.depth == 3
    assert cost.activations == 36 * (4 + 4 + 4)
    assert [stage.name for stage in cost.stages] == ["long", "short", "head"]
    assert [(layer.name, layer.macs, layer.activations) for layer in cost.layers] == [
        ("long.0", 36 * long, 36 * 4),
        ("long.1", 0, 0),
        ("long.2", 36 * grouped, 36 * 4),
        ("short", 36 * short, 36 * 4),
        ("head", head, 0),
    ]


class Twice(nn.Module):
    """One convolution that runs twice, at two sizes, and a linear layer over the last axis."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2))
        self.head = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        twice = torch.relu(self.body(self.body(images)) + 1.0)
        return self.head(twice).mean((1, 2))


def test_a_layer_that_runs_twice_has_its_parameters_once_and_its_work_twice() -> None:
    cost = count(Twice(), 8, in_channels=2)
    convolution, _, head = cost.layers
    assert (convolution.parameters, convolution.macs) == (9 * 4 + 2, 9 * 4 * (36 + 16))
    assert (convolution.output, convolution.activations) == ((2, 4, 4), 2 * (36 + 16))
    assert (head.output, head.macs) == ((2, 4, 3), 2 * 4 * 4 * 3)
    assert (cost.depth, cost.macs) == (3, convolution.macs + head.macs)
    assert [stage.name for stage in cost.stages] == ["body", "head"]


def test_count_leaves_the_network_as_it_was() -> None:
    network = Branches().train()
    network.long.eval()
    before = copy.deepcopy(network.state_dict())
    count(network, 6, in_channels=2)
    assert (network.training, network.long.training, network.head.training) == (True, False, True)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(parameter.device.type == "cpu" and parameter.requires_grad for parameter in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())


def table(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[list[list[str]], str]:
    """Run a command, and return its lines, each cut where there are two spaces or more, and what went to stderr."""
    assert run(list(arguments)) == 0
    out, err = capfd.readouterr()
    return [re.split(r"\s{2,}", line.strip()) for line in out.splitlines()], err


def test_the_command_shows_stages_and_on_request_layers(capfd: pytest.CaptureFixture[str]) -> None:
    sizes = ("--image-size", "64", "--classes", "7", "--channels", "1")
    told = describe("resnet18", image_size=64, num_classes=7, in_channels=1)

    def rows(costs: list[dict[str, object]], *keys: str) -> list[list[str]]:
        return [
            [*(str(each[key]) for key in keys), "×".join(map(str, each["output"]))]
            + [f"{each[key]:,}" for key in ("parameters", "macs", "activations")]
            for each in costs
        ]

    stages, layers = rows(told["stages"], "name"), rows(told["layers"], "name", "kind")
    lines, _ = table(capfd, "describe", "resnet18", *sizes)
    assert lines[-len(stages) :] == stages
    lines, _ = table(capfd, "describe", "resnet18", *sizes, "--layers")
    assert lines[-len(layers) :] == layers
    assert lines[-len(layers) - 1] == ["layer", "kind", "output", "parameters", "multiply-adds", "activations"]
    assert layers[0] == ["stem.conv", "Conv2d", "64×32×32", "3,136", "3,211,264", "65,536"]


def test_the_commands_tell_of_auxiliary_heads_where_there_are_some(capfd: pytest.CaptureFixture[str]) -> None:
    lines, _ = table(capfd, "describe", "googlenet")
    assert ["13,378,280 parameters in training, with the auxiliary heads"] in lines
    lines, _ = table(capfd, "describe", "resnet18")
    assert not any("in training" in line[0] for line in lines)
    lines, _ = table(capfd, "networks", "resnet18")
    assert [line[0] for line in lines] == ["name", "resnet18"]
    assert "in training" not in lines[0]
    lines, _ = table(capfd, "networks", "google*")
    assert lines[0][1:4] == ["parameters", "in training", "multiply-adds"]
    assert lines[1][:4] == ["googlenet", "6,998,552", "13,378,280", "1,582,671,872"]


def test_a_pattern_that_nothing_fits_gives_an_empty_list(capfd: pytest.CaptureFixture[str]) -> None:
    assert table(capfd, "networks", "nothing*", "--json") == ([["[]"]], "")
    lines, err = table(capfd, "networks", "nothing*")
    assert lines == []
    assert len(err.splitlines()) == 1
    assert "nothing*" in err


@pytest.mark.parametrize(("flag", "words"), [("--channels", "channels is 0"), ("--classes", "classes is 0")])
def test_sizes_of_nothing_are_refused(flag: str, words: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["describe", "resnet18", flag, "0"]) == 2
    assert words in capfd.readouterr().err
