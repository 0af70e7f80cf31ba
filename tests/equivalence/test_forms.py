"""The forms of ResNeXt's block are one function: outputs, gradients, statistics; weights go over bit for bit."""

from __future__ import annotations

import copy
import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import resnext
from networks.test_resnet import randomise_norms
from resnext import bundle
from resnext.data.preprocessing import Preprocessing
from resnext.equivalence.folding import fold
from resnext.equivalence.forms import convert
from resnext.errors import UserError
from resnext.networks.resnext import FORMS, AggregatedBottleneck, SummedBottleneck
from resnext.residual import residual_blocks

PAIRS = list(itertools.permutations("abc", 2))

shapes = st.fixed_dictionaries(
    {
        "cardinality": st.integers(1, 5),
        "d": st.integers(1, 4),
        "in_channels": st.integers(1, 5),
        "more": st.integers(0, 4),
        "stride": st.integers(1, 3),
        "shortcut": st.sampled_from(["A", "B", "C", "none"]),
    }
)


def make(form: str, *, cardinality: int, d: int, in_channels: int, more: int, stride: int, shortcut: str) -> nn.Module:
    block = FORMS[form](  # type: ignore[index]
        in_channels,
        in_channels + more,
        width=cardinality * d,
        cardinality=cardinality,
        stride=stride,
        shortcut=shortcut,  # type: ignore[arg-type]
    )
    randomise_norms(block)
    return block.double()


def run(module: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the output and the gradient of the images; the parameters' gradients are left in the module."""
    module.zero_grad()
    images = images.clone().requires_grad_()
    output = module(images)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    (output * weights).sum().backward()
    assert images.grad is not None
    return output.detach(), images.grad


def gradients_as(module: nn.Module, like: nn.Module) -> dict[str, Tensor]:
    """Return a module's gradients as parameters of another form have them."""
    carrier = copy.deepcopy(module)
    for parameter, original in zip(carrier.parameters(), module.parameters(), strict=True):
        assert original.grad is not None
        parameter.data.copy_(original.grad)
    return dict(convert(carrier, copy.deepcopy(like)).named_parameters())


def assert_near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * scale)


