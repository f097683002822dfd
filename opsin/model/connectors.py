"""Connectors: features (G, P, C) on a grid -> visual tokens (G, N, D). One module per member of `config.Connector`."""

from __future__ import annotations

from typing import assert_never

from torch import Tensor, nn

from opsin.core.types import Grid
from opsin.model.config import AveragePoolConnector, Connector, LinearConnector, MlpConnector


class Projector(nn.Module):
    """`depth` linear maps with exact GELU between them; depth 1 is LLaVA's linear connector."""

    def __init__(self, vision_width: int, language_width: int, depth: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Linear(vision_width, language_width)]
        for _ in range(depth - 1):
            layers += [nn.GELU(), nn.Linear(language_width, language_width)]
        self.layers = nn.Sequential(*layers)

    def forward(self, features_GPC: Tensor, grid: Grid) -> Tensor:
        """Patch by patch; the grid does not matter."""
        del grid
        projected: Tensor = self.layers(features_GPC)
        return projected


class PooledProjector(nn.Module):
    """Adaptive average pooling to `side` x `side`, then a `Projector`."""

    def __init__(self, vision_width: int, language_width: int, depth: int, side: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(side)
        self.projector = Projector(vision_width, language_width, depth)

    def forward(self, features_GPC: Tensor, grid: Grid) -> Tensor:
        """Pool before projecting: the map is linear at its input, and there are fewer tokens to project."""
        pictures, _, width = features_GPC.shape
        features_GChw = features_GPC.transpose(1, 2).reshape(pictures, width, grid.h, grid.w)
        pooled: Tensor = self.pool(features_GChw)
        projected: Tensor = self.projector(pooled.flatten(2).transpose(1, 2), grid)
        return projected


def build_connector(connector: Connector, vision_width: int, language_width: int) -> Projector | PooledProjector:
    """The module of a connector value, with PyTorch's default initialisation."""
    match connector:
        case LinearConnector():
            return Projector(vision_width, language_width, depth=1)
        case MlpConnector(depth=depth):
            return Projector(vision_width, language_width, depth)
        case AveragePoolConnector(side=side, depth=depth):
            return PooledProjector(vision_width, language_width, depth, side)
        case _:
            assert_never(connector)
