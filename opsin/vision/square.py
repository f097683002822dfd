"""One fixed square for every picture (LLaVA)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar, Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from opsin.core.types import Block, Grid, Layout, MediumRole
from opsin.vision.canvas import centre_crop, channels_first, expand_to_square, stretch
from opsin.vision.colour import Colour
from opsin.vision.tower import Tower


class Square(BaseModel):
    """One fixed square (LLaVA, arXiv 2304.08485 and 2310.03744).

    - `pad`: onto a square canvas of the mean colour, then resized (LLaVA-1.5 instruction tuning; nothing is lost)
    - `crop`: shortest side resized, centre cropped (CLIP's own preprocessing, LLaVA pre-training)
    - `stretch`: resized without keeping the aspect ratio
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    newline: ClassVar[bool] = False
    kind: Literal["square"] = "square"
    size: int = Field(default=336, ge=8, le=4096)
    fit: Literal["pad", "crop", "stretch"] = "pad"

    def plan(self, height: int, width: int, role: MediumRole, tower: Tower, frames: int = 1) -> Layout:
        """Layout of a picture, or of a clip of `frames` frames; a square costs the same whatever the picture's size.

        Raises:
            ValueError: `size` is not a multiple of the encoder's patch size, or the connector cannot take the grid.
        """
        side = tower.side(self.size)
        rows, cols = tower.shrink(side, side)
        return Layout(
            source=(height, width),
            canvas=(self.size, self.size),
            frames=frames,
            grid=Grid(frames, side, side),
            shape=(rows, cols),
            blocks=(Block(frames, rows, cols),),
            role=role,
        )

    def pixels(self, images: Iterable[Image.Image], layout: Layout, mean: Colour) -> np.ndarray:
        """RGB images -> uint8 (frames, 3, size, size). `mean` is the encoder's mean colour (0..1), used by `pad`."""
        del layout
        return np.stack([channels_first(self._square(image, mean)) for image in images])

    def smaller(self) -> Iterator[Square]:
        """Nothing: a picture is one square, whatever it costs."""
        yield from ()

    def _square(self, image: Image.Image, mean: Colour) -> Image.Image:
        if self.fit == "crop":
            return centre_crop(image, self.size)
        if self.fit == "pad":
            image = expand_to_square(image, mean)
        return stretch(image, self.size, self.size)
