"""How a picture is put on a canvas, always by Pillow's bicubic filter: the resolutions decide, these functions do."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from opsin.vision.colour import Colour, mean_colour
from opsin.vision.picture import MAX_PIXELS

MAX_SQUARE = math.isqrt(MAX_PIXELS)
"""Longest side of a picture that is padded to a square as it is: the square has no more pixels than a picture may."""


def channels_first(image: Image.Image) -> np.ndarray:
    """RGB image -> uint8 (3, height, width)."""
    return np.asarray(image, dtype=np.uint8).transpose(2, 0, 1)


def stretch(image: Image.Image, height: int, width: int) -> Image.Image:
    """Resized without keeping the aspect ratio."""
    return image.resize((width, height), Image.Resampling.BICUBIC)


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """Shortest side to `size` (the long side truncated, as CLIP's processor does), then the square in the middle."""
    width, height = image.size
    short = min(width, height)
    new_width, new_height = int(size * width / short), int(size * height / short)
    left, top = (new_width - size) // 2, (new_height - size) // 2
    return stretch(image, new_height, new_width).crop((left, top, left + size, top + size))


def expand_to_square(image: Image.Image, mean: Colour) -> Image.Image:
    """LLaVA's `expand2square`: centred on a square of the mean colour; an odd remainder goes to the bottom or right."""
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    if side > MAX_SQUARE:  # a strip of 16,384 x 82 would need a canvas of a gigabyte
        image = image.reduce(math.ceil(side / MAX_SQUARE))
        width, height = image.size
        side = max(width, height)
    square = Image.new("RGB", (side, side), mean_colour(mean))
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def letterbox(image: Image.Image, height: int, width: int) -> Image.Image:
    """As large as fits into the canvas with its aspect ratio kept, centred on black (LLaVA-NeXT's `resize_and_pad`)."""
    across, down = width / image.width, height / image.height
    if across < down:
        fitted = stretch(image, min(math.ceil(image.height * across), height), width)
    else:
        fitted = stretch(image, height, min(math.ceil(image.width * down), width))
    canvas = Image.new("RGB", (width, height))
    canvas.paste(fitted, ((width - fitted.width) // 2, (height - fitted.height) // 2))
    return canvas
