"""The tensor pieces that networks share."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from resnext.errors import UserError


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` that starts from He's normal distribution and zero biases.

    The standard deviation is sqrt(2 / (k·k·out_channels)), the fan-out form of the authors' Torch code, for
    grouped convolutions too (arXiv:1502.01852 section 2.2).
    """

    def reset_parameters(self) -> None:
        """Draw the weights; called once, by the constructor."""
        if self.weight.is_meta:
            return  # nothing to draw, and trying to makes torch import its compiler, which takes a second
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class ConvNorm(nn.Sequential):
    """Convolution, batch norm and (with `relu`) ReLU: N×C×H×W → N×out_channels×⌈H/stride⌉×⌈W/stride⌉.

    `kernel_size` is odd; the border is padded with zeros. Children: `conv` (no bias), `norm`, `relu`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        relu: bool = True,
    ) -> None:
        super().__init__()
        self.conv = Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        if relu:
            self.relu = nn.ReLU(inplace=True)


class ZeroPadShortcut(nn.Module):
    """Option A of ResNet: every `stride`-th row and column, and `extra` channels of zeros after the others.

    N×C×H×W → N×(C+extra)×⌈H/stride⌉×⌈W/stride⌉, without parameters (arXiv:1512.03385 section 3.3).
    """

    def __init__(self, extra: int, stride: int) -> None:
        super().__init__()
        self.extra, self.stride = extra, stride

    def forward(self, images: Tensor) -> Tensor:
        """Return the smaller, deeper images."""
        # Pooling over 1×1 windows picks the same pixels as images[:, :, ::stride, ::stride], and its gradient
        # keeps the channels_last layout; the slice's does not, which costs time in every step on a CPU.
        if self.stride > 1:
            images = F.avg_pool2d(images, 1, self.stride)
        return F.pad(images, (0, 0, 0, 0, 0, self.extra))

    def extra_repr(self) -> str:
        """Return the settings for `repr`."""
        return f"extra={self.extra}, stride={self.stride}"


class GlobalAveragePool(nn.Module):
    """The mean over all places: N×C×H×W → N×C."""

    def forward(self, images: Tensor) -> Tensor:
        """Return one vector per image."""
        # The gradient of a sum is an expanded view that suits any layout; that of mean() is laid out as
        # N×C×H×W, and costs several times as much where the network runs in channels_last.
        return images.sum((2, 3)) / (images.shape[2] * images.shape[3])


class PooledHead(nn.Sequential):
    """Global average pooling and a linear classifier: N×C×H×W → logits N×K. Children: `pool`, `fc`."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.pool = GlobalAveragePool()
        self.fc = nn.Linear(channels, num_classes)
        nn.init.zeros_(self.fc.bias)


class Stage(nn.Sequential):
    """`depth` blocks at one resolution, `block1` …; the first one changes channels and strides.

    `block(in_channels, out_channels, stride=…)` makes each of them.
    """

    def __init__(
        self, block: Callable[..., nn.Module], in_channels: int, out_channels: int, *, depth: int, stride: int
    ) -> None:
        super().__init__()
        self.block1 = block(in_channels, out_channels, stride=stride)
        for number in range(2, depth + 1):
            self.add_module(f"block{number}", block(out_channels, out_channels, stride=1))


class Network(nn.Module):
    """A sequence of named children in execution order: `stem`, `stage1` … `stageN`, `head`.

    `stride` is the down-sampling between the image and the head, and the side of the smallest legal image.
    """

    stride: int

    def forward(self, images: Tensor) -> Tensor:
        """Return logits N×K for images N×C×H×W, in every mode."""
        for child in self.children():
            images = child(images)
        return images

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Return what every child puts out, by its name; the last is the logits."""
        outputs = {}
        for name, child in self.named_children():
            outputs[name] = images = child(images)
        return outputs

    def training_logits(self, images: Tensor) -> list[tuple[float, Tensor]]:
        """Return the logits that the training loss sums, each with its weight."""
        return [(1.0, self(images))]

    def check_image_size(self, image_size: int) -> None:
        """Raise UserError for images, `image_size` pixels square, that shrink to nothing before the head."""
        if image_size < self.stride:
            raise UserError(
                f"Images of {image_size}×{image_size} pixels are too small: this network shrinks them "
                f"{self.stride}-fold.\nTake an image size of {self.stride} or more."
            )


def add_and_rectify(residual: Tensor, skip: Tensor | None) -> Tensor:
    """Return ReLU(residual + skip), the end of a residual block, written over `residual`.

    H(x) = F(x) + x of arXiv:1512.03385 section 3.1; plain networks have no `skip`. `skip` is left as it is.
    """
    if skip is not None:
        residual += skip
    return F.relu(residual, inplace=True)
