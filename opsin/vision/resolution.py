"""The only list of resolutions in the project.

A resolution is a value with two functions: `plan`, which makes a `Layout` from (height, width, role) alone, and
`pixels`, which cuts what the layout promised.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from opsin.vision.any_res import AnyRes
from opsin.vision.colour import Colour
from opsin.vision.native import Native
from opsin.vision.square import Square

Resolution = Annotated[Square | AnyRes | Native, Field(discriminator="kind")]

__all__ = ["AnyRes", "Colour", "Native", "Resolution", "Square"]
