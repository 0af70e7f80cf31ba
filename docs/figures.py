"""Which blocks are drawn: parts of listed networks, so that every integer in a picture is a network's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import torch
from torch import nn
from tracing import Flow, Shape, follow

from resnext import catalog
from resnext.layers import Network


@dataclass(frozen=True)
class Figure:
    """A picture of the child `path` of a network, built with `options`."""

    title: str
    network: str
    path: str
    options: Mapping[str, object] = field(default_factory=dict)

    @property
    def file(self) -> str:
        """Its file's name."""
        return f"{self.network}_{self.path.replace('.', '_')}.svg"

    def module(self) -> nn.Module:
        """Return what is drawn."""
        return _network(self.network, tuple(self.options.items()))[0].get_submodule(self.path)

    @cached_property
    def flow(self) -> Flow:
        """Its steps, for an image of the published size."""
        return follow(self.module(), _network(self.network, tuple(self.options.items()))[1][self.path])


@cache
def _network(name: str, options: tuple[tuple[str, object], ...]) -> tuple[nn.Module, dict[str, Shape]]:
    """Return a network on the meta device, and the shapes of what its modules take in, by their names."""
    shapes: dict[str, Shape] = {}
    given: dict[str, Any] = dict(options)
    with torch.device("meta"):
        network = catalog.create(name, **given).eval()
    assert isinstance(network, Network)
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, path=path: shapes.update({path: inputs[0].shape[1:]}))
        for path, module in network.named_modules()
    ]
    size = catalog.resolve(name).image_size
    with torch.no_grad():
        network.training_logits(torch.empty(1, 3, size, size, device="meta"))
    for hook in hooks:
        hook.remove()
    return network, shapes


@dataclass(frozen=True)
class Family:
    """A file of `networks/`: the network whose stages are shown, and the pictures of its blocks."""

    representative: str
    figures: tuple[Figure, ...]