@settings(max_examples=40, deadline=None)
@given(
    shape=shapes, pair=st.sampled_from(PAIRS), size=st.integers(1, 6), training=st.booleans(), seed=st.integers(0, 99)
)
def test_blocks_of_two_forms_are_one_function(
    shape: dict[str, int], pair: tuple[str, str], size: int, training: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    source, target = (make(form, **shape).train(training) for form in pair)  # type: ignore[arg-type]
    assert convert(source, target) is target
    # Random statistics, as batch norm has them on a batch that is not tiny: others make gradients of any size.
    images = torch.randn(6, shape["in_channels"], size + 1, size, dtype=torch.float64)
    (output, gradient), (other_output, other_gradient) = run(source, images), run(target, images)
    assert_near(other_output, output, 1e-10)
    assert_near(other_gradient, gradient, 1e-10)
    mapped = gradients_as(target, source)
    for name, parameter in source.named_parameters():
        assert parameter.grad is not None
        assert_near(mapped[name].detach(), parameter.grad, 1e-10)
    back = convert(target, copy.deepcopy(source)).state_dict()
    for name, value in source.state_dict().items():  # the running statistics have moved alike
        assert_near(back[name].double(), value.double(), 1e-10)


@settings(max_examples=15, deadline=None)
@given(shape=shapes, pair=st.sampled_from(PAIRS), training=st.booleans(), seed=st.integers(0, 99))
def test_blocks_agree_in_single_precision(
    shape: dict[str, int], pair: tuple[str, str], training: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    source, target = (make(form, **shape).float().train(training) for form in pair)  # type: ignore[arg-type]
    convert(source, target)
    images = torch.randn(8, shape["in_channels"], 7, 7)
    with torch.no_grad():
        expected, actual = source(images), target(images)
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


@settings(max_examples=25, deadline=None)
@given(shape=shapes, start=st.sampled_from("abc"), seed=st.integers(0, 99))
def test_every_way_round_gives_the_same_bits(shape: dict[str, int], start: str, seed: int) -> None:
    torch.manual_seed(seed)
    first = make(start, **shape).float()  # type: ignore[arg-type]
    for norm in first.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.num_batches_tracked += 7
    one, other = (form for form in "abc" if form != start)
    module = first
    for form in (one, other, start):
        module = convert(module, make(form, **shape).float())  # type: ignore[arg-type]
    final = module.state_dict()
    assert final.keys() == first.state_dict().keys()
    assert all(torch.equal(final[name], value) for name, value in first.state_dict().items())


def test_the_weights_are_cut_as_the_figure_says() -> None:
    """Form (a) written out with torch's convolutions and (c)'s weights, path by path."""
    torch.manual_seed(1)
    cardinality, d = 3, 2
    grouped = AggregatedBottleneck(4, 5, width=6, cardinality=3, stride=2)
    randomise_norms(grouped)
    grouped.double().eval()
    images = torch.randn(2, 4, 7, 6, dtype=torch.float64)
    weight = {name: value.double() for name, value in grouped.state_dict().items()}

    def norm(maps: Tensor, name: str, rows: slice) -> Tensor:
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(maps, *(weight[f"{name}.norm.{each}"][rows] for each in names))

    total = torch.zeros(())
    for path in range(cardinality):
        rows = slice(d * path, d * (path + 1))
        maps = norm(F.conv2d(images, weight["reduce.conv.weight"][rows]), "reduce", rows).relu()
        maps = norm(F.conv2d(maps, weight["spatial.conv.weight"][rows], stride=2, padding=1), "spatial", rows).relu()
        total = total + F.conv2d(maps, weight["expand.conv.weight"][:, rows])
    skip = norm(F.conv2d(images, weight["shortcut.conv.weight"], stride=2), "shortcut", slice(None))
    expected = (norm(total, "expand", slice(None)) + skip).relu()
    for form in FORMS:
        block = FORMS[form](4, 5, width=6, cardinality=3, stride=2).double().eval()
        torch.testing.assert_close(convert(grouped, block)(images), expected, rtol=0, atol=1e-12)
    summed = convert(grouped, SummedBottleneck(4, 5, width=6, cardinality=3, stride=2).double())
    assert torch.equal(summed.get_submodule("paths.path2.expand").weight, weight["expand.conv.weight"][:, 2:4])


@pytest.mark.parametrize(("source_form", "target_form"), PAIRS)
def test_whole_networks_agree_in_training_and_after(source_form: str, target_form: str) -> None:
    torch.manual_seed(2)
    options = {"blocks": (2, 1), "num_classes": 5}
    source, target = (
        resnext.create("cifar_resnext11_3x2d", form=form, **options) for form in (source_form, target_form)
    )
    randomise_norms(source)
    assert convert(source, target) is target
    images = torch.randn(4, 3, 12, 10)
    for training in (True, False):
        for precision, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
            one, other = copy.deepcopy(source).to(precision), copy.deepcopy(target).to(precision)
            (output, gradient), (other_output, other_gradient) = (
                run(each.train(training), images.to(precision)) for each in (one, other)
            )
            assert (other_output - output).abs().max() <= tolerance * output.abs().max()
            if precision == torch.float64:
                assert_near(other_gradient, gradient, 1e-10)
                mapped = gradients_as(other, one)
                assert all(
                    (mapped[name] - parameter.grad).abs().max() < 1e-10 * max(1, parameter.grad.abs().max())
                    for name, parameter in one.named_parameters()
                    if parameter.grad is not None
                )


def test_training_flags_gradients_and_the_source_are_left_alone() -> None:
    source = resnext.create("cifar_resnext11_2x2d", form="a", blocks=(1,))
    target = resnext.create("cifar_resnext11_2x2d", form="c", blocks=(1,)).eval()
    target.stem.requires_grad_(False)
    before = copy.deepcopy(source.state_dict())
    parameters = list(target.parameters())
    convert(source, target)
    assert source.training
    assert not any(module.training for module in target.modules())
    assert not target.stem.conv.weight.requires_grad
    assert target.head.fc.weight.requires_grad
    assert all(one is other for one, other in zip(parameters, target.parameters(), strict=True))
    assert all(torch.equal(value, before[name]) for name, value in source.state_dict().items())


@pytest.mark.parametrize("options", [{"final_survival": 0.5}, {"drop_path": 0.5}])
def test_gates_do_the_same_in_every_form(options: dict[str, float]) -> None:
    torch.manual_seed(3)
    networks = [resnext.create("cifar_resnext20_2x2d", form=form, **options).double() for form in "abc"]
    randomise_norms(networks[0])
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    outputs, tested = [], []
    for network in networks[1:]:
        convert(networks[0], network)
    for network in networks:
        for index, block in enumerate(residual_blocks(network)):
            by_image = torch.tensor([1.0, 0.0, 1.0, 1.0]).roll(index)
            block.gate = by_image if "drop_path" in options else index % 2 == 0
        outputs.append(network.train()(images))
        tested.append(network.eval()(images))
    for output, test in zip(outputs[1:], tested[1:], strict=True):
        torch.testing.assert_close(output, outputs[0], rtol=0, atol=1e-10)
        torch.testing.assert_close(test, tested[0], rtol=0, atol=1e-10)


def c(**options: object) -> nn.Module:
    return resnext.create("cifar_resnext11_4x4d", **{"blocks": (1, 1), **options})


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda: resnext.create("cifar_resnet8"), "ResNeXt"),
        (lambda: resnext.create("cifar_resnext11_2x8d", blocks=(1, 1)), "2×8d"),
        (lambda: c(base_width=2, cardinality=8), "8×2d"),
        (lambda: c(blocks=(1, 2)), "stage2.block2"),
        (lambda: c(shortcut="A"), "shortcut"),
        (lambda: c(num_classes=7), "head.fc"),
        (lambda: c(in_channels=1), "stem.conv"),
        (lambda: c(final_survival=0.5), "survival"),
        (lambda: c().double(), "float64"),
        (lambda: c(form="b").to("meta"), "meta"),
        (lambda: fold(c(form="b")), "batch norm"),
        (lambda: c(form="a").get_submodule("stage1.block1"), "whole|shortcut"),
    ],
)
def test_what_is_no_form_of_the_same_network_is_refused(other: object, words: str) -> None:
    target = other()  # type: ignore[operator]
    before = copy.deepcopy(target.state_dict())
    for source, into in ((c(form="a"), target), (target, c(form="a"))):
        with pytest.raises(UserError, match=words) as caught:
            convert(source, into)
        assert len(str(caught.value).splitlines()) <= 3
    if words != "meta":
        assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


