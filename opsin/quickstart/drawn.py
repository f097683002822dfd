"""Drawn stamps, for a run without any download: four shapes in nine colours."""

from __future__ import annotations

import math

from PIL import Image, ImageDraw

from opsin.core.errors import AssetError
from opsin.quickstart.captions import clean_caption
from opsin.quickstart.stamps import Collection, Stamp, make_stamp
from opsin.synthesize.context import Group

CUTOUT_SIDE = 64

DRAWN_GROUPS = (
    Group("circles", "a circle", "circles"),
    Group("squares", "a square", "squares"),
    Group("triangles", "a triangle", "triangles"),
    Group("stars", "a star", "stars"),
)

COLOURS = {
    "red": (214, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (240, 210, 40),
    "green": (40, 150, 70),
    "blue": (40, 80, 200),
    "purple": (130, 60, 170),
    "pink": (245, 130, 180),
    "brown": (120, 75, 40),
    "black": (25, 25, 25),
}


def draw_stamps() -> Collection:
    """Every shape in every colour."""
    stamps = []
    for group in DRAWN_GROUPS:
        noun = group.label.removesuffix("s")
        for colour, rgb in COLOURS.items():
            caption = clean_caption(f"A {colour} {noun}.")
            stamp = make_stamp(f"{group.label}/{colour}_{noun}", caption, (group.label,), draw_shape(noun, rgb))
            if not isinstance(stamp, Stamp):
                raise AssetError(f"the drawn {colour} {noun} came out wrong: {stamp.reason}")
            stamps.append(stamp)
    return Collection(tuple(stamps), ())


def draw_shape(noun: str, rgb: tuple[int, int, int]) -> Image.Image:
    """One shape on a transparent ground."""
    image = Image.new("RGBA", (CUTOUT_SIDE, CUTOUT_SIDE), (*rgb, 0))
    pen, last = ImageDraw.Draw(image), CUTOUT_SIDE - 1
    if noun == "circle":
        pen.ellipse((0, 0, last, last), fill=rgb)
    elif noun == "square":
        pen.rectangle((0, 0, last, last), fill=rgb)
    elif noun == "triangle":
        pen.polygon(((last / 2, 0), (last, last), (0, last)), fill=rgb)
    elif noun == "star":
        pen.polygon(_star(last / 2), fill=rgb)
    else:
        raise ValueError(f"cannot draw {noun!r}: expected circle, square, triangle or star")
    return image


def _star(radius: float) -> list[tuple[float, float]]:
    points = []
    for corner in range(10):
        reach = radius * (1.0 if corner % 2 == 0 else 0.42)
        angle = math.pi * corner / 5 - math.pi / 2
        points.append((radius + reach * math.cos(angle), radius + reach * math.sin(angle)))
    return points
