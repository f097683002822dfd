"""What samples cost, as columns: all that a plan needs to know of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np

from opsin.core.types import Clip, Example, Medium

Kind = Literal["text", "image", "images", "video"]
"""What a sample shows: nothing, one picture, several pictures, or a video (and perhaps pictures beside it)."""

KINDS: tuple[Kind, ...] = ("text", "image", "images", "video")


def kind_of(media: Sequence[Medium]) -> Kind:
    """What a conversation with these media shows."""
    if any(isinstance(medium, Clip) for medium in media):
        return "video"
    return "images" if len(media) > 1 else "image" if media else "text"


@dataclass(frozen=True)
class Costs:
    """Of every sample (int64 each): tokens, visual and supervised ones of them, encoder patches, and its kind as an
    index of `KINDS`."""

    tokens: np.ndarray
    visual: np.ndarray
    supervised: np.ndarray
    patches: np.ndarray
    kinds: np.ndarray

    @staticmethod
    def of(examples: Iterable[Example]) -> Costs:
        """The costs of examples."""
        return Costs.from_rows([cost_of(example) for example in examples])

    @staticmethod
    def from_rows(rows: Sequence[tuple[int, ...]]) -> Costs:
        """From one tuple (`cost_of`) a sample."""
        columns = np.array(rows, dtype=np.int64).reshape(len(rows), len(fields(Costs))).T
        return Costs(*(np.ascontiguousarray(column) for column in columns))

    @staticmethod
    def joined(parts: Sequence[Costs]) -> Costs:
        """One after the other."""
        return Costs(*(np.concatenate([getattr(p, f.name) for p in parts] or [_NONE]) for f in fields(Costs)))

    def __len__(self) -> int:
        return len(self.tokens)

    def row(self, sample: int) -> tuple[int, ...]:
        """One sample's, as `cost_of` gave it."""
        return tuple(int(getattr(self, field.name)[sample]) for field in fields(Costs))

    def columns(self) -> np.ndarray:
        """All columns as rows of one new array."""
        return np.stack([getattr(self, field.name) for field in fields(Costs)])

    def take(self, samples: np.ndarray) -> Costs:
        """The costs of some samples, by index or by mask."""
        return Costs(*(getattr(self, field.name)[samples] for field in fields(Costs)))

    def by_kind(self) -> dict[Kind, int]:
        """How many samples there are of each kind that there is."""
        numbers = np.bincount(self.kinds, minlength=len(KINDS)).tolist()
        return {kind: number for kind, number in zip(KINDS, numbers, strict=True) if number}


_NONE = np.empty(0, dtype=np.int64)


def cost_of(example: Example) -> tuple[int, int, int, int, int]:
    """One row of `Costs`."""
    return (
        example.num_tokens,
        int(example.visual_T.sum()),
        example.num_supervised,
        example.num_patches,
        KINDS.index(kind_of(example.media)),
    )
