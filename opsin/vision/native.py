"""Native resolution: a picture keeps its size, rounded to whole tokens (Qwen2-VL, arXiv 2409.12191)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import ClassVar, Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

from opsin.core.types import Block, Grid, Layout, MediumRole
from opsin.vision.canvas import channels_first, stretch
from opsin.vision.colour import Colour
from opsin.vision.picture import MAX_ASPECT, MAX_PIXELS
from opsin.vision.tower import Tower

CLIP_PIXELS = 24_576 * 28 * 28
"""Pixels of a whole clip in the original code (qwen-vl-utils 0.0.8); the paper has 16384 * 28 * 28."""

STEP = 0.8
"""Each step of `smaller` has about this many times the pixels of the step before."""

MAX_STEPS = 40

BUDGET_SLACK = 1.05
"""However long a clip, its frames are not made smaller than by this factor over `video_min_pixels`."""


class Native(BaseModel):
    """Any size between `min_pixels` and `max_pixels`, each side a multiple of a token's.

    - `video_min_pixels`, `video_max_pixels`: the same for a frame of a clip
    - `video_total_pixels`: what the frames that become patches may have together (each patch is `tower.temporal`
      frames deep, so the frames may have that many times more). By default `CLIP_PIXELS` under the rule `original`, and
      no limit under `transformers`. qwen-vl-utils 0.0.14 has int(128000 * 28 * 28 * 0.9)
    - `rule`: `original` keeps each side at least a token long before it compares sizes (qwen-vl-utils), `transformers`
      only after it; they differ for sides below half a token
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    newline: ClassVar[bool] = False
    kind: Literal["native"] = "native"
    min_pixels: int = Field(default=3136, ge=1, le=MAX_PIXELS)
    max_pixels: int = Field(default=12_845_056, ge=1, le=MAX_PIXELS)
    video_min_pixels: int = Field(default=128 * 28 * 28, ge=1, le=MAX_PIXELS)
    video_max_pixels: int = Field(default=768 * 28 * 28, ge=1, le=MAX_PIXELS)
    video_total_pixels: int | None = Field(default=None, ge=1)
    rule: Literal["original", "transformers"] = "original"

    @model_validator(mode="after")
    def _in_order(self) -> Native:
        if self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels {self.min_pixels} is more than max_pixels {self.max_pixels}")
        if self.video_min_pixels > self.video_max_pixels:
            raise ValueError(
                f"video_min_pixels {self.video_min_pixels} is more than video_max_pixels {self.video_max_pixels}"
            )
        return self

    def plan(self, height: int, width: int, role: MediumRole, tower: Tower, frames: int = 1) -> Layout:
        """Layout of a picture of (height, width) pixels, or of a clip of `frames` such frames.

        A clip's last frame is repeated until the frames fill whole patches; a picture stays one frame.

        Raises:
            ValueError: the picture is too long and thin, or the connector cannot take its grid.
        """
        factor = tower.patch * tower.fold
        if role == "video":
            maps = math.ceil(frames / tower.temporal)
            most = self._frame_pixels(frames, tower.temporal)
            canvas = self.smart_resize(height, width, factor, self.video_min_pixels, most)
        else:
            maps = 1
            canvas = self.smart_resize(height, width, factor, self.min_pixels, self.max_pixels)
        grid = Grid(maps, canvas[0] // tower.patch, canvas[1] // tower.patch)
        shape = tower.shrink(grid.h, grid.w)
        return Layout(
            source=(height, width),
            canvas=canvas,
            frames=maps * tower.temporal if role == "video" else 1,
            grid=grid,
            shape=shape,
            blocks=(Block(maps, *shape),),
            role=role,
        )

    def pixels(self, images: Iterable[Image.Image], layout: Layout, mean: Colour) -> np.ndarray:
        """RGB images -> uint8 (layout.frames, 3, *layout.canvas)."""
        del mean
        frames = [channels_first(stretch(image, *layout.canvas)) for image in images]
        return np.stack(frames + frames[-1:] * (layout.frames - len(frames)))

    def smaller(self) -> Iterator[Native]:
        """The same with ever lower limits, down to the least pixels that a picture and a frame may have.

        Both arrive there together, in steps of about `STEP`, or wider ones where there would be more than `MAX_STEPS`.
        """
        picture = self.min_pixels / self.max_pixels
        frame = self.video_min_pixels / self.video_max_pixels
        steps = min(MAX_STEPS, math.ceil(math.log(min(picture, frame), STEP)))
        total = self._total_pixels
        for step in range(1, steps + 1):
            share = step / steps
            changes: dict[str, int] = {
                "max_pixels": max(self.min_pixels, int(self.max_pixels * picture**share)),
                "video_max_pixels": max(self.video_min_pixels, int(self.video_max_pixels * frame**share)),
            }
            if total is not None:
                changes["video_total_pixels"] = max(1, int(total * frame**share))
            yield self.model_copy(update=changes)

    def smart_resize(self, height: int, width: int, factor: int, least: int, most: float) -> tuple[int, int]:
        """(height, width) in multiples of `factor`, of about `least` to `most` pixels, the aspect ratio nearly kept.

        The rounded area is held against the limits, and the raw one scaled to them, as in all published versions. A
        side never falls to 0, which qwen-vl-utils lets happen for strips.

        Raises:
            ValueError: the aspect ratio is over the limit.
        """
        aspect = max(height, width) / min(height, width)
        if aspect > MAX_ASPECT:
            raise ValueError(f"{height}x{width} pixels (HxW) is {aspect:.2f}:1; the limit is {MAX_ASPECT}:1")
        floor = factor if self.rule == "original" else 0
        rounded = [max(floor, round(side / factor) * factor) for side in (height, width)]
        if math.prod(rounded) > most:
            scale = math.sqrt(height * width / most)
            rounded = [max(factor, math.floor(side / scale / factor) * factor) for side in (height, width)]
        elif math.prod(rounded) < least:
            scale = math.sqrt(least / (height * width))
            rounded = [math.ceil(side * scale / factor) * factor for side in (height, width)]
        return rounded[0], rounded[1]

    def _frame_pixels(self, frames: int, temporal: int) -> float:
        """What a frame may have: an even share of what the clip may have, up to a frame's own limit."""
        total = self._total_pixels
        if total is None:
            return self.video_max_pixels
        return max(min(self.video_max_pixels, total / frames * temporal), int(self.video_min_pixels * BUDGET_SLACK))

    @property
    def _total_pixels(self) -> int | None:
        if self.video_total_pixels is None and self.rule == "original":
            return CLIP_PIXELS
        return self.video_total_pixels
