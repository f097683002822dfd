"""The pixels of a batch on the model's device: one flat run of bytes, cut and normalised there."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from opsin.core.errors import ModelError
from opsin.core.types import Layout
from opsin.vision.colour import Colour


class Normalise(nn.Module):
    """uint8 (..., 3, h, w) -> float (x / 255 - mean) / std, as one multiply-add."""

    def __init__(self, mean: Colour, std: Colour) -> None:
        super().__init__()
        mean_3, std_3 = torch.tensor(mean), torch.tensor(std)
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", (1 / (255 * std_3))[:, None, None], persistent=False)
        self.register_buffer("shift", (-mean_3 / std_3)[:, None, None], persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalise in float32."""
        return pixels.float() * self.scale + self.shift


def frames_of(pixels_X: Tensor, layouts: Sequence[Layout]) -> list[Tensor]:
    """The frames of every medium, uint8 (frames, 3, height, width), as views.

    Raises:
        ModelError: there are more or fewer bytes than the layouts say.
    """
    sizes = [layout.bytes for layout in layouts]
    if sum(sizes) != len(pixels_X):
        raise ModelError(f"{len(pixels_X):,} bytes of pixels for layouts of {sum(sizes):,} bytes")
    cut = torch.split(pixels_X, sizes)
    return [part.view(x.frames, 3, *x.canvas) for part, x in zip(cut, layouts, strict=True)]


FRAMES_AT_ONCE = 16
"""Frames that are encoded together where no gradient is kept: more would only take memory."""


def encode_by_canvas(pixels_X: Tensor, layouts: Sequence[Layout], encode: Callable[[Tensor], Tensor]) -> Tensor:
    """Features (P, C) of an encoder that takes frames of one size at a time: `encode` is called once for every size.

    `encode` maps uint8 (frames, 3, h, w) to (frames, patches of one frame, C).
    """
    frames = frames_of(pixels_X, layouts)
    members: dict[tuple[int, int], list[int]] = {}
    for i, layout in enumerate(layouts):
        members.setdefault(layout.canvas, []).append(i)
    found: dict[int, Tensor] = {}
    for together in members.values():
        one_size = torch.cat([frames[i] for i in together])
        parts = (one_size,) if torch.is_grad_enabled() else torch.split(one_size, FRAMES_AT_ONCE)
        features = torch.cat([encode(part) for part in parts])
        for i, part in zip(together, torch.split(features, [layouts[i].frames for i in together]), strict=True):
            if part.shape[0] * part.shape[1] != layouts[i].patches:
                raise ModelError(
                    f"the encoder gave {part.shape[0]} x {part.shape[1]} features for a layout of "
                    f"{layouts[i].patches} patches"
                )
            found[i] = part.flatten(0, 1)
    return torch.cat([found[i] for i in range(len(layouts))])
