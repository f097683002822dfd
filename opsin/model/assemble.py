"""From a connector's tokens to the sequence the language model sees: mosaics, crops, pooling, newlines."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (the field's usual name)

from opsin.core.errors import ModelError
from opsin.core.types import Block, Layout, Pool


def assemble(tokens_ND: Tensor, layouts: Sequence[Layout], newline_D: Tensor | None) -> Tensor:
    """Tokens of all maps of all layouts, in order -> the layouts' blocks, (sum of `layout.tokens`, D).

    What is done to them is written in `Block`: mosaic of tiles, crop, pooling, a newline behind every row, a tail. It
    follows LLaVA-NeXT (`prepare_inputs_labels_for_multimodal`): the crop comes first, then pooling, then newlines.

    Raises:
        ModelError: tokens and layouts disagree, or a layout wants newlines and the model has none.
    """
    _check(tokens_ND, layouts, newline_D)
    if all(_plain(block, layout.shape) for layout in layouts for block in layout.blocks):
        return tokens_ND
    pieces: list[Tensor] = []
    start = 0
    for layout in layouts:
        for block in layout.blocks:
            end = start + block.maps * layout.shape[0] * layout.shape[1]
            pieces.append(_block(tokens_ND[start:end], block, layout.shape, newline_D))
            start = end
    return torch.cat(pieces)


def _check(tokens_ND: Tensor, layouts: Sequence[Layout], newline_D: Tensor | None) -> None:
    expected = sum(layout.grid.t * layout.shape[0] * layout.shape[1] for layout in layouts)
    if len(tokens_ND) != expected:
        raise ModelError(
            f"{len(tokens_ND)} tokens from the connector for {len(layouts)} layouts of {expected} tokens in all; "
            "the connector does not make the tokens that the layouts were planned with"
        )
    for layout in layouts:
        maps = sum(block.maps for block in layout.blocks)
        if maps != layout.grid.t:
            raise ModelError(f"a layout of {layout.grid.t} maps has blocks of {maps} maps: {layout}")
        if newline_D is None and any(block.newline or block.tail for block in layout.blocks):
            raise ModelError(f"a layout wants newlines, but the model has no newline vector: {layout}")


def _plain(block: Block, shape: tuple[int, int]) -> bool:
    """The block is the connector's maps as they are."""
    same = (block.rows, block.cols) == shape and block.kept in (None, shape)
    return same and block.tiles == (1, 1) and not block.newline and not block.tail


def _block(tokens_ND: Tensor, block: Block, shape: tuple[int, int], newline_D: Tensor | None) -> Tensor:
    """The tokens of one block."""
    if _plain(block, shape):
        return tokens_ND
    (down, across), (rows, cols) = block.tiles, shape
    tiles = tokens_ND.view(block.t, down, across, rows, cols, tokens_ND.shape[1])
    maps = tiles.transpose(2, 3).reshape(block.t, down * rows, across * cols, tokens_ND.shape[1])
    if block.kept is not None:
        maps = _middle(maps, block.kept)
    if maps.shape[1:3] != (block.rows, block.cols):
        maps = _resized(maps, (block.rows, block.cols), block.pool)
    if newline_D is None:
        return maps.flatten(0, 2)
    newline_D = newline_D.to(tokens_ND.dtype)
    if block.newline:
        maps = torch.cat([maps, newline_D.expand(block.t, block.rows, block.newline, -1)], dim=2)
    return torch.cat([maps.flatten(0, 2), newline_D.expand(block.tail, -1)])


def _middle(maps: Tensor, kept: tuple[int, int]) -> Tensor:
    """The middle of maps (t, h, w, D); of an odd remainder the larger part goes at the bottom or right."""
    _, height, width, _ = maps.shape
    top, left = (height - kept[0]) // 2, (width - kept[1]) // 2
    return maps[:, top : top + kept[0], left : left + kept[1]]


def _resized(maps: Tensor, size: tuple[int, int], pool: Pool) -> Tensor:
    """Maps (t, h, w, D) -> (t, *size, D).

    Average and max pooling go over squares whose side is the whole ratio of the sizes, and leave a remainder out.

    Raises:
        ModelError: no such square gives `size`.
    """
    channels_first = maps.permute(0, 3, 1, 2)
    if pool == "bilinear":
        resized = F.interpolate(channels_first, size=size, mode="bilinear", align_corners=False)
        return resized.permute(0, 2, 3, 1)
    stride = maps.shape[1] // size[0], maps.shape[2] // size[1]
    if (maps.shape[1] // stride[0], maps.shape[2] // stride[1]) != size:
        raise ModelError(
            f"{pool} pooling cannot make {size[0]}x{size[1]} of {maps.shape[1]}x{maps.shape[2]} tokens; "
            "a stride gives the whole part of their quotient"
        )
    pooled = F.avg_pool2d(channels_first, stride) if pool == "average" else F.max_pool2d(channels_first, stride)
    return pooled.permute(0, 2, 3, 1)
