"""Which parts of a network learn in which epoch, and how fast: for weights that were learned elsewhere.

Sequential parts are counted from the end: the head is 0, the last stage 1, and so on to the stem; auxiliary classifiers
are 0. Gradual unfreezing is that of J. Howard and S. Ruder, arXiv:1801.06146 section 3.3, and so are rates that fall
from part to part ("discriminative fine-tuning", section 3.2).
"""

from __future__ import annotations

from torch import nn

from resnext import body
from resnext.layers import Network
from resnext.training.sections import Transfer

NORMS = (nn.BatchNorm2d,)


class Freezing:
    """What a recipe's `transfer` means for a network's parameters."""

    def __init__(self, network: Network, options: Transfer) -> None:
        self.network = network
        self.options = options
        if self.does_nothing:
            return  # and may be asked of any module
        parts = [name for name, _ in network.sequence()]
        self.depths = {name: len(parts) - 1 - place for place, name in enumerate(parts)} | {"auxiliary": 0}
        self.tail = tuple(f"{name}." for name in body.classifier(network))
        self.norms = {
            f"{place}.{name}"
            for place, module in network.named_modules()
            if isinstance(module, NORMS)
            for name, _ in module.named_parameters(recurse=False)
        }

    @property
    def does_nothing(self) -> bool:
        """Whether everything learns all the time, at one rate."""
        options = self.options
        return not (options.head_epochs or options.unfreeze_every or options.frozen_norm) and options.rate_decay == 1

    def rate(self, parameter: str) -> float:
        """Return what the learning rate of a parameter is multiplied by."""
        return 1.0 if self.does_nothing else self.options.rate_decay ** self._depth(parameter)

    def learns(self, parameter: str, epoch: int) -> bool:
        """Whether a parameter learns in an epoch, from 0 on."""
        if self.is_head_only(epoch):
            return parameter.startswith(self.tail)
        return self._is_awake(self._depth(parameter), epoch) and not (
            self.options.frozen_norm and parameter in self.norms
        )

    def is_head_only(self, epoch: int) -> bool:
        """Whether only the classifier learns in an epoch."""
        return epoch < self.options.head_epochs

    def apply(self, epoch: int) -> bool:
        """Set the network to train in an epoch, its frozen parts as for inference; return whether other parts learn."""
        if self.does_nothing:
            self.network.train()
            return False
        head_only = self.is_head_only(epoch)
        changed = False
        for name, parameter in self.network.named_parameters():
            learns = self.learns(name, epoch)
            changed = changed or parameter.requires_grad != learns
            parameter.requires_grad_(learns)
        self.network.train()
        for name, module in self.network.named_modules():
            asleep = head_only or not self._is_awake(self._depth(name), epoch)
            frozen = self.options.frozen_norm and isinstance(module, NORMS)
            if name and (asleep or frozen) and not f"{name}.".startswith(self.tail):
                module.training = False
        return changed

    def _is_awake(self, depth: int, epoch: int) -> bool:
        every = self.options.unfreeze_every
        return not every or depth <= 1 + (epoch - self.options.head_epochs) // every

    def _depth(self, name: str) -> int:
        return self.depths.get(name.partition(".")[0], 0)
