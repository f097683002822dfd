"""The nouns of opsin. Every other module is a verb between two of them.

Shape legend (suffixes of array and tensor names, one for the whole project)::

    T  packed tokens (all documents of a batch, one after the other, no padding)
    S  supervised tokens          N  visual tokens, after the connector
    P  patches, before it         G  pictures of a batch
    C  vision width               D  language width
    H  heads                      V  vocabulary
    B  rows of a generation batch L  length of one row's cache

The flow (each arrow is one function)::

    record -> Conversation -> Rendered -> Example -> Batch -> embeddings_TD -> hidden_TD -> loss
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # torch and numpy are imported by the verbs, not by the nouns
    import numpy as np
    from torch import Tensor

Role = Literal["system", "user", "assistant"]
PictureRole = Literal["single", "multi"]

IGNORE_INDEX = -100
"""Target of a position that is not learned (the value PyTorch's cross entropy ignores)."""

PLACEHOLDER_ID = 0
"""Token id that stands at a visual position. Its embedding is overwritten by the splice."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A reference to an image, opened late and safely (`opsin.vision.picture`).

    Exactly one of `path` and `data` is set.
    """

    path: Path | None = None
    data: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if (self.path is None) == (self.data is None):
            raise ValueError("a Picture is either a path or bytes, exactly one of them")

    @property
    def name(self) -> str:
        """What to call the picture in messages."""
        return str(self.path) if self.path is not None else f"<{len(self.data or b'')} bytes>"


Part = str | Picture


@dataclass(frozen=True, slots=True)
class Turn:
    """One speaker's contribution. Media are parts, never a substring of the text."""

    role: Role
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in order; `id` and `where` (file:line) name the sample in every message."""

    id: str
    turns: tuple[Turn, ...]
    where: str = ""

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All pictures, in reading order."""
        return tuple(p for turn in self.turns for p in turn.parts if isinstance(p, Picture))


@dataclass(frozen=True, slots=True)
class Grid:
    """Patches that attend to each other in the encoder: `t` frames of `h` x `w`."""

    t: int
    h: int
    w: int

    @property
    def patches(self) -> int:
        """Number of patches."""
        return self.t * self.h * self.w


@dataclass(frozen=True, slots=True)
class Block:
    """What the language model sees of a grid: `t` maps of `rows` x `cols`, `newline` more a row, `tail` at the end."""

    t: int
    rows: int
    cols: int
    newline: int = 0
    tail: int = 0

    @property
    def tokens(self) -> int:
        """Sequence positions of the block."""
        return self.t * self.rows * (self.cols + self.newline) + self.tail


@dataclass(frozen=True, slots=True)
class Layout:
    """Geometry as a value: decided once per picture from its size and role, read by everything downstream.

    `source` and `canvas` are (height, width) in pixels: of the picture, and of what the encoder is given.
    """

    source: tuple[int, int]
    canvas: tuple[int, int]
    grids: tuple[Grid, ...]
    blocks: tuple[Block, ...]

    @property
    def tokens(self) -> int:
        """Sequence positions that stand for the picture."""
        return sum(block.tokens for block in self.blocks)

    @property
    def patches(self) -> int:
        """Encoder patches that the picture costs."""
        return sum(grid.patches for grid in self.grids)


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation as numbers, pixels still unopened.

    `tokens_T` int64, `supervised_T` bool (this token is learned), `visual_T` bool (a visual token goes here;
    the id there is `PLACEHOLDER_ID`). `visual_T` has exactly `sum(layout.tokens)` true entries, in picture order.
    """

    id: str
    where: str
    tokens_T: np.ndarray
    supervised_T: np.ndarray
    visual_T: np.ndarray
    pictures: tuple[Picture, ...]
    layouts: tuple[Layout, ...]

    @property
    def num_tokens(self) -> int:
        """Length in tokens, visual ones included."""
        return len(self.tokens_T)

    @property
    def num_supervised(self) -> int:
        """Tokens that are learned (the first token of a sequence has nothing that predicts it)."""
        return int(self.supervised_T[1:].sum())


@dataclass(frozen=True, slots=True)
class Batch:
    """One flat pack of whole documents: no batch axis, no padding, no attention mask.

    - `tokens_T` int64, `positions_T` int64 (restarting at 0 in every document)
    - `targets_T` int64: the id that position must predict, `IGNORE_INDEX` where nothing is learned
    - `lengths`: tokens per document; they sum to T
    - `visual_N` int64: positions in `tokens_T` that visual tokens take, in picture order
    - `pixels` uint8 (G, 3, height, width), or None when there is no picture or `features_GPC` is given
    - `features_GPC`: cached output of a frozen encoder, in place of `pixels`
    """

    tokens_T: Tensor
    targets_T: Tensor
    positions_T: Tensor
    lengths: tuple[int, ...]
    visual_N: Tensor
    layouts: tuple[Layout, ...]
    ids: tuple[str, ...]
    pixels: Tensor | None = None
    features_GPC: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        """All tokens, visual ones included."""
        return sum(self.lengths)
