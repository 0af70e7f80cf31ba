"""Pre-activation ResNet against the paper's formulas written out, against timm, and against its own promises."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.test_resnet import assert_close, randomise_norms
from resnext import catalog
from resnext.complexity import count, describe
from resnext.errors import UserError
from resnext.networks.preact_resnet import PreactBlock, PreactResNet, PreactResNetConfig, parse
from resnext.residual import residual_blocks


def written_out(images: Tensor, weights: dict[str, Tensor], config: PreactResNetConfig) -> Tensor:
    """The network in training mode, as formulas: every unit activates, and splits before or behind that.

    The first unit of all and those that change the shape split behind it.
    """

    def norm_relu(x: Tensor, name: str) -> Tensor:
        mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, unbiased=False)
        gamma, beta = (weights[f"{name}.norm.{part}"].view(1, -1, 1, 1) for part in ("weight", "bias"))
        return ((x - mean) / (variance + 1e-5).sqrt() * gamma + beta).relu()

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        kernel = weights[f"{name}.weight"]
        return F.conv2d(x, kernel, stride=stride, padding=kernel.shape[2] // 2)

    convolutions = ("first", "second") if config.block == "basic" else ("reduce", "spatial", "expand")
    strided = 1 if config.block == "bottleneck" and config.stride_in == "3x3" else 0
    imagenet = config.stem == "imagenet"
    x = conv(images, "stem.conv", stride=2 if imagenet else 1)
    if imagenet:
        x = F.max_pool2d(F.pad(norm_relu(x, "stem"), (1, 1, 1, 1)), 3, 2)  # zeros do no harm behind a ReLU
    for stage, blocks in enumerate(config.blocks, 1):
        for block in range(1, blocks + 1):
            name, stride = f"stage{stage}.block{block}", 2 if stage > 1 and block == 1 else 1
            if stage == block == 1:
                y = x = x if imagenet else norm_relu(x, "stem")
            else:
                y = norm_relu(x, f"{name}.activation")
                x = y if stride == 2 else x
            for index, inner in enumerate(convolutions):
                if index > 0:
                    y = norm_relu(y, f"{name}.{inner}")
                suffix = inner if index == 0 else f"{inner}.conv"
                y = conv(y, f"{name}.{suffix}", stride if index == strided else 1)
            if f"{name}.shortcut.weight" in weights:
                x = conv(x, f"{name}.shortcut", stride)
            else:
                x = x[:, :, ::stride, ::stride]
                x = torch.cat((x, *[torch.zeros_like(x)] * (y.shape[1] // x.shape[1] - 1)), dim=1)
            x = x + y
    x = norm_relu(x, "head").mean((2, 3))
    return x @ weights["head.fc.weight"].T + weights["head.fc.bias"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cifar_preact_resnet14", {}),
        ("cifar_preact_resnet14", {"shortcut": "B"}),
        ("cifar_preact_resnet164", {"blocks": (2, 2, 1)}),
        ("cifar_preact_resnet164", {"blocks": (2, 2), "shortcut": "A"}),
        ("preact_resnet200", {"blocks": (2, 2), "width": 8}),
        ("preact_resnet18", {"blocks": (2, 1), "width": 8}),
    ],
)
def test_the_network_is_the_papers_formulas(name: str, options: dict[str, object]) -> None:
    torch.manual_seed(1)
    network = catalog.create(name, num_classes=10, **options).double()
    randomise_norms(network)
    images = torch.randn(4, 3, 29, 32, dtype=torch.float64)
    assert isinstance(network, PreactResNet)
    found = catalog.resolve(name).config
    config = PreactResNetConfig(**{**vars(found), **options})
    expected = written_out(images, network.state_dict(), config)
    torch.testing.assert_close(network(images).detach(), expected, rtol=1e-9, atol=1e-9)


def timms_name(name: str) -> str:
    """Translate the name of a tensor of timm's; its first unit activates behind the max-pool, ours before it."""
    if name.startswith("stages.0.blocks.0.norm1"):
        return name.replace("stages.0.blocks.0.norm1", "stem.norm")
    module, _, tensor = name.rpartition(".")
    outside = {"stem.conv": "stem.conv", "norm": "head.norm", "head.fc": "head.fc"}
    if module in outside:
        return f"{outside[module]}.{tensor}"
    _, stage, _, block, *rest = module.split(".")
    inner = {
        "downsample.conv": "shortcut",
        "norm1": "activation.norm",
        "conv1": "reduce",
        "norm2": "spatial.norm",
        "conv2": "spatial.conv",
        "norm3": "expand.norm",
        "conv3": "expand.conv",
    }[".".join(rest)]
    return f"stage{int(stage) + 1}.block{int(block) + 1}.{inner}.{tensor}"


