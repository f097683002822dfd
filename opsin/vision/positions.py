"""Positions of tokens: one running number, or Qwen2-VL's M-RoPE with an axis each for time, height and width.

Positions come from the layouts, never from token ids, so any interleaving of text, pictures and clips is the same case.
`Positions` at the foot is the only list of schemes in the project.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from opsin.core.types import Block, Layout

Run = tuple[int, Layout]
"""A medium's tokens: how many tokens of the document come before them, and their layout."""


class Sequential(BaseModel):
    """Every token, visual or not, is one further than the token before it (1-D RoPE: LLaVA, LLaVA-OneVision)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["sequential"] = "sequential"

    @property
    def axes(self) -> int:
        """A."""
        return 1

    def ids(self, length: int, runs: Sequence[Run]) -> np.ndarray:
        """Positions (1, length) of one document."""
        del runs
        return np.arange(length, dtype=np.int64)[None]


class MRope(BaseModel):
    """Multimodal rotary positions (Qwen2-VL, arXiv 2409.12191, section 2.1).

    `sections` are how many of the rotary frequencies (half the head width in all) turn with time, height and width.
    Text has the same number on all axes. A block of visual tokens that begins at position s has s + (its map, row and
    column). What follows it resumes

    - `paper`: after the largest number on any axis (the paper, Qwen's fine-tuning code, vLLM, transformers 4)
    - `transformers5`: after the largest row or column, whatever the number of frames. Positions of a long clip's last
      frames are then used a second time by the text behind it; for comparisons with transformers 5 only
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["mrope"] = "mrope"
    sections: tuple[int, int, int] = Field((16, 24, 24))
    resume: Literal["paper", "transformers5"] = "paper"

    @model_validator(mode="after")
    def _positive(self) -> MRope:
        if min(self.sections) < 1:
            raise ValueError(f"each of the three sections needs at least one frequency, got {self.sections}")
        return self

    @property
    def axes(self) -> int:
        """A."""
        return 3

    def ids(self, length: int, runs: Sequence[Run]) -> np.ndarray:
        """Positions (3, length) of one document."""
        pieces: list[np.ndarray] = []
        done, following = 0, 0
        for place, layout in runs:
            pieces.append(_text(place - done, following))
            following += place - done
            done = place + layout.tokens
            for block in layout.blocks:
                ids, following = self._block(block, following)
                pieces.append(ids)
        pieces.append(_text(length - done, following))
        return np.concatenate(pieces, axis=1)

    def _block(self, block: Block, start: int) -> tuple[np.ndarray, int]:
        """Positions of a block (the newline is a further column, the tail is like text) and the one that follows it."""
        width = block.cols + block.newline
        if block.t * block.rows * width == 0:
            return _text(block.tail, start), start + block.tail
        grid = np.indices((block.t, block.rows, width), dtype=np.int64).reshape(3, -1) + start
        extents = (block.t, block.rows, width) if self.resume == "paper" else (block.rows, width)
        following = start + max(extents)
        return np.concatenate([grid, _text(block.tail, following)], axis=1), following + block.tail


def _text(length: int, start: int) -> np.ndarray:
    return np.broadcast_to(np.arange(start, start + length, dtype=np.int64), (3, length))


Positions = Annotated[Sequential | MRope, Field(discriminator="kind")]
