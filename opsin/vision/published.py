"""The published models by name: how they cut pictures, and what they make of the patches. Torch-free.

Sources: the original code of each, with the pixel limits of Qwen2-VL's checkpoints. `PUBLISHED` is the only list.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from opsin.core.types import Layout, MediumRole
from opsin.vision.any_res import NEXT_PINPOINTS, ONEVISION_PINPOINTS, AnyRes
from opsin.vision.native import Native
from opsin.vision.resolution import Resolution, plan_layout
from opsin.vision.square import Square
from opsin.vision.tower import Tower


@dataclass(frozen=True)
class Published:
    """A model's resolution and what it has to know of encoder and connector."""

    resolution: Resolution
    tower: Tower

    def layout(self, height: int, width: int, role: MediumRole, frames: int = 1) -> Layout:
        """Geometry of one picture of (height, width) pixels, or of a clip of `frames` such frames.

        Raises:
            ModelError: the model cannot take it.
        """
        return plan_layout(self.resolution, height, width, role, self.tower, frames)


def _each_patch(rows: int, cols: int) -> tuple[int, int]:
    """LLaVA's MLP."""
    return rows, cols


def _two_by_two(rows: int, cols: int) -> tuple[int, int]:
    """Qwen2-VL's merger."""
    return rows // 2, cols // 2


CLIP_L = Tower(patch=14, shrink=_each_patch)
SIGLIP = Tower(patch=14, shrink=_each_patch, trims=True)
NATIVE_VIT = Tower(patch=14, shrink=_two_by_two, temporal=2, fold=2)

PUBLISHED: Mapping[str, Published] = MappingProxyType(
    {
        "llava-1.5": Published(Square(size=336), CLIP_L),
        "llava-next": Published(AnyRes(size=336, pinpoints=NEXT_PINPOINTS), CLIP_L),
        "llava-onevision": Published(AnyRes(size=384, pinpoints=ONEVISION_PINPOINTS, max_tiles=9), SIGLIP),
        "qwen2-vl": Published(Native(), NATIVE_VIT),
    }
)
