"""Layouts made by hand."""

from __future__ import annotations

from opsin.core.types import Block, Grid, Layout
from opsin.model.connector_values import Connector


def layout_of(grid: Grid, shape: tuple[int, int], *blocks: Block) -> Layout:
    """A layout of one-pixel patches; its blocks are, unless others are given, the connector's maps as they are."""
    size = (grid.h, grid.w)
    return Layout(size, size, grid.t, grid, shape, blocks or (Block(grid.t, *shape),))


def layouts_for(connector: Connector, *grids: Grid) -> list[Layout]:
    """Layouts of grids, with the tokens that the connector promises."""
    return [layout_of(grid, connector.shrink(grid.h, grid.w)) for grid in grids]
