"""Features of many maps, one after the other: how connectors find single maps in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from opsin.core.errors import ModelError
from opsin.core.types import Grid, Layout


def check_patches(features_PC: Tensor, layouts: Sequence[Layout]) -> None:
    """Features and layouts must speak of the same patches.

    Raises:
        ModelError: with both counts.
    """
    expected = sum(layout.patches for layout in layouts)
    if len(features_PC) != expected:
        raise ModelError(
            f"{len(features_PC)} patches of features for {len(layouts)} layouts of {expected} patches in all; "
            "the encoder's output, or the cached features, belong to other pictures or another resolution"
        )


def each_map(features_PC: Tensor, layouts: Sequence[Layout], make: Callable[[Tensor], Tensor], width: int) -> Tensor:
    """Tokens (N, `width`) of all maps, in order.

    `make` turns maps (M, h, w, C) into tokens (M, N, `width`); it is called once for all maps of the same shape.

    Raises:
        ModelError: features and layouts do not agree.
    """
    check_patches(features_PC, layouts)
    shapes = [(layout.grid.h, layout.grid.w) for layout in layouts for _ in range(layout.grid.t)]
    distinct = dict.fromkeys(shapes)
    if not distinct:
        return features_PC.new_zeros(0, width)
    if len(distinct) == 1:
        return make(features_PC.view(-1, *shapes[0], features_PC.shape[1])).flatten(0, 1)
    maps = features_PC.split_with_sizes([h * w for h, w in shapes])
    tokens: dict[int, Tensor] = {}
    for shape in distinct:
        members = [i for i, other in enumerate(shapes) if other == shape]
        together = torch.stack([maps[i] for i in members]).view(-1, *shape, features_PC.shape[1])
        tokens.update(zip(members, make(together), strict=True))
    return torch.cat([tokens[i] for i in range(len(shapes))])


def fold(features_PC: Tensor, layouts: Sequence[Layout], factor: int) -> Tensor:
    """Every `factor` x `factor` square of patches side by side in one row, (N, factor * factor * C).

    Inside a row, patches stand in raster order: upper left, the one to its right, ..., lower right.

    Raises:
        ModelError: features and layouts do not agree, or the factor does not divide a grid.
    """
    check_patches(features_PC, layouts)
    indices, start = [torch.empty(0, dtype=torch.long)], 0
    for layout in layouts:
        indices.append(start + _fold_index(layout.grid, factor))
        start += layout.patches
    index_P = torch.cat(indices).to(features_PC.device, non_blocking=True)
    return features_PC.index_select(0, index_P).view(-1, factor * factor * features_PC.shape[1])


def _fold_index(grid: Grid, factor: int) -> Tensor:
    """Raster patch indices, square by square."""
    rows, cols = grid.h // factor, grid.w // factor
    if (rows * factor, cols * factor) != (grid.h, grid.w):
        raise ModelError(f"a grid of {grid.h}x{grid.w} patches cannot be folded {factor}x{factor} without a remainder")
    patches = torch.arange(grid.patches).view(grid.t, rows, factor, cols, factor)
    return patches.transpose(2, 3).flatten()
