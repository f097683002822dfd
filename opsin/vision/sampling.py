"""Which frames of a video are taken: the published rules, as functions of how many frames it has and how fast.

All give the numbers of the frames in order, from 0. Rates are frames per second.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

QwenRule = Literal["0.0.8", "0.0.14", "transformers"]
"""Qwen2-VL's samplers: those of two versions of qwen-vl-utils, and the one in transformers 5."""

FRAME_FACTOR = 2
"""Qwen2-VL takes frames in pairs."""


def llava_frames(total: int, rate: float, *, target: float = 1.0, most: int = 32, spread: bool = False) -> np.ndarray:
    """LLaVA-OneVision: about `target` frames a second, and `most` spread evenly over the video where those are more.

    `spread` takes `most` in any case (LLaVA-NeXT's `force_sample`), some of them twice in a short video.

    Raises:
        ValueError: a number is not positive.
    """
    _check(total, rate, target)
    if most < 1:
        raise ValueError(f"most must be at least 1 frame, got {most}")
    frames = np.arange(0, total, max(1, round(rate / target)))
    if len(frames) <= most and not spread:
        return frames
    return np.linspace(0, total - 1, most, dtype=np.int64)


def qwen_frames(
    total: int,
    rate: float,
    *,
    rule: QwenRule = "0.0.8",
    target: float = 2.0,
    count: int | None = None,
    least: int = 4,
    most: int = 768,
) -> np.ndarray:
    """Qwen2-VL: `target` frames a second, an even number between `least` and `most`, spread evenly over the video.

    `count` asks for a number of frames instead, rounded to an even one. `transformers` never takes the last frame.

    Raises:
        ValueError: the video has fewer frames than are asked for, or less than two; or a number is not positive.
    """
    _check(total, rate, target)
    wanted = _even(round, count) if count is not None else _wanted(total, total / rate * target, rule, least, most)
    if not FRAME_FACTOR <= wanted <= total:
        raise ValueError(
            f"{wanted} frames are to be taken of a video of {total}; the number must be from {FRAME_FACTOR} to {total}"
        )
    if rule == "transformers":
        # Its arange can, by rounding, give one more number than it was asked for, which is no frame.
        return (np.arange(wanted) * (total / wanted)).astype(np.float32).astype(np.int64)
    return _linspace(total - 1, wanted)


def _wanted(total: int, even_spread: float, rule: QwenRule, least: int, most: int) -> int:
    """The number of frames under a rule: they differ in how they make it even, and in what a short video allows."""
    most = _even(math.floor, min(most, total))
    if rule == "transformers":
        return _even(math.floor, min(max(even_spread, least), most, total))
    bounded = min(max(even_spread, _even(math.ceil, least)), most)
    if rule == "0.0.14":
        return _even(math.floor, min(bounded, total))
    return _even(round, bounded)


def _even(rounding: Callable[[float], int], number: float) -> int:
    return int(rounding(number / FRAME_FACTOR)) * FRAME_FACTOR


def _linspace(last: int, count: int) -> np.ndarray:
    """`torch.linspace(0, last, count).round()` without torch: single precision, from both ends to the middle.

    A frame that lies half-way between two is decided by its rounding errors, so they have to be the same.
    """
    step = float(np.float32(last) / np.float32(count - 1))
    index = np.arange(count)
    exact = np.where(index < count // 2, step * index, last - step * (count - 1 - index))
    return np.round(exact.astype(np.float32)).astype(np.int64)


def _check(total: int, rate: float, target: float) -> None:
    if total < 1:
        raise ValueError(f"a video has at least 1 frame, got {total}")
    if not (0 < rate < math.inf and 0 < target < math.inf):
        raise ValueError(f"frames per second must be positive numbers, got {rate} and {target}")


class EvenFrames(BaseModel):
    """So many frames, spread evenly over a video; all of them where it has fewer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["even"] = "even"
    count: int = Field(default=8, ge=1, le=1024)

    def take(self, total: int, rate: float) -> tuple[int, ...]:
        """Numbers of the frames that are taken of `total`."""
        _check(total, rate, 1.0)
        return tuple(np.linspace(0, total - 1, min(self.count, total)).round().astype(int).tolist())


class LlavaFrames(BaseModel):
    """LLaVA-OneVision's rule: `rate` frames a second, at most `most` (`llava_frames`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["llava"] = "llava"
    rate: float = Field(default=1.0, gt=0, le=120)
    most: int = Field(default=32, ge=1, le=1024)
    spread: bool = False

    def take(self, total: int, rate: float) -> tuple[int, ...]:
        """Numbers of the frames that are taken of `total`."""
        return tuple(llava_frames(total, rate, target=self.rate, most=self.most, spread=self.spread).tolist())


class QwenFrames(BaseModel):
    """Qwen2-VL's rule: `rate` frames a second, an even number from `least` to `most` (`qwen_frames`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["qwen"] = "qwen"
    rule: QwenRule = "0.0.8"
    rate: float = Field(default=2.0, gt=0, le=120)
    least: int = Field(default=4, ge=2, le=1024)
    most: int = Field(default=768, ge=2, le=1024)

    def take(self, total: int, rate: float) -> tuple[int, ...]:
        """Numbers of the frames that are taken of `total`.

        Raises:
            ValueError: the video has fewer than two frames.
        """
        found = qwen_frames(total, rate, rule=self.rule, target=self.rate, least=self.least, most=self.most)
        return tuple(found.tolist())


Sampling = Annotated[EvenFrames | LlavaFrames | QwenFrames, Field(discriminator="kind")]
"""The only list of frame sampling rules in the project."""