def test_logits_equal_timms() -> None:
    """At test and with positive γ, a max-pool and what is before it may change places."""
    torch.manual_seed(2)
    theirs = timm.create_model("resnetv2_50", pretrained=False).eval()
    randomise_norms(theirs)
    ours = catalog.create("preact_resnet50").eval()
    weights = {timms_name(name): tensor for name, tensor in theirs.state_dict().items()}
    weights["head.fc.weight"] = weights["head.fc.weight"].flatten(1)
    ours.load_state_dict(weights, strict=True)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert_close(ours(images), theirs(images))


@pytest.mark.parametrize("name", ["cifar_preact_resnet110", "cifar_preact_resnet164", "cifar_preact_resnet1001"])
def test_cifar_names_have_the_layers_they_say(name: str) -> None:
    assert describe(name)["depth"] == int(name.removeprefix("cifar_preact_resnet"))


def test_imagenets_200_layers_and_its_published_sizes() -> None:
    told = describe("preact_resnet200")
    assert (told["depth"], told["parameters"], told["macs"]) == (200, 64_666_152, 15_007_481_856)
    post = describe("resnet200")
    # The first norm of each unit has the channels that enter instead of those that leave, and projections have none.
    assert post["parameters"] - told["parameters"] == 2 * (256 + 512 + 1024 + 2048)
    assert post["macs"] == told["macs"]


def test_the_1001_layers_stride_in_the_first_convolution() -> None:
    assert round(describe("cifar_preact_resnet1001")["macs"] / 1e9, 3) == 1.488
    assert round(describe("cifar_preact_resnet1001", stride_in="3x3")["macs"] / 1e9, 3) != 1.488


def test_nothing_stands_between_one_sum_and_the_next() -> None:
    """With branches that put out zeros, a stage's later units pass on what they get, negative numbers as well."""
    torch.manual_seed(3)
    network = catalog.create("cifar_preact_resnet20").eval()
    for block in residual_blocks(network):
        nn.init.zeros_(block.get_submodule("second.conv").weight)
    maps = network.features(torch.randn(2, 3, 32, 32))
    assert torch.equal(maps["stage1"], maps["stem"])
    values = torch.randn(2, 16, 8, 8)
    assert torch.equal(network.stage1.block2(values), values)
    assert (values < 0).any()


def test_projections_have_no_norm_and_the_first_unit_has_none_of_its_own() -> None:
    with torch.device("meta"):
        network = catalog.create("cifar_preact_resnet164")
    blocks = residual_blocks(network)
    assert all(isinstance(block, PreactBlock) for block in blocks)
    assert [isinstance(block.shortcut, nn.Conv2d) for block in blocks] == [number % 18 == 0 for number in range(54)]
    assert isinstance(network.get_submodule("stage1.block1.activation"), nn.Identity)
    norms = [name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 1 + 53 + 2 * 54 + 1
    assert norms[0] == "stem.norm"
    assert norms[-1] == "head.norm"


@pytest.mark.parametrize("name", ["cifar_preact_resnet164", "cifar_preact_resnet14", "wrn_16_1", "wrn_16_2_b131"])
def test_closed_gates_compute_the_shortcuts_and_what_these_need(name: str) -> None:
    """Nothing else runs, learns or changes its statistics."""
    torch.manual_seed(4)
    network = catalog.create(name, blocks=(2, 2, 2))
    for block in residual_blocks(network):
        block.gate = False
    expected = {"stem", "head.norm"} if name.startswith("wrn") else {"stem.conv", "stem.norm", "head.norm"}
    for stage in (1, 2, 3):
        transition = network.get_submodule(f"stage{stage}.block1")
        assert isinstance(transition, PreactBlock)
        if transition.splits_late and not isinstance(transition.activation, nn.Identity):
            expected.add(f"stage{stage}.block1.activation.norm")
        if isinstance(transition.shortcut, nn.Conv2d):
            expected.add(f"stage{stage}.block1.shortcut")
    ran: list[str] = []
    for key, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            module.register_forward_hook(lambda *_, key=key: ran.append(key))
    statistics = {key: value.clone() for key, value in network.named_buffers()}
    network(torch.randn(4, 3, 16, 16)).logsumexp(1).sum().backward()
    assert sorted(ran) == sorted(expected)
    for key, parameter in network.named_parameters():
        assert (parameter.grad is not None) == (key.rpartition(".")[0] in {*expected, "head.fc"}), key
    for key, value in network.named_buffers():
        assert torch.equal(value, statistics[key]) == (key.rpartition(".")[0] not in expected), key


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cifar_preact_resnet14", {}),
        ("cifar_preact_resnet14", {"shortcut": "B"}),
        ("cifar_preact_resnet164", {"blocks": (2, 2, 2)}),
        ("cifar_preact_resnet164", {"blocks": (2, 2, 2), "shortcut": "A"}),
        ("wrn_16_1", {}),
        ("wrn_16_2_b131", {}),
    ],
)
def test_a_closed_unit_passes_on_its_shortcut_and_nothing_rectifies_that(name: str, options: dict[str, object]) -> None:
    torch.manual_seed(7)
    network = catalog.create(name, **options)
    randomise_norms(network)
    for block in residual_blocks(network):
        assert isinstance(block, PreactBlock)
        channels = next(part.in_channels for part in block.modules() if isinstance(part, nn.Conv2d))
        images = torch.randn(4, channels, 8, 8)
        untouched = images.clone()
        block.gate = False
        with torch.no_grad():
            expected = block.shortcut(block.activation(images) if block.splits_late else images)
            assert torch.equal(block(images), expected)
        assert torch.equal(images, untouched)
        assert block.splits_late or torch.equal(expected, images)


