"""How a sample's pictures and clips are made smaller, step by step, where they are too much for a pack.

The ladder of a resolution is a pure function of it, so a number of a step is all that has to be remembered: first the
resolution's own smaller versions, then, at the smallest, half of every clip's frames again and again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

from opsin.vision.native import Native
from opsin.vision.resolution import Resolution
from opsin.vision.tower import Tower

HALVINGS = 10
"""Enough to leave one of 1,024 frames, the most that are taken of a video."""

Frame = TypeVar("Frame")


@dataclass(frozen=True, slots=True)
class Step:
    """A step of a ladder: how pictures are cut, and how often every second frame of a clip is left out."""

    resolution: Resolution
    halvings: int = 0


@lru_cache(maxsize=64)
def ladder(resolution: Resolution) -> tuple[Step, ...]:
    """Step 0 is the resolution as it is; every further one shows less."""
    sizes = (resolution, *resolution.smaller())
    halved = (Step(sizes[-1], halvings) for halvings in range(1, HALVINGS + 1))
    return (*map(Step, sizes), *halved)


def thinned(frames: tuple[Frame, ...], step: Step, tower: Tower) -> tuple[Frame, ...]:
    """Every second frame, from the first on, as often as the step says, as long as fewer frames cost less."""
    least = tower.temporal if isinstance(step.resolution, Native) else 1
    for _ in range(step.halvings):
        if len(frames) > least:
            frames = frames[::2]
    return frames
