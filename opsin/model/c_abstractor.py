"""Honeybee's C-Abstractor (2312.06742, section 3.2): neighbourhoods are summarised by convolutions.

Maps are channels-last, so that a 1x1 convolution is a linear map, and a norm over the channels a common layer norm.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (the field's usual name)

from opsin.core.types import Layout
from opsin.model.connector_values import CAbstractorConnector
from opsin.model.maps import each_map
from opsin.model.mlp import mlp


class SqueezeExcite(nn.Module):
    """Every channel is scaled by a gate that looks at the channels' means over the map (1709.01507)."""

    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(width, squeezed), nn.SiLU(), nn.Linear(squeezed, width), nn.Sigmoid())

    def forward(self, maps_MhwC: Tensor) -> Tensor:
        """Maps of the same shape."""
        scaled: Tensor = maps_MhwC * self.gate(maps_MhwC.mean(dim=(1, 2), keepdim=True))
        return scaled


class RegBlock(nn.Module):
    """RegNet's Y block (2003.13678) with SiLU and layer norms, depthwise 3x3 convolution in the middle.

    Squeeze-and-excitation goes through a quarter of the incoming channels.
    """

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Linear(width, out, bias=False), nn.LayerNorm(out), nn.SiLU())
        self.depthwise = nn.Conv2d(out, out, kernel_size=3, padding=1, groups=out, bias=False)
        self.norm = nn.Sequential(nn.LayerNorm(out), nn.SiLU())
        self.excite = SqueezeExcite(out, round(width / 4))
        self.leave = nn.Sequential(nn.Linear(out, out, bias=False), nn.LayerNorm(out))
        self.shortcut = nn.Sequential(nn.Linear(width, out, bias=False), nn.LayerNorm(out)) if width != out else None

    def forward(self, maps_MhwC: Tensor) -> Tensor:
        """Maps of the same height and width."""
        x: Tensor = self.enter(maps_MhwC)
        x = self.depthwise(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = self.leave(self.excite(self.norm(x)))
        return F.silu(x + (maps_MhwC if self.shortcut is None else self.shortcut(maps_MhwC)))


class CAbstractor(nn.Module):
    """Position embeddings, RegNet blocks, adaptive average pooling, RegNet blocks, an MLP with SiLU.

    The position embeddings are made for `grid` and resized (bicubic) for another; they begin as a truncated normal
    distribution of deviation 0.02.
    """

    def __init__(
        self, value: CAbstractorConnector, vision_width: int, language_width: int, grid: tuple[int, int]
    ) -> None:
        super().__init__()
        self.width = language_width
        self.side = value.side
        self.positions_hwC = nn.Parameter(nn.init.trunc_normal_(torch.empty(*grid, vision_width), std=0.02))
        widths = [vision_width, *[value.width] * (value.blocks - 1)]
        self.before = nn.Sequential(*(RegBlock(width, value.width) for width in widths))
        self.behind = nn.Sequential(*(RegBlock(value.width, value.width) for _ in range(value.blocks)))
        self.layers = mlp(value.width, language_width, value.depth, nn.SiLU)

    def forward(self, features_PC: Tensor, layouts: Sequence[Layout]) -> Tensor:
        """`side` x `side` tokens of every map (N, D)."""
        return each_map(features_PC, layouts, self._make, self.width)

    def _make(self, maps_MhwC: Tensor) -> Tensor:
        _, rows, cols, _ = maps_MhwC.shape
        x: Tensor = self.before(maps_MhwC + self._positions(rows, cols))
        pooled = F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), (self.side, self.side))
        tokens: Tensor = self.layers(self.behind(pooled.permute(0, 2, 3, 1)).flatten(1, 2))
        return tokens

    def _positions(self, rows: int, cols: int) -> Tensor:
        if self.positions_hwC.shape[:2] == (rows, cols):
            return self.positions_hwC
        grid_1Chw = self.positions_hwC.permute(2, 0, 1)[None]
        resized = F.interpolate(grid_1Chw.float(), size=(rows, cols), mode="bicubic", align_corners=False)
        return resized[0].permute(1, 2, 0).to(self.positions_hwC.dtype)
