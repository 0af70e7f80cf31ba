"""First weights by name, as papers and their authors' code drew them.

Where a recipe names one, the weights of all convolutions and linear layers are drawn again, or by He's two forms those
of convolutions alone, as in the authors' code; biases and normalisation stay as the network made them. `fan_in` is the
numbers that one output sees, k·k·in_channels/groups; `fan_out` is k·k·out_channels.

- "he-fan-out": N(0, 2/fan_out), arXiv:1502.01852 section 2.2 as the Torch code of ResNet and ResNeXt has it.
- "he-fan-in": N(0, 2/fan_in), the same paper's forward form (equation 10), in the code of wide ResNets.
- "glorot": uniform within ±√(6/(fan_in + fan_out)), X. Glorot and Y. Bengio, AISTATS 2010, equation 16. Caffe's
  "xavier" divides 3 by fan_in alone.
- "normal-0.01": N(0, 0.01²), NIPS 2012 section 5 (AlexNet).
- "normal-0.1": N(0, 0.1²), arXiv:1409.1556 section 3.1 (VGG): its 10⁻² is the variance.
- "truncated-normal-0.1": N(0, 0.1²) drawn again beyond two standard deviations, as facenet's Inception code has it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from resnext.training.sections import Initialisation

RULES: dict[Initialisation, Callable[[Tensor], Tensor]] = {
    "he-fan-out": partial(nn.init.kaiming_normal_, mode="fan_out", nonlinearity="relu"),
    "he-fan-in": partial(nn.init.kaiming_normal_, mode="fan_in", nonlinearity="relu"),
    "glorot": nn.init.xavier_uniform_,
    "normal-0.01": partial(nn.init.normal_, std=0.01),
    "normal-0.1": partial(nn.init.normal_, std=0.1),
    "truncated-normal-0.1": partial(nn.init.trunc_normal_, std=0.1, a=-0.2, b=0.2),
}


def initialise(network: nn.Module, name: Initialisation) -> None:
    """Draw the weights that a rule is for, in place, from torch's generator."""
    kinds = nn.Conv2d if name.startswith("he-") else nn.Conv2d | nn.Linear
    for module in network.modules():
        if isinstance(module, kinds):
            RULES[name](module.weight)
