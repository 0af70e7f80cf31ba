"""channels_last, the faster layout for convolutions: kept by every activation and gradient of every network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from resnext import catalog
from small import ALL

# Linear layers read maps channel by channel, so the gradients of what is flattened for them are laid out in that way,
# back to the next pool or convolution. These maps are the smallest of their networks.
FLATTENED = {
    "alexnet": {"head.size"},
    "vgg": {"head.size"},
    "googlenet": {
        f"auxiliary.stage2_inception{module}.{layer}" for module in ("4a", "4d") for layer in ("reduce", "reduce.relu")
    },
}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(("name", "options"), ALL)
def test_channels_last_is_kept_by_every_activation_and_gradient(
    name: str, options: dict[str, object], autocast: bool
) -> None:
    """At a size that leaves more than one place before the head: with one, all layouts are the same."""
    torch.manual_seed(1)
    network = catalog.create(name, num_classes=5, **options).to(memory_format=torch.channels_last)
    side = network.smallest + 32
    images = torch.randn(2, 3, side, side).to(memory_format=torch.channels_last)
    activations: dict[str, bool] = {}
    gradients: dict[str, bool] = {}

    def watch(key: str, output: Tensor) -> None:
        if output.ndim == 4:
            activations[key] = output.is_contiguous(memory_format=torch.channels_last)
            # The gradient of a concatenation is cut into slices, which are not contiguous, but laid out alike.
            output.register_hook(lambda g: gradients.update({key: g.stride(1) == 1 or 0 in g.stride()}))

    for key, module in network.named_modules():
        module.register_forward_hook(lambda *call, key=key: watch(key, call[2]))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        losses = network.training_logits(images)
    assert {logits.dtype for _, logits in losses} == {torch.bfloat16 if autocast else torch.float32}
    sum(weight * logits.float().logsumexp(1).mean() for weight, logits in losses).backward()
    assert {key for key, module in network.named_modules() if isinstance(module, nn.Conv2d)} <= activations.keys()
    assert activations.keys() == gradients.keys()
    assert [key for key, kept in activations.items() if not kept] == []
    family = type(network).__module__.rpartition(".")[2]
    assert {key for key, kept in gradients.items() if not kept} == FLATTENED.get(family, set())
