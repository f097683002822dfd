"""Qwen2-VL's vision transformer (arXiv 2409.12191, section 2.1): pictures of any size, 2D-RoPE, attention per map.

The reference keeps patches in the order of its 2x2 merge; here they stay in raster order, like every other encoder's,
so that any connector can follow (attention does not mind the order, and positions travel with the patches).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (the field's usual name)

from opsin.core.types import Grid, Layout
from opsin.model.encoder_values import NativeVitEncoder
from opsin.model.pixels import Normalise, frames_of
from opsin.model.recompute import Recompute, recomputed
from opsin.model.varlen import Varlen

THETA = 10_000.0
"""Base of the rotary frequencies."""


def patchify(frames: Tensor, patch: int, temporal: int, maps: int) -> Tensor:
    """uint8 (frames, 3, h, w) -> (P, 3 * temporal * patch * patch), raster order, content (colour, time, row, column).

    As many frames as maps are stills (a picture, or tiles), each shown `temporal` times; a clip has `temporal` as many.
    """
    if len(frames) == maps:
        frames = frames.repeat_interleave(temporal, dim=0)
    _, colours, height, width = frames.shape
    rows, cols = height // patch, width // patch
    cut = frames.reshape(maps, temporal, colours, rows, patch, cols, patch).permute(0, 3, 5, 2, 1, 4, 6)
    return cut.reshape(maps * rows * cols, colours * temporal * patch * patch)


def rotary_2d(grids: Sequence[Grid], head_width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines (P, head width) in float32: the first half of the frequencies turns with rows, the other with
    columns.
    """
    quarter = torch.arange(0, head_width // 2, 2, dtype=torch.float32, device=device) / (head_width // 2)
    frequencies = 1.0 / THETA**quarter
    longest = max(max(grid.h, grid.w) for grid in grids)
    turns = torch.arange(longest, dtype=torch.float32, device=device)[:, None] * frequencies
    angles = []
    for grid in grids:
        rows, cols = (
            index.flatten() for index in torch.meshgrid(torch.arange(grid.h), torch.arange(grid.w), indexing="ij")
        )
        angles.append(torch.cat([turns[rows], turns[cols]], dim=-1).repeat(grid.t, 2))
    angles_P = torch.cat(angles)
    return angles_P.cos(), angles_P.sin()


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate (P, H, head width) by (P, 1, head width), in float32."""
    one, two = x.float().chunk(2, dim=-1)
    return (x.float() * cos + torch.cat([-two, one], dim=-1) * sin).to(x.dtype)


class MapAttention:
    """Which patches attend to each other: all of one map, and no others. Maps of equal size share one call."""

    def __init__(self, grids: Sequence[Grid], device: torch.device) -> None:
        """Plan once for all blocks."""
        starts: dict[int, list[int]] = {}
        position = 0
        for grid in grids:
            size = grid.h * grid.w
            starts.setdefault(size, []).extend(range(position, position + grid.patches, size))
            position += grid.patches
        index = [(torch.tensor(first)[:, None] + torch.arange(size)).to(device) for size, first in starts.items()]
        self._groups = index
        self._inverse_P = torch.cat([rows.flatten() for rows in index]).argsort()
        self._in_order = len(index) == 1
        self._varlen = Varlen.plan([grid.h * grid.w for grid in grids for _ in range(grid.t)], device)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(P, H, head width) each -> the attended values, same shape."""
        if self._varlen is not None and self._varlen.takes(q):
            return self._varlen(q, k, v, scale=q.shape[-1] ** -0.5, causal=False, window=None)
        attended = []
        for rows in self._groups:
            # One size: the packed tensors are only looked at in another shape, nothing is gathered.
            parts = (x.view(*rows.shape, *x.shape[1:]) if self._in_order else x[rows] for x in (q, k, v))
            query, key, value = (part.transpose(1, 2) for part in parts)
            attended.append(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(0, 1))
        return attended[0] if self._in_order else torch.cat(attended)[self._inverse_P]


class Attention(nn.Module):
    """Multi-head attention with one matrix for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_PC: Tensor, rotary: tuple[Tensor, Tensor], attend: MapAttention) -> Tensor:
        """(P, C) -> (P, C)."""
        q, k, v = self.qkv(x_PC).view(len(x_PC), 3, self.heads, -1).unbind(1)
        attended = attend(turned(q, *rotary), turned(k, *rotary), v)
        out: Tensor = self.proj(attended.flatten(1))
        return out


class FeedForward(nn.Module):
    """Two linear maps with CLIP's quick GELU between them."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x_PC: Tensor) -> Tensor:
        """(P, C) -> (P, C)."""
        inner = self.fc1(x_PC)
        out: Tensor = self.fc2(inner * torch.sigmoid(1.702 * inner))
        return out


class VitBlock(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.mlp = FeedForward(width, inner)

    def forward(self, x_PC: Tensor, rotary: tuple[Tensor, Tensor], attend: MapAttention) -> Tensor:
        """(P, C) -> (P, C)."""
        x_PC = x_PC + self.attn(self.norm1(x_PC), rotary, attend)
        out: Tensor = x_PC + self.mlp(self.norm2(x_PC))
        return out


class NativeVit(nn.Module):
    """The transformer: patches in, features out; no final norm (Qwen2-VL's is the first layer of its merger)."""

    def __init__(self, encoder: NativeVitEncoder) -> None:
        super().__init__()
        self.head_width = encoder.width // encoder.heads
        self.recompute: Recompute = "none"
        vector = 3 * encoder.temporal * encoder.patch_size**2
        self.patch_embed = nn.Linear(vector, encoder.width, bias=False)
        self.blocks = nn.ModuleList(
            VitBlock(encoder.width, encoder.heads, encoder.feed_forward) for _ in range(encoder.depth)
        )

    def forward(self, patches_PK: Tensor, grids: Sequence[Grid]) -> Tensor:
        """Normalised patches (P, K) of maps, one after the other -> features (P, C)."""
        x_PC: Tensor = self.patch_embed(patches_PK)
        cos, sin = rotary_2d(grids, self.head_width, x_PC.device)
        rotary = (cos[:, None], sin[:, None])
        attend = MapAttention(grids, x_PC.device)
        for block in self.blocks:
            x_PC = recomputed(self.recompute, block, x_PC, rotary, attend)
        return x_PC


class NativeEncoder(nn.Module):
    """Pixels of any size -> features of a `NativeVit`."""

    def __init__(self, encoder: NativeVitEncoder) -> None:
        super().__init__()
        self.vit = NativeVit(encoder)
        self.normalise = Normalise(encoder.mean, encoder.std)
        self.width = encoder.width
        self._patch = encoder.patch_size
        self._temporal = encoder.temporal

    @property
    def recompute(self) -> Recompute:
        """Of the transformer's blocks."""
        return self.vit.recompute

    @recompute.setter
    def recompute(self, mode: Recompute) -> None:
        self.vit.recompute = mode

    def forward(self, pixels_X: Tensor, layouts: Sequence[Layout]) -> Tensor:
        """uint8 pixels of the layouts' media -> features (P, C)."""
        patches_PK = torch.cat(
            [
                patchify(frames, self._patch, self._temporal, layout.grid.t)
                for frames, layout in zip(frames_of(pixels_X, layouts), layouts, strict=True)
            ]
        )
        normalised = self.normalise(patches_PK.view(len(patches_PK), 3, -1, 1)).flatten(1)
        features: Tensor = self.vit(normalised.to(self.vit.patch_embed.weight.dtype), [x.grid for x in layouts])
        return features