@pytest.mark.parametrize("name", ["cifar_preact_resnet14", "wrn_10_2"])
def test_a_unit_is_its_shortcut_and_its_share_of_the_branch(name: str) -> None:
    """p_l·F at test; with drop_path in training, F divided by what is kept, or nothing, image by image."""
    torch.manual_seed(5)
    blocks = residual_blocks(catalog.create(name, final_survival=0.2))
    for number, block in enumerate(blocks, 1):
        assert isinstance(block, PreactBlock)
        assert block.survival == pytest.approx(1 - number / len(blocks) * 0.8)
        channels = next(part.in_channels for part in block.modules() if isinstance(part, nn.Conv2d))
        images = torch.randn(2, channels, 8, 8)
        for training, share in ((False, torch.full((2,), block.survival)), (True, torch.tensor([4.0, 0.0]))):
            block.train(training)
            block.gate, block.keep = torch.tensor([1.0, 0.0]), 0.25
            active = block.activation(images)
            skip = block.shortcut(active if block.splits_late else images)
            expected = skip + share.view(-1, 1, 1, 1) * block.residual(active)
            torch.testing.assert_close(block(images), expected)


def test_with_all_gates_open_training_is_that_of_constant_depth_bit_for_bit() -> None:
    gradients = []
    for survival in (1.0, 0.5):
        torch.manual_seed(6)
        network = catalog.create("cifar_preact_resnet14", final_survival=survival)
        logits = network(torch.randn(4, 3, 16, 16))
        logits.logsumexp(1).sum().backward()
        gradients.append([logits.detach(), *(parameter.grad for parameter in network.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    ("depth", "block", "blocks"),
    [(8, "basic", 1), (110, "basic", 18), (164, "bottleneck", 18), (173, "bottleneck", 19)],
)
def test_the_grammar_knows_every_depth_of_the_family(depth: int, block: str, blocks: int) -> None:
    found = catalog.resolve(f"cifar_preact_resnet{depth}")
    assert (found.config.block, found.config.blocks) == (block, (blocks,) * 3)
    assert (found.config.shortcut, found.config.width) == ("A" if block == "basic" else "B", 16)
    assert (found.image_size, found.num_classes) == (32, 10)
    with torch.device("meta"):
        assert count(catalog.create(f"cifar_preact_resnet{depth}"), 32).depth == depth


def test_names_outside_the_family_are_refused_or_left_alone() -> None:
    with pytest.raises(UserError, match="'cifar_preact_resnet110' or 'cifar_preact_resnet116'"):
        catalog.resolve("cifar_preact_resnet111")
    with pytest.raises(UserError, match="'cifar_preact_resnet164' or 'cifar_preact_resnet173'"):
        catalog.resolve("cifar_preact_resnet165")
    with pytest.raises(UserError, match="18, 34, 50, 101, 152, 200"):
        catalog.resolve("preact_resnet26")
    assert parse("preact_resnet") is None
    assert parse("cifar_resnet110") is None


@pytest.mark.parametrize(
    "options",
    [{"shortcut": "C"}, {"stride_in": "1x1"}, {"block": "wide"}, {"stem": 1}, {"blocks": ()}, {"width": 0}],
)
def test_options_that_make_no_network_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        catalog.create("cifar_preact_resnet20", **options)
