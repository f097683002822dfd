"""The only list of resolutions in the project.

A resolution is a value with three functions: `plan`, which makes a `Layout` from (height, width, role) alone,
`pixels`, which cuts what a layout promised (its own, or one of `smaller`), and `smaller`, which gives ever smaller
versions of it for samples that are too long.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from opsin.core.errors import ModelError
from opsin.core.types import Layout, MediumRole
from opsin.vision.any_res import AnyRes
from opsin.vision.colour import Colour
from opsin.vision.native import Native
from opsin.vision.square import Square
from opsin.vision.tower import Tower

__all__ = ["AnyRes", "Colour", "Native", "Resolution", "Square", "plan_layout"]

Resolution = Annotated[Square | AnyRes | Native, Field(discriminator="kind")]


def plan_layout(
    resolution: Resolution, height: int, width: int, role: MediumRole, tower: Tower, frames: int = 1
) -> Layout:
    """Layout of a picture of (height, width) pixels, or of a clip of `frames` such frames.

    Raises:
        ModelError: a number is not positive, the medium is too long and thin, or the parts do not fit together.
    """
    if min(height, width, frames) < 1:
        raise ModelError(f"{height}x{width} pixels (HxW), {frames} frames: each must be at least 1")
    try:
        return resolution.plan(height, width, role, tower, frames)
    except ValueError as error:
        raise ModelError(str(error)) from None
