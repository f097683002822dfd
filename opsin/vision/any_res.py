"""AnyRes: a picture as tiles of its own shape beside a small copy of the whole (LLaVA-NeXT, LLaVA-OneVision)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

from opsin.core.types import Block, Grid, Layout, MediumRole, Pool
from opsin.vision.canvas import channels_first, expand_to_square, letterbox, stretch
from opsin.vision.colour import Colour
from opsin.vision.tower import Tower

NEXT_PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
"""LLaVA-NeXT's canvases, as its config lists them."""

ONEVISION_PINPOINTS = tuple((384 * i, 384 * j) for i in range(1, 7) for j in range(1, 7))
"""LLaVA-OneVision's 36 canvases, as `(1x1),...,(6x6)` lists them."""

MAX_TILES = 100
SHRINK_ABOVE = 1.1
"""LLaVA-OneVision leaves a mosaic alone that is at most this many times as wide and high as its budget."""

STEP = 0.9
"""Each step of `smaller` has this many times the tiles of the step before."""


class AnyRes(BaseModel):
    """Tiles of `size` x `size` pixels (LLaVA-NeXT; LLaVA-OneVision, arXiv 2408.03326, section 3.2).

    A single picture is put on the canvas of `pinpoints` that keeps most of it, and cut into tiles; the whole picture,
    squeezed into one more tile, comes before them. Of the tiles' tokens, put together again, `unpad` drops those that
    show the canvas alone, `max_tiles` shrinks what is larger than the tokens of so many tiles, and `newline` puts a
    learned token at the end of every row. Without `unpad` and `newline` it is LLaVA-NeXT's merge type "spatial".

    - `multi`: one of several pictures is its padded `base` alone, with a newline at its end (the original code), or
      is cut into `tiles` like a single one (LLaVA-NeXT in transformers)
    - `video_newline`: where a clip has newlines, if `newline` is on: once at its end, or after every row (`grid`),
      or after every `frame`; its maps are made smaller by `video_stride`
    - `rule`: of two codes that differ in a few sizes. `transformers` takes a pinpoint as (height, width) and rounds
      away float errors; `original` takes it as (width, height) and truncates. The published lists hold every shape
      both ways, so that only the order in which equally good canvases are tried depends on it
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["any_res"] = "any_res"
    size: int = Field(default=384, ge=8, le=4096)
    pinpoints: tuple[tuple[int, int], ...] = Field(default=ONEVISION_PINPOINTS, min_length=1, max_length=1000)
    max_tiles: int | None = Field(default=None, ge=1)
    unpad: bool = True
    newline: bool = True
    rule: Literal["original", "transformers"] = "original"
    multi: Literal["base", "tiles"] = "base"
    video_newline: Literal["one_token", "grid", "frame", "no_token"] = "one_token"
    video_pool: Pool = "bilinear"
    video_stride: int = Field(default=2, ge=1)

    @model_validator(mode="after")
    def _whole_tiles(self) -> AnyRes:
        for first, second in self.pinpoints:
            if min(first, second) < 1 or first % self.size or second % self.size:
                raise ValueError(f"pinpoint {first}x{second} is not made of whole tiles of {self.size}x{self.size}")
            tiles = (first // self.size) * (second // self.size)
            if tiles > MAX_TILES:
                raise ValueError(f"pinpoint {first}x{second} has {tiles} tiles; the limit is {MAX_TILES}")
        return self

    def plan(self, height: int, width: int, role: MediumRole, tower: Tower, frames: int = 1) -> Layout:
        """Layout of a picture of (height, width) pixels, or of a clip of `frames` such frames.

        Raises:
            ValueError: tiles, encoder and connector do not fit together.
        """
        side = tower.side(self.size)
        shape = tower.shrink(side, side)
        tiles = (0, 0)
        if role == "video":
            blocks = self._clip(shape, tower, frames)
        elif role == "single" or self.multi == "tiles":
            canvas = self.pinpoint_for(height, width)
            tiles = canvas[0] // self.size, canvas[1] // self.size
            blocks = self._picture(height, width, tiles, shape, tower)
        else:
            blocks = (Block(1, *shape, tail=int(self.newline and tower.spatial)),)
        maps = sum(block.maps for block in blocks)
        return Layout(
            source=(height, width),
            canvas=(self.size, self.size),
            frames=maps,
            grid=Grid(maps, side, side),
            shape=shape,
            blocks=blocks,
            role=role,
            tiles=tiles,
        )

    def pixels(self, images: Iterable[Image.Image], layout: Layout, mean: Colour) -> np.ndarray:
        """RGB images -> uint8 (layout.frames, 3, size, size): base and tiles in raster order, or the frames of a clip.

        `mean` is the encoder's mean colour (0..1), which surrounds the base of one of several pictures.
        """
        if layout.role == "video":
            return np.stack([channels_first(stretch(image, self.size, self.size)) for image in images])
        (image,) = images
        rows, cols = layout.tiles
        if rows == 0:
            return channels_first(stretch(expand_to_square(image, mean), self.size, self.size))[None]
        base = np.stack([channels_first(stretch(image, self.size, self.size))])
        canvas = np.asarray(letterbox(image, rows * self.size, cols * self.size))
        tiles = canvas.reshape(rows, self.size, cols, self.size, 3).transpose(0, 2, 4, 1, 3)
        return np.concatenate([base, tiles.reshape(rows * cols, 3, self.size, self.size)])

    def pinpoint_for(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the pinpoint that a picture is put on.

        It is the one on which most of the picture's own pixels survive, and of those the smallest, and of those the
        first (`select_best_resolution` in both codes).
        """

        def merit(canvas: tuple[int, int]) -> tuple[int, int]:
            scale = min(canvas[1] / width, canvas[0] / height)
            kept = min(int(width * scale) * int(height * scale), width * height)
            return kept, kept - canvas[0] * canvas[1]

        listed = self.pinpoints
        return max(listed if self.rule == "transformers" else ((h, w) for w, h in listed), key=merit)

    def smaller(self) -> Iterator[AnyRes]:
        """The same with ever fewer tiles, a tenth each time, down to the tokens of one (at most 28 steps).

        The pinpoints of the fewest tiles stay, whatever their number.
        """
        tiles = {pinpoint: math.prod(pinpoint) // self.size**2 for pinpoint in self.pinpoints}
        most = max(tiles.values())
        while most > 1:
            most = int(most * STEP)
            cut = max(most, min(tiles.values()))
            pinpoints = tuple(pinpoint for pinpoint in self.pinpoints if tiles[pinpoint] <= cut)
            max_tiles = most if self.max_tiles is None else min(most, self.max_tiles)
            yield self.model_copy(update={"pinpoints": pinpoints, "max_tiles": max_tiles})

    def _picture(
        self, height: int, width: int, tiles: tuple[int, int], shape: tuple[int, int], tower: Tower
    ) -> tuple[Block, ...]:
        """The base, then the mosaic of the tiles."""
        if not tower.spatial:
            return (Block(1 + tiles[0] * tiles[1], *shape),)
        whole = tiles[0] * shape[0], tiles[1] * shape[1]
        kept = self._unpadded(height, width, *whole) if self.unpad else whole
        rows, cols = self._within_budget(kept, shape)
        mosaic = Block(1, rows, cols, int(self.newline), tiles=tiles, kept=None if kept == whole else kept)
        return Block(1, *shape), mosaic

    def _unpadded(self, height: int, width: int, rows: int, cols: int) -> tuple[int, int]:
        """Rows and columns of a mosaic that show the picture.

        As much is cut from both ends, so what is left can be one more than the picture fills (`unpad_image`).
        """
        if width / height > cols / rows:
            return rows - 2 * ((rows - self._truncated(height * (cols / width))) // 2), cols
        return rows, cols - 2 * ((cols - self._truncated(width * (rows / height))) // 2)

    def _truncated(self, length: float) -> int:
        """The original code makes 59 of 59.9999999, which a float error is enough for; transformers makes 60."""
        return int(length) if self.rule == "original" else int(round(length, 7))

    def _within_budget(self, kept: tuple[int, int], shape: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns after `max_tiles`; a strip keeps its one row."""
        if self.max_tiles is None:
            return kept
        times = math.sqrt(kept[0] * kept[1] / (self.max_tiles * shape[0] * shape[1]))
        if times <= SHRINK_ABOVE:
            return kept
        return max(1, int(kept[0] // times)), max(1, int(kept[1] // times))

    def _clip(self, shape: tuple[int, int], tower: Tower, frames: int) -> tuple[Block, ...]:
        """The frames, each pooled; latents have no neighbours, and are left as they are."""
        if not tower.spatial:
            return (Block(frames, *shape),)
        rows, cols = self._pooled(shape[0]), self._pooled(shape[1])
        policy = self.video_newline if self.newline else "no_token"
        if policy == "frame":
            return tuple(Block(1, rows, cols, tail=1, pool=self.video_pool) for _ in range(frames))
        newline, tail = int(policy == "grid"), int(policy == "one_token")
        return (Block(frames, rows, cols, newline, tail, pool=self.video_pool),)

    def _pooled(self, side: int) -> int:
        """Tokens that `video_stride` leaves along a side: bilinear keeps a remainder, the others drop it."""
        if self.video_pool == "bilinear":
            return math.ceil(side / self.video_stride)
        tokens = side // self.video_stride
        if tokens == 0:
            raise ValueError(f"video_stride {self.video_stride} is more than the {side} tokens along a frame's side")
        if side // tokens != self.video_stride:  # a block says its tokens, not its stride: one must give the other
            raise ValueError(
                f"video_stride {self.video_stride} with {self.video_pool} pooling leaves {tokens} of {side} tokens, as "
                f"video_stride {side // tokens} does; take that one"
            )
        return tokens