# In the order of the papers.
FAMILIES = {
    "alexnet": Family(
        "alexnet",
        (
            Figure("The first convolution", "alexnet", "stem"),
            Figure("Two groups: each half of the maps lay on a GPU of its own", "alexnet", "stage1"),
            Figure("The fully connected layers", "alexnet", "head"),
        ),
    ),
    "vgg": Family(
        "vgg16",
        (
            Figure("A stage of column D", "vgg16", "stage3"),
            Figure("The same stage of column C, with a 1×1 convolution", "vgg16_c", "stage3"),
            Figure("Response normalisation of column A-LRN", "vgg11_lrn", "stage1"),
            Figure("A stage with batch norm", "vgg16_bn", "stage1"),
        ),
    ),
    "googlenet": Family(
        "googlenet",
        (
            Figure("The stem", "googlenet", "stem"),
            Figure("Module 3a", "googlenet", "stage1.inception3a"),
            Figure("An auxiliary classifier, for training", "googlenet", "auxiliary.stage2_inception4a"),
        ),
    ),
    "bn_inception": Family(
        "bn_inception",
        (
            Figure("Module 3a", "bn_inception", "stage1.inception3a"),
            Figure("Module 3c, which strides", "bn_inception", "stage2.inception3c"),
            Figure("TF-slim's stem, with a separable convolution", "bn_inception_slim", "stem"),
        ),
    ),
    "inception_v3": Family(
        "inception_v3",
        (
            Figure("The stem", "inception_v3", "stem"),
            Figure("Module of the 35×35 maps", "inception_v3", "stage1.block1"),
            Figure("Reduction to 17×17", "inception_v3", "stage2.reduction"),
            Figure("Module of the 17×17 maps", "inception_v3", "stage2.block1"),
            Figure("Reduction to 8×8", "inception_v3", "stage3.reduction"),
            Figure("Module of the 8×8 maps", "inception_v3", "stage3.block1"),
            Figure("The auxiliary classifier, for training", "inception_v3", "auxiliary.stage2"),
        ),
    ),
    "inception_v2": Family(
        "inception_v2",
        (
            Figure("The stem of Table 1", "inception_v2", "stem"),
            Figure("Module of the 35×35 maps", "inception_v2", "stage1.block1"),
            Figure("The auxiliary classifier, for training", "inception_v2", "auxiliary.stage2"),
        ),
    ),
    "resnet": Family(
        "resnet50",
        (
            Figure("Basic block", "resnet18", "stage1.block1"),
            Figure("Basic block that changes the shape, option A", "resnet18_a", "stage2.block1"),
            Figure("Basic block that changes the shape, option B", "resnet18", "stage2.block1"),
            Figure("Bottleneck", "resnet50", "stage1.block2"),
            Figure("Bottleneck that changes the shape, striding in the 3×3", "resnet50", "stage2.block1"),
            Figure("The paper's, striding in the first 1×1", "resnet50_v1", "stage2.block1"),
            Figure("Block of a plain network", "plain18", "stage1.block1"),
            Figure("The head", "resnet50", "head"),
        ),
    ),
    "inception_v4": Family(
        "inception_v4",
        (
            Figure("The stem", "inception_v4", "stem"),
            Figure("Module A", "inception_v4", "stage1.block1"),
            Figure("Reduction to 17×17", "inception_v4", "stage2.reduction"),
            Figure("Module B", "inception_v4", "stage2.block1"),
            Figure("Reduction to 8×8", "inception_v4", "stage3.reduction"),
            Figure("Module C", "inception_v4", "stage3.block1"),
        ),
    ),
    "inception_resnet": Family(
        "inception_resnet_v2",
        (
            Figure("The stem of the released v2", "inception_resnet_v2", "stem"),
            Figure("The stem of v1", "inception_resnet_v1", "stem"),
            Figure("Block A", "inception_resnet_v2", "stage1.block1"),
            Figure("Reduction to 17×17", "inception_resnet_v2", "stage2.reduction"),
            Figure("Block B", "inception_resnet_v2", "stage2.block1"),
            Figure("Reduction to 8×8", "inception_resnet_v2", "stage3.reduction"),
            Figure("Block C", "inception_resnet_v2", "stage3.block1"),
            Figure("The last block C of the released networks", "inception_resnet_v2", "stage3.block10"),
            Figure("The head of the released v2", "inception_resnet_v2", "head"),
        ),
    ),
    "preact_resnet": Family(
        "cifar_preact_resnet164",
        (
            Figure("Basic block", "cifar_preact_resnet110", "stage1.block2"),
            Figure("Basic block that changes the shape", "cifar_preact_resnet110", "stage2.block1"),
            Figure("Bottleneck", "cifar_preact_resnet164", "stage1.block2"),
            Figure("Bottleneck that changes the shape", "cifar_preact_resnet164", "stage2.block1"),
            Figure("The head", "cifar_preact_resnet164", "head"),
        ),
    ),
    "stochastic_depth": Family(
        "cifar_resnet110_stochastic_depth",
        (
            Figure(
                "The last block and its gate: open with probability p in training, × p at test",
                "cifar_resnet110_stochastic_depth",
                "stage3.block18",
            ),
            Figure(
                "Block of the authors' code that changes the shape",
                "cifar_resnet110_stochastic_depth_authors",
                "stage2.block1",
            ),
        ),
    ),
    "wide_resnet": Family(
        "wrn_28_10",
        (
            Figure("Block with the option dropout=0.3", "wrn_28_10", "stage1.block2", {"dropout": 0.3}),
            Figure("Block that changes the shape", "wrn_28_10", "stage2.block1"),
            Figure("Block B(1,3,1)", "wrn_40_2_b131", "stage1.block2"),
            Figure("Bottleneck for ImageNet, of twice the inner width", "wide_resnet50_2", "stage1.block2"),
        ),
    ),
    "resnext": Family(
        "resnext50_32x4d",
        (
            Figure("Block of form (c)", "resnext50_32x4d", "stage1.block2"),
            Figure("Block that changes the shape", "resnext50_32x4d", "stage2.block1"),
            Figure("The same without a shortcut", "resnext50_32x4d_no_shortcut", "stage2.block1"),
        ),
    ),
}
