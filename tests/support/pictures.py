"""Drawn pictures, and towers of every kind of connector, for tests of the resolutions."""

from __future__ import annotations

import numpy as np
from PIL import Image

from opsin.vision.tower import Tower


def drawing(width: int, height: int) -> Image.Image:
    """The picture of the golden files: R = x * 255 // (w - 1), G = y * 255 // (h - 1), B = (x + y) % 256."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [x * 255 // max(1, width - 1), y * 255 // max(1, height - 1), (x + y) % 256]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def tower(kind: str = "patchwise", patch: int = 2) -> Tower:
    """Patchwise, folding 2 x 2 patches, pooling to 2 x 2 tokens, or a resampler of 5 latents; 2 frames a map."""
    if kind == "fold":
        return Tower(patch, lambda rows, cols: (rows // 2, cols // 2), temporal=2, fold=2)
    if kind == "pool":
        return Tower(patch, lambda _rows, _cols: (2, 2), temporal=2)
    if kind == "latents":
        return Tower(patch, lambda _rows, _cols: (1, 5), temporal=2, spatial=False)
    return Tower(patch, lambda rows, cols: (rows, cols), temporal=2, trims=True)


TOWERS = ("patchwise", "fold", "pool", "latents")
