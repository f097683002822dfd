"""Resolutions: how a picture of any size becomes pixels for the encoder, and the `Layout` it gets.

A resolution plans a `Layout` from (height, width, role) alone, and later cuts the pixels that the layout promised.
`Resolution` at the foot is the only list of resolutions in the project.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from opsin.core.types import Block, Grid, Layout, PictureRole

Colour = tuple[float, float, float]
"""Red, green, blue in 0..1."""

MAX_CANVAS = 4096
"""Longest side that `pad` puts on a canvas; larger pictures are reduced by a whole factor first."""

Shrink = Callable[[int, int], tuple[int, int]]
"""Patch grid (rows, cols) -> token grid, as the connector folds it."""


class Square(BaseModel):
    """One fixed square (LLaVA, arXiv 2304.08485 and 2310.03744).

    - `pad`: onto a square canvas of the mean colour, then resized (LLaVA-1.5 instruction tuning; nothing is lost)
    - `crop`: shortest side resized, centre cropped (CLIP's own preprocessing, LLaVA pre-training)
    - `stretch`: resized without keeping the aspect ratio
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["square"] = "square"
    size: int = Field(336, ge=8, le=4096)
    fit: Literal["pad", "crop", "stretch"] = "pad"

    def plan(self, height: int, width: int, role: PictureRole, *, patch: int, shrink: Shrink) -> Layout:
        """Layout of a picture; a square costs the same whatever the picture's size and role.

        Raises:
            ValueError: `size` is not a multiple of the encoder's patch size.
        """
        del role
        if self.size % patch:
            raise ValueError(f"resolution size {self.size} is not a multiple of the encoder's patch size {patch}")
        side = self.size // patch
        rows, cols = shrink(side, side)
        return Layout(
            source=(height, width),
            canvas=(self.size, self.size),
            grids=(Grid(1, side, side),),
            blocks=(Block(1, rows, cols),),
        )

    def pixels(self, image: Image.Image, mean: Colour) -> np.ndarray:
        """RGB image -> uint8 (3, size, size). `mean` is the encoder's mean colour (0..1), used by `pad`."""
        if self.fit == "pad":
            image = expand_to_square(image, mean)
        if self.fit == "crop":
            image = _crop(image, self.size)
        else:
            image = image.resize((self.size, self.size), Image.Resampling.BICUBIC)
        return np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1))


def mean_colour(mean: Colour) -> tuple[int, int, int]:
    """LLaVA's padding colour: truncated, not rounded, so CLIP's mean is (122, 116, 104)."""
    red, green, blue = (int(255 * channel) for channel in mean)
    return red, green, blue


def expand_to_square(image: Image.Image, mean: Colour) -> Image.Image:
    """LLaVA's `expand2square`: centred on a square of the mean colour; an odd remainder goes to the bottom or right."""
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    if side > MAX_CANVAS:  # a 16,384 x 82 strip would need a canvas of a gigabyte
        image = image.reduce(math.ceil(side / MAX_CANVAS))
        width, height = image.size
        side = max(width, height)
    canvas = Image.new("RGB", (side, side), mean_colour(mean))
    canvas.paste(image, ((side - width) // 2, (side - height) // 2))
    return canvas


def _crop(image: Image.Image, size: int) -> Image.Image:
    """Shortest side to `size` (long side truncated, as CLIP's processor does), then the centre."""
    width, height = image.size
    short = min(width, height)
    new_width, new_height = int(size * width / short), int(size * height / short)
    image = image.resize((new_width, new_height), Image.Resampling.BICUBIC)
    left, top = (new_width - size) // 2, (new_height - size) // 2
    return image.crop((left, top, left + size, top + size))


Resolution = Square
