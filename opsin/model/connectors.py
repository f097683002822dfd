"""Connectors: encoder features -> visual tokens. One module for every member of `connector_values.Connector`.

All are called alike, `connector(features_PC, layouts) -> tokens_ND`:

- features: the patches of all maps of all layouts, maps one after the other, each in raster order
- tokens: of the same maps in the same order, `layout.shape[0] * layout.shape[1]` of each, in raster order

`connector.width` is D, the width of the tokens. Weights begin as PyTorch's own unless a class says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (the field's usual name)

from opsin.core.types import Layout
from opsin.model.c_abstractor import CAbstractor
from opsin.model.connector_values import (
    AveragePoolConnector,
    CAbstractorConnector,
    Connector,
    LinearConnector,
    MlpConnector,
    PatchMergerConnector,
    PerceiverConnector,
    PixelShuffleConnector,
    QFormerConnector,
)
from opsin.model.maps import check_patches, each_map, fold
from opsin.model.mlp import mlp
from opsin.model.resamplers import Perceiver, QFormer


class Projector(nn.Module):
    """An MLP on every patch by itself; depth 1 is LLaVA's linear connector."""

    def __init__(self, vision_width: int, language_width: int, depth: int) -> None:
        super().__init__()
        self.width = language_width
        self.layers = mlp(vision_width, language_width, depth)

    def forward(self, features_PC: Tensor, layouts: Sequence[Layout]) -> Tensor:
        """One token for every patch (P, D)."""
        check_patches(features_PC, layouts)
        tokens_PD: Tensor = self.layers(features_PC)
        return tokens_PD


class PixelShuffle(nn.Module):
    """Squares of patches side by side in one vector each, then an MLP (Idefics3, InternVL)."""

    def __init__(self, vision_width: int, language_width: int, factor: int, depth: int) -> None:
        super().__init__()
        self.width = language_width
        self.factor = factor
        self.layers = mlp(factor * factor * vision_width, language_width, depth)

    def forward(self, features_PC: Tensor, layouts: Sequence[Layout]) -> Tensor:
        """One token for every square of patches (N, D)."""
        tokens_ND: Tensor = self.layers(fold(features_PC, layouts, self.factor))
        return tokens_ND


class PatchMerger(nn.Module):
    """Qwen2-VL's merger (2409.12191): a norm of every patch, squares side by side, linear map, GELU, linear map."""

    def __init__(self, vision_width: int, language_width: int, factor: int) -> None:
        super().__init__()
        self.width = language_width
        self.factor = factor
        folded = factor * factor * vision_width
        self.norm = nn.LayerNorm(vision_width, eps=1e-6)
        self.layers = nn.Sequential(nn.Linear(folded, folded), nn.GELU(), nn.Linear(folded, language_width))

    def forward(self, features_PC: Tensor, layouts: Sequence[Layout]) -> Tensor:
        """One token for every square of patches (N, D)."""
        tokens_ND: Tensor = self.layers(fold(self.norm(features_PC), layouts, self.factor))
        return tokens_ND


class AveragePool(nn.Module):
    """Average pooling, to `side` x `side` or over squares of `stride` patches, then an MLP.

    The pool comes first: there are fewer tokens to project.
    """

    def __init__(
        self, vision_width: int, language_width: int, depth: int, *, side: int | None, stride: int | None
    ) -> None:
        super().__init__()
        self.width = language_width
        self.side = side
        self.stride = stride
        self.layers = mlp(vision_width, language_width, depth)

    def forward(self, features_PC: Tensor, layouts: Sequence[Layout]) -> Tensor:
        """Tokens of every map (N, D)."""
        return each_map(features_PC, layouts, self._make, self.width)

    def _make(self, maps_MhwC: Tensor) -> Tensor:
        maps_MChw = maps_MhwC.permute(0, 3, 1, 2)
        if self.stride is not None:
            pooled = F.avg_pool2d(maps_MChw, self.stride)
        else:
            pooled = F.adaptive_avg_pool2d(maps_MChw, (self.side, self.side))
        tokens: Tensor = self.layers(pooled.flatten(2).transpose(1, 2))
        return tokens


ConnectorModule = Projector | PixelShuffle | PatchMerger | AveragePool | CAbstractor | QFormer | Perceiver


def build_connector(
    connector: Connector, vision_width: int, language_width: int, grid: tuple[int, int]
) -> ConnectorModule:
    """The module of a connector value. `grid` is the usual patch grid (rows, columns)."""
    match connector:
        case LinearConnector():
            return Projector(vision_width, language_width, depth=1)
        case MlpConnector(depth=depth):
            return Projector(vision_width, language_width, depth)
        case AveragePoolConnector(side=side, stride=stride, depth=depth):
            return AveragePool(vision_width, language_width, depth, side=side, stride=stride)
        case PixelShuffleConnector(factor=factor, depth=depth):
            return PixelShuffle(vision_width, language_width, factor, depth)
        case PatchMergerConnector(factor=factor):
            return PatchMerger(vision_width, language_width, factor)
        case CAbstractorConnector():
            return CAbstractor(connector, vision_width, language_width, grid)
        case QFormerConnector():
            return QFormer(connector, vision_width, language_width)
        case PerceiverConnector():
            return Perceiver(connector, vision_width, language_width)
        case _:
            assert_never(connector)
