"""The tensor pieces that networks share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnext.errors import UserError


class Drawn:
    """A convolution or linear layer whose weights start from `draw`, and whose biases start from zero."""

    draw: ClassVar[Callable[..., Tensor]]
    weight: Any
    bias: Any

    def reset_parameters(self) -> None:
        """Draw the weights; called once, by the constructor."""
        if self.weight.is_meta:
            return  # nothing to draw, and trying to makes torch import its compiler, which takes a second
        type(self).draw(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Conv2d(Drawn, nn.Conv2d):
    """`nn.Conv2d` that starts from He's normal distribution and zero biases.

    The standard deviation is sqrt(2 / (k·k·out_channels)), the fan-out form of the authors' Torch code, for
    grouped convolutions too (arXiv:1502.01852 section 2.2).
    """

    draw = staticmethod(partial(nn.init.kaiming_normal_, mode="fan_out", nonlinearity="relu"))


class ConvNorm(nn.Sequential):
    """Convolution, batch norm and (with `relu`) ReLU: N×C×H×W → N×out_channels×⌈H/stride⌉×⌈W/stride⌉.

    `kernel_size` is one odd number or two (height, width); the border is padded with zeros, or with `valid` not at
    all, and then the output is smaller by kernel_size − 1 before it is strided. `epsilon` is the one in the
    batch norm's square root. Children: `conv` (no bias), `norm`, `relu`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        stride: int = 1,
        groups: int = 1,
        relu: bool = True,
        valid: bool = False,
        epsilon: float = 1e-5,
    ) -> None:
        super().__init__()
        height, width = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        padding = (0, 0) if valid else (height // 2, width // 2)
        self.conv = Conv2d(in_channels, out_channels, (height, width), stride, padding, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(out_channels, eps=epsilon)
        if relu:
            self.relu = nn.ReLU(inplace=True)


class LocalResponseNorm(nn.Module):
    """b = a / (k + α·Σ a²)^β over n = 5 neighbouring channels: N×C×H×W → the same (NIPS 2012 section 3.3).

    k = 2, α = 1e-4, β = 0.75. The paper's α multiplies the sum; torch and Caffe divide theirs by n first.
    """

    n, k, alpha, beta = 5, 2.0, 1e-4, 0.75

    def forward(self, images: Tensor) -> Tensor:
        """Return the normalised images; where a sum would leave the channels, it ends."""
        # Sums of shifted views: torch's own pools over the channels as over a volume, which takes twice as long.
        # In fp16 the squares of pixels would overflow.
        wide = images.to(torch.promote_types(images.dtype, torch.float32))
        channels = images.shape[1]
        squares = F.pad(wide * wide, (0, 0, 0, 0, self.n // 2, self.n // 2))
        total = squares[:, :channels]
        for shift in range(1, self.n):
            total = total + squares[:, shift : shift + channels]
        return (wide * (self.k + self.alpha * total).pow(-self.beta)).to(images.dtype)

    def extra_repr(self) -> str:
        """Return the settings for `repr`."""
        return f"n={self.n}, k={self.k}, alpha={self.alpha}, beta={self.beta}"


class Branches(nn.Module):
    """Every child on the same images, and what they put out side by side in channels: an Inception module."""

    def __init__(self, **branches: nn.Module) -> None:
        super().__init__()
        for name, branch in branches.items():
            self.add_module(name, branch)

    def forward(self, images: Tensor) -> Tensor:
        """Return the outputs concatenated, in the order of the children."""
        return torch.cat([branch(images) for branch in self.children()], dim=1)


class PublishedSize(nn.Module):
    """Maps of the published side, as linear layers behind them need: N×C×H×W → N×C×side×side.

    At the published image size this changes nothing; maps of other sizes are averaged, or repeated, to it.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, images: Tensor) -> Tensor:
        """Return maps of side×side."""
        if images.shape[2] == images.shape[3] == self.side:
            return images
        return F.adaptive_avg_pool2d(images, self.side)

    def extra_repr(self) -> str:
        """Return the setting for `repr`."""
        return f"side={self.side}"


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


class GlobalHead(nn.Sequential):
    """A head that pools globally, and so fits maps of any size."""

    def dense(self, images: Tensor) -> Tensor:
        """Return the mean of the logits of all places: a linear classifier of the mean."""
        logits: Tensor = self(images)
        return logits


class PooledHead(GlobalHead):
    """Global average pooling, dropout, a linear classifier: N×C×H×W → logits N×K.

    `dropout` is the probability that a number is set to zero in training. Children: `pool`, `dropout` (where it is
    not 0), `fc`.
    """

    def __init__(self, channels: int, num_classes: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.pool = GlobalAveragePool()
        if dropout:
            self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)
        nn.init.zeros_(self.fc.bias)


StageOf = Callable[[int], tuple[Callable[..., nn.Module], int]]


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

    `stride` is the down-sampling between the image and the head, and `smallest` the side of the smallest legal
    image. A network may have a child `auxiliary`, outside the sequence: classifiers for training alone, each
    under the name of the child whose output it reads, or of `STAGE_BLOCK` for a block within a stage;
    `auxiliary_weight` is what their losses count.
    """

    stride: int
    auxiliary_weight: float = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary: nn.ModuleDict | None = None

    @property
    def smallest(self) -> int:
        """The side of the smallest legal image, in pixels."""
        return self.stride

    def add_stages(self, depths: Sequence[int], channels: int, stage_of: StageOf) -> int:
        """Add `stage1` … behind `channels` channels, of so many blocks each; return the channels of the last one.

        `stage_of(index)` gives what makes the blocks, and the channels that they put out. Every stage but the first
        halves H and W, and doubles `stride`.
        """
        for index, depth in enumerate(depths):
            block, out_channels = stage_of(index)
            stride = 1 if index == 0 else 2
            self.add_module(f"stage{index + 1}", Stage(block, channels, out_channels, depth=depth, stride=stride))
            self.stride *= stride
            channels = out_channels
        return channels

    @property
    def normalises(self) -> bool:
        """Whether batch norm keeps all its activations in bounds: there is some, and no hidden linear layer."""
        modules = [module for _, child in self.sequence() for module in child.modules()]
        linear = sum(isinstance(module, nn.Linear) for module in modules)
        return linear <= 1 and any(isinstance(module, nn.BatchNorm2d) for module in modules)

    def sequence(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the children that an image passes, in order, with their names."""
        return ((name, child) for name, child in self.named_children() if name != "auxiliary")

    def forward(self, images: Tensor) -> Tensor:
        """Return logits N×K for images N×C×H×W, in every mode."""
        for _, child in self.sequence():
            images = child(images)
        return images

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Return what every child puts out, by its name; the last is the logits."""
        outputs = {}
        for name, child in self.sequence():
            outputs[name] = images = child(images)
        return outputs

    def dense(self, images: Tensor) -> Tensor:
        """Return logits N×K for images of any larger size, averaged over all places where the head fits.

        Fully connected layers run as convolutions (arXiv:1409.1556 section 3.2). A head that pools globally fits
        every map: it averages over all of it, which is not the mean over windows of the published size.
        """
        children = dict(self.sequence())
        head = children.pop("head")
        for child in children.values():
            images = child(images)
        logits: Tensor = head.dense(images)  # type: ignore[operator]
        return logits

    def training_logits(self, images: Tensor) -> list[tuple[float, Tensor]]:
        """Return the logits that the training loss sums, each with its weight; the network's own come first."""
        logits = []
        for name, child in self._steps():
            images = child(images)
            if self.auxiliary is not None and name in self.auxiliary:
                logits.append((self.auxiliary_weight, self.auxiliary[name](images)))
        return [(1.0, images), *logits]

    def _steps(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the children, those of them whole that have no auxiliary classifier inside."""
        read = [] if self.auxiliary is None else list(self.auxiliary)
        for name, child in self.sequence():
            if any(each.startswith(f"{name}_") for each in read):
                yield from ((f"{name}_{inner}", block) for inner, block in child.named_children())
            else:
                yield name, child

    def check_image_size(self, image_size: int) -> None:
        """Raise UserError for images, `image_size` pixels square, that shrink to nothing before the head."""
        if image_size < self.smallest:
            raise UserError(
                f"Images of {image_size}×{image_size} pixels are too small: this network shrinks them to nothing.\n"
                f"Take an image size of {self.smallest} or more."
            )