def test_a_block_strides_where_its_twin_does() -> None:
    strided = AggregatedBottleneck(4, 8, width=4, cardinality=2, stride=2, shortcut="none")
    with pytest.raises(UserError, match="stride 2"):
        convert(strided, SummedBottleneck(4, 8, width=4, cardinality=2, stride=1, shortcut="none"))


def test_paths_that_saw_different_batches_have_no_other_form() -> None:
    summed = SummedBottleneck(4, 4, width=4, cardinality=2)
    summed.get_submodule("paths.path1.spatial.norm").num_batches_tracked += 1
    with pytest.raises(UserError, match="different numbers of batches"):
        convert(summed, AggregatedBottleneck(4, 4, width=4, cardinality=2))


@pytest.mark.parametrize("name", ["resnext50_32x4d", "cifar_resnext29_8x64d", "resnext50_32x4d_no_shortcut"])
def test_all_forms_cost_the_same(name: str) -> None:
    told = [resnext.describe(name, form=form) for form in "abc"]
    for key in ("parameters", "training_parameters", "macs", "depth"):
        assert len({each[key] for each in told}) == 1, key
    for stages in zip(*(each["stages"] for each in told), strict=True):
        assert (
            len({(stage["name"], tuple(stage["output"]), stage["parameters"], stage["macs"]) for stage in stages}) == 1
        )


def test_weights_of_all_forms_start_from_one_distribution() -> None:
    torch.manual_seed(4)
    grouped = AggregatedBottleneck(64, 64, width=64, cardinality=8)
    for form in "ab":
        drawn = convert(FORMS[form](64, 64, width=64, cardinality=8), copy.deepcopy(grouped))  # type: ignore[index]
        for name in ("reduce", "spatial", "expand"):
            one, other = (each.get_submodule(f"{name}.conv").weight for each in (grouped, drawn))
            assert torch.std(other).item() == pytest.approx(torch.std(one).item(), rel=0.1)


def test_a_bundle_records_the_form(tmp_path: Path) -> None:
    options = {"form": "b", "blocks": [1]}
    network = resnext.create("cifar_resnext11_2x2d", num_classes=2, **options)
    contents = bundle.Contents("cifar_resnext11_2x2d", options, ("x", "y"), Preprocessing(image_size=8, resize=8))
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    again = bundle.write(tmp_path / "model", contents, weights).build()
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(again(images), network.eval()(images))


def test_the_package_leads_to_the_forms_and_does_not_import_torch_before() -> None:
    code = (
        "import sys, resnext; assert 'torch' not in sys.modules; from resnext import equivalence;"
        "assert 'torch' not in sys.modules; assert resnext.equivalence.forms.convert;"
        "assert resnext.equivalence.folding.fold"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
    assert resnext.equivalence.forms.convert is convert
    with pytest.raises(AttributeError, match="nothing"):
        _ = resnext.equivalence.nothing
