"""EfficientNet-Lite 0-4: a small convolutional picture encoder that is quick on a CPU.

EfficientNet (Tan and Le, arXiv 1905.11946) without squeeze-and-excitation, with ReLU6, and with a stem and a head that
are not scaled. Frozen batch norms are affine maps, so they are folded into the convolutions when published weights are
converted (`opsin.quickstart.backbones`): the network is nothing but convolutions with a bias, and does the same in
training and in evaluation mode.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from opsin.core.errors import ModelError

CHANNEL_DIVISOR = 8
"""Scaled channel counts are rounded to multiples of this."""

PATCH_SIZE = 32
"""Pixels per side that one position of the last feature map stands for: five strides of two."""


class Stage(NamedTuple):
    """Blocks of one resolution, before scaling: the first one has the stride and the change of channels."""

    repeats: int
    kernel: int
    stride: int
    expand: int
    channels: int


STAGES = (
    Stage(repeats=1, kernel=3, stride=1, expand=1, channels=16),
    Stage(repeats=2, kernel=3, stride=2, expand=6, channels=24),
    Stage(repeats=2, kernel=5, stride=2, expand=6, channels=40),
    Stage(repeats=3, kernel=3, stride=2, expand=6, channels=80),
    Stage(repeats=3, kernel=5, stride=1, expand=6, channels=112),
    Stage(repeats=4, kernel=5, stride=2, expand=6, channels=192),
    Stage(repeats=1, kernel=3, stride=1, expand=6, channels=320),
)


class Scale(NamedTuple):
    """Size of a variant: multipliers of channels and of blocks per stage, and the channels of stem and head."""

    width: float
    depth: float
    stem_channels: int = 32
    head_channels: int = 1280


VARIANTS = {
    "lite0": Scale(width=1.0, depth=1.0),
    "lite1": Scale(width=1.0, depth=1.1),
    "lite2": Scale(width=1.1, depth=1.2),
    "lite3": Scale(width=1.2, depth=1.4),
    "lite4": Scale(width=1.4, depth=1.8),
    # For tests: the same kind of network with few channels; there are no weights for it.
    "tiny": Scale(width=0.1, depth=0.3, stem_channels=8, head_channels=32),
}


@dataclass(frozen=True)
class EfficientNetLiteConfig:
    """Which EfficientNet-Lite: a key of `VARIANTS`. Its fields are the content of `config.json`."""

    variant: str = "lite2"

    def __post_init__(self) -> None:
        """Refuse unknown variants."""
        if self.variant not in VARIANTS:
            raise ModelError(f"EfficientNet-Lite variant {self.variant!r} is unknown; there are {', '.join(VARIANTS)}")

    @property
    def scale(self) -> Scale:
        """Its multipliers and channel counts."""
        return VARIANTS[self.variant]


def scaled_channels(channels: int, width: float) -> int:
    """Channels times the multiplier, to the nearest multiple of 8 that is not more than 10% less."""
    wanted = channels * width
    rounded = max(CHANNEL_DIVISOR, int(wanted + CHANNEL_DIVISOR / 2) // CHANNEL_DIVISOR * CHANNEL_DIVISOR)
    return rounded if rounded >= 0.9 * wanted else rounded + CHANNEL_DIVISOR


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after an axis for an output of ceil(size / stride), the odd one after: TensorFlow's SAME."""
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class SameConv2d(nn.Conv2d):
    """A convolution with a bias whose padding depends on the size of its input (`same_padding`)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        """`groups` == `inputs` filters every channel on its own."""
        super().__init__(inputs, outputs, kernel, stride=stride, groups=groups)

    def forward(self, x_GCHW: Tensor) -> Tensor:
        """(G, inputs, h, w) -> (G, outputs, ceil(h / stride), ceil(w / stride))."""
        height, width = x_GCHW.shape[-2:]
        top, bottom = same_padding(height, self.kernel_size[0], self.stride[0])
        left, right = same_padding(width, self.kernel_size[1], self.stride[1])
        if (top, left) != (bottom, right):  # a convolution pads symmetrically only
            x_GCHW = functional.pad(x_GCHW, (left, right, top, bottom))
            top = left = 0
        return functional.conv2d(x_GCHW, self.weight, self.bias, self.stride, (top, left), self.dilation, self.groups)


class Block(nn.Module):
    """Widen (1x1), filter every channel on its own (k x k), narrow (1x1); a skip where the shape stays the same."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int, stride: int, expand: int) -> None:
        """`expand` multiplies the channels inside of the block; 1 leaves the widening out."""
        super().__init__()
        hidden = inputs * expand
        self.expand = SameConv2d(inputs, hidden, 1) if expand != 1 else None
        self.depthwise = SameConv2d(hidden, hidden, kernel, stride=stride, groups=hidden)
        self.project = SameConv2d(hidden, outputs, 1)
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x_GCHW: Tensor) -> Tensor:
        """(G, inputs, h, w) -> (G, outputs, h / stride, w / stride)."""
        hidden_GCHW = x_GCHW if self.expand is None else functional.relu6(self.expand(x_GCHW), inplace=True)
        hidden_GCHW = functional.relu6(self.depthwise(hidden_GCHW), inplace=True)
        out_GCHW: Tensor = self.project(hidden_GCHW)
        return out_GCHW + x_GCHW if self.skip else out_GCHW


def build_blocks(scale: Scale) -> list[Block]:
    """All blocks, in order. The number of blocks in the first and the last stage is never scaled."""
    blocks: list[Block] = []
    inputs = scale.stem_channels
    for index, stage in enumerate(STAGES):
        outputs = scaled_channels(stage.channels, scale.width)
        fixed = index in (0, len(STAGES) - 1)
        repeats = stage.repeats if fixed else math.ceil(stage.repeats * scale.depth)
        for repeat in range(repeats):
            stride = stage.stride if repeat == 0 else 1
            blocks.append(Block(inputs, outputs, kernel=stage.kernel, stride=stride, expand=stage.expand))
            inputs = outputs
    return blocks


class EfficientNetLite(nn.Module):
    """Normalised pixels to the last feature map (`width` channels at one position per 32 x 32 pixels)."""

    patch_size = PATCH_SIZE

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        """Random weights; `load_state_dict` takes converted ones."""
        super().__init__()
        scale = config.scale
        self.config = config
        self.width = scale.head_channels
        self.stem = SameConv2d(3, scale.stem_channels, 3, stride=2)
        self.blocks = nn.ModuleList(build_blocks(scale))
        last = scaled_channels(STAGES[-1].channels, scale.width)
        self.head = SameConv2d(last, scale.head_channels, 1)
        self.apply(_initialise)

    def forward(self, pixels_G3HW: Tensor) -> Tensor:
        """(G, 3, H, W) floats, normalised -> (G, width, H / 32, W / 32), rounded up."""
        # On a CPU convolutions are up to twice as fast on this memory layout, also with ordinary weights.
        x_GCHW = pixels_G3HW.contiguous(memory_format=torch.channels_last)
        x_GCHW = functional.relu6(self.stem(x_GCHW), inplace=True)
        for block in self.blocks:
            x_GCHW = block(x_GCHW)
        return functional.relu6(self.head(x_GCHW), inplace=True)


def _initialise(module: nn.Module) -> None:
    """Variance-preserving weights and no bias: without batch norms the depth must not shrink the signal."""
    if isinstance(module, SameConv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
