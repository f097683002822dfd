"""Colours of encoders, and of the canvas around a picture."""

from __future__ import annotations

Colour = tuple[float, float, float]
"""Red, green, blue in 0..1."""


def mean_colour(mean: Colour) -> tuple[int, int, int]:
    """LLaVA's padding colour: truncated, not rounded, so CLIP's mean is (122, 116, 104)."""
    red, green, blue = (int(255 * channel) for channel in mean)
    return red, green, blue
