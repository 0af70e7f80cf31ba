"""Inception-v3 against torchvision's, against published numbers, and against its own promises."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from resnext import catalog
from resnext.complexity import describe
from resnext.errors import UserError
from resnext.networks.inception_v3 import AuxiliaryHead


def twins() -> tuple[nn.Module, nn.Module]:
    """Return torchvision's network with random weights and statistics, and ours with the same tensors."""
    torch.manual_seed(1)
    theirs = torchvision.models.inception_v3(
        weights=None, transform_input=False, aux_logits=True, init_weights=False, dropout=0.0
    )
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.2, 0.6)
    with torch.device("meta"):
        ours = catalog.create("inception_v3_torchvision", dropout=0.0)
    ours.load_state_dict(renamed(theirs, ours, theirs.state_dict()), strict=True, assign=True)
    return theirs, ours


def renamed(theirs: nn.Module, ours: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give torchvision's tensors our names: both register the layers in one order, but we the auxiliary ones last."""
    keys = sorted(theirs.state_dict(), key=lambda key: key.startswith("AuxLogits"))
    return {name: tensors[key] for name, key in zip(ours.state_dict(), keys, strict=True) if key in tensors}


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    """Hold the largest difference to a share of the largest value."""
    assert theirs.abs().max() > 0
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


@pytest.mark.parametrize("side", [75, 139])
def test_logits_equal_torchvisions(side: int) -> None:
    theirs, ours = twins()
    images = torch.randn(2, 3, side, side)
    with torch.inference_mode():
        assert_close(ours.eval()(images), theirs.eval()(images))


def test_training_equals_torchvisions_with_the_auxiliary_classifier() -> None:
    theirs, ours = twins()
    ours = copy.deepcopy(ours)  # the twins share their tensors
    images, labels = torch.randn(2, 3, 299, 299), torch.arange(2)
    (weight, logits), (auxiliary_weight, auxiliary_logits) = ours.training_logits(images)
    their_logits, their_auxiliary_logits = theirs(images)
    assert (weight, auxiliary_weight) == (1.0, 0.4)
    assert_close(logits.detach(), their_logits.detach())
    assert_close(auxiliary_logits.detach(), their_auxiliary_logits.detach())
    (F.cross_entropy(logits, labels) + 0.4 * F.cross_entropy(auxiliary_logits, labels)).backward()
    (F.cross_entropy(their_logits, labels) + 0.4 * F.cross_entropy(their_auxiliary_logits, labels)).backward()
    gradients = renamed(theirs, ours, {name: parameter.grad for name, parameter in theirs.named_parameters()})
    for name, parameter in ours.named_parameters():
        assert_close(parameter.grad, gradients[name], 1e-3)


def test_shapes_are_the_published_ones() -> None:
    with torch.device("meta"):
        network = catalog.create("inception_v3")
        shapes = {}
        for name in ("stem", "stage1", "stage2.reduction", "stage2", "stage3.reduction", "stage3"):
            module = network.get_submodule(name)
            module.register_forward_hook(lambda *call, name=name: shapes.update({name: tuple(call[2].shape[1:])}))
        [_, (_, auxiliary)] = network.training_logits(torch.empty(2, 3, 299, 299))
    assert shapes == {
        "stem": (192, 35, 35),
        "stage1": (288, 35, 35),
        "stage2.reduction": (768, 17, 17),
        "stage2": (768, 17, 17),
        "stage3.reduction": (1280, 8, 8),
        "stage3": (2048, 8, 8),
    }
    assert auxiliary.shape == (2, 1000)


def test_costs_are_the_published_ones() -> None:
    told = describe("inception_v3")
    meta = torchvision.models.Inception_V3_Weights.DEFAULT.meta
    assert told["parameters"] == 23_834_568
    assert told["training_parameters"] == 27_161_264 == meta["num_params"]
    assert told["macs"] == 5_713_216_096
    assert round(told["macs"] / 1e9, 3) == meta["_ops"]
    norms = sum(layer["output"][0] for layer in told["layers"] if layer["kind"] == "BatchNorm2d")
    assert norms == 17_216
    assert told["parameters"] + norms == 23_851_784  # Keras's count: statistics, but no γ
    stem, fig5, reduction, fig6, fig7, fc = 5, 3 * 3, 3, 4 * 5, 4 + 2 * 3, 1
    assert told["depth"] == stem + fig5 + reduction + fig6 + fig7 + fc == 48


def test_the_smallest_image_is_75_pixels_wide() -> None:
    network = catalog.create("inception_v3", num_classes=3)
    assert network.smallest == 75
    outputs = network.training_logits(torch.randn(2, 3, 75, 75))
    assert [logits.shape for _, logits in outputs] == [(2, 3), (2, 3)]
    with pytest.raises(RuntimeError):
        network.eval()(torch.randn(2, 3, 74, 74))
    with pytest.raises(UserError, match="75 or more"):
        network.check_image_size(74)


def test_without_the_auxiliary_classifier_nothing_else_changes() -> None:
    torch.manual_seed(2)
    network = catalog.create("inception_v3").eval()
    with torch.device("meta"):
        plain = catalog.create("inception_v3", auxiliary=False).eval()
    weights = {key: tensor for key, tensor in network.state_dict().items() if not key.startswith("auxiliary")}
    plain.load_state_dict(weights, strict=True, assign=True)
    images = torch.randn(2, 3, 75, 75)
    with torch.inference_mode():
        assert torch.equal(network(images), plain(images))
        assert torch.equal(network(images), network.dense(images))
    assert plain.auxiliary is None
    assert len(plain.training_logits(images)) == 1


def test_the_auxiliary_classifier_pools_5_by_5_and_reads_other_sizes_as_17() -> None:
    torch.manual_seed(3)
    head = AuxiliaryHead(4, 7).eval()
    images = torch.randn(2, 4, 17, 17)
    pooled = images.unfold(2, 5, 3).unfold(3, 5, 3).mean((4, 5))
    assert pooled.shape == (2, 4, 5, 5)
    with torch.inference_mode():
        logits = head(images)
        torch.testing.assert_close(logits, head.fc(head.hidden(head.reduce(pooled)).flatten(1)))
        doubled = images.repeat_interleave(2, 2).repeat_interleave(2, 3)
        torch.testing.assert_close(head(doubled), logits)


def test_fresh_weights_are_truncated_normals() -> None:
    torch.manual_seed(4)
    network = catalog.create("inception_v3")
    special = {"auxiliary.stage2.hidden.conv": 0.01, "auxiliary.stage2.fc": 0.001}
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            # Truncated at two standard deviations, 0.8796 of one is left.
            std = special[name] * 0.8796 if name in special else math.sqrt(2 / module.weight[0].numel())
            count = module.weight.numel()
            assert module.weight.std().item() == pytest.approx(std, rel=0.01 + 4 / math.sqrt(2 * count)), name
            assert module.weight.abs().max() <= 2 * std / 0.8796 * 1.01, name
            assert module.bias is None or not module.bias.any(), name


@pytest.mark.parametrize(
    "options",
    [
        {"auxiliary": "no"},
        {"auxiliary_weight": 0},
        {"auxiliary_weight": math.inf},
        {"dropout": 1},
        {"dropout": True},
    ],
)
def test_options_that_make_no_network_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        catalog.create("inception_v3", **options)


def test_average_pools_leave_the_padding_out_but_for_torchvisions() -> None:
    for name, corner in (("inception_v3", 1.0), ("inception_v3_torchvision", 4 / 9)):
        network = catalog.create(name).eval()
        pools = [module for module in network.modules() if isinstance(module, nn.AvgPool2d) and module.padding]
        assert len(pools) == 9
        for pool in pools:
            assert pool(torch.ones(1, 1, 4, 4))[0, 0, 0, 0].item() == pytest.approx(corner)
