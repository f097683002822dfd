"""The nouns of opsin. Every other module is a verb between two of them.

Shape legend (suffixes of array and tensor names, one for the whole project)::

    T  packed tokens (all documents of a batch, one after the other, no padding)
    S  supervised tokens          N  visual tokens, after the connector
    P  patches, before it         M  maps (grids of patches) of a batch
    C  vision width               D  language width
    A  axes of positions: 1, or 3 (time, height, width)
    X  bytes of pixels            G  pictures and clips of a batch
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
MediumRole = Literal["single", "multi", "video"]
"""What a medium is in its conversation: the only picture, one of several pictures, or a clip."""

IGNORE_INDEX = -100
"""Target of a position that is not learned (the value PyTorch's cross entropy ignores)."""

PLACEHOLDER_ID = 0
"""Token id that stands at a visual position. Its embedding is overwritten by the splice."""


@dataclass(frozen=True, slots=True)
class Member:
    """Where something lies inside a larger file: `length` bytes from `offset`, while the file has these facts."""

    name: str
    offset: int
    length: int
    file_bytes: int
    file_mtime_ns: int


@dataclass(frozen=True, slots=True)
class Picture:
    """A reference to an image, opened late and safely (`opsin.vision.picture`).

    Exactly one of `path` and `data` is set; `member` says that the image is only a part of the file at `path`.
    """

    path: Path | None = None
    data: bytes | None = field(default=None, repr=False)
    member: Member | None = None

    def __post_init__(self) -> None:
        if (self.path is None) == (self.data is None):
            raise ValueError("a Picture is either a path or bytes, exactly one of them")
        if self.member is not None and self.path is None:
            raise ValueError("a Picture that is a member needs the path of its file")

    @property
    def name(self) -> str:
        """What to call the picture in messages."""
        if self.member is not None:
            return f"{self.path}:{self.member.name}"
        return str(self.path) if self.path is not None else f"<{len(self.data or b'')} bytes>"


@dataclass(frozen=True, slots=True)
class Clip:
    """A reference to a video: a file, or the pictures of its frames in order, all of one size.

    Exactly one of `frames` and `path` is set. `taken` are the numbers of the file's frames that a model is shown, which
    `opsin.data.example` chooses by the model's rule; None until then.
    """

    frames: tuple[Picture, ...] = ()
    path: Path | None = None
    taken: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if bool(self.frames) == (self.path is not None):
            raise ValueError("a Clip is either a file or at least one frame, exactly one of them")

    @property
    def name(self) -> str:
        """What to call the clip in messages."""
        return str(self.path) if self.path is not None else f"{self.frames[0].name} and {len(self.frames) - 1} more"


Medium = Picture | Clip
Part = str | Medium


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
    def media(self) -> tuple[Medium, ...]:
        """All pictures and clips, in reading order."""
        return tuple(p for turn in self.turns for p in turn.parts if not isinstance(p, str))


@dataclass(frozen=True, slots=True)
class Grid:
    """What the encoder sees: `t` maps of `h` x `w` patches. Patches attend to each other inside a map, never across."""

    t: int
    h: int
    w: int

    @property
    def patches(self) -> int:
        """Number of patches."""
        return self.t * self.h * self.w


Pool = Literal["bilinear", "average", "max"]
"""How a map of tokens is made smaller."""


@dataclass(frozen=True, slots=True)
class Block:
    """What the language model sees: `t` maps of `rows` x `cols` tokens, `newline` more a row, `tail` at the end.

    How it comes out of the connector: each of its maps is a mosaic of `tiles` (rows, columns) of the connector's maps,
    taken in raster order; `kept` (rows, columns) are cut from the mosaic's middle; those are resized to `rows` x `cols`
    by `pool` where that is another size.
    """

    t: int
    rows: int
    cols: int
    newline: int = 0
    tail: int = 0
    tiles: tuple[int, int] = (1, 1)
    kept: tuple[int, int] | None = None
    pool: Pool = "bilinear"

    @property
    def tokens(self) -> int:
        """Sequence positions of the block."""
        return self.t * self.rows * (self.cols + self.newline) + self.tail

    @property
    def maps(self) -> int:
        """Maps of the connector that the block is made of."""
        return self.t * self.tiles[0] * self.tiles[1]


@dataclass(frozen=True, slots=True)
class Layout:
    """Geometry as a value: decided once per picture or clip from its size and role, read by everything downstream.

    - `source`, `canvas`: (height, width) in pixels, of the medium and of each of the `frames` the encoder is given
      (the tiles of a picture, the frames of a clip; a medium's pixels are uint8 (frames, 3, *canvas))
    - `grid`: the encoder's maps, `shape`: tokens (rows, columns) that the connector makes of each of them
    - `blocks`: the tokens in their order; together they take all maps of the grid, in order
    - `role`: what the medium was planned as
    - `tiles`: rows and columns of the tiles that the picture is cut into behind its base (AnyRes); none where it is
      not cut
    """

    source: tuple[int, int]
    canvas: tuple[int, int]
    frames: int
    grid: Grid
    shape: tuple[int, int]
    blocks: tuple[Block, ...]
    role: MediumRole = "single"
    tiles: tuple[int, int] = (0, 0)

    @property
    def tokens(self) -> int:
        """Sequence positions that stand for the medium."""
        return sum(block.tokens for block in self.blocks)

    @property
    def patches(self) -> int:
        """Encoder patches that the medium costs."""
        return self.grid.patches

    @property
    def bytes(self) -> int:
        """Size of the medium's pixels, one byte per colour."""
        return self.frames * 3 * self.canvas[0] * self.canvas[1]


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation as numbers, pixels still unopened.

    - `tokens_T` int64, `supervised_T` bool (this token is learned), `positions_AT` int64
    - `visual_T` bool: a visual token goes here, the id there is `PLACEHOLDER_ID`. It has `sum(layout.tokens)` true
      entries, in the media's order; none where the model looks at pictures by cross-attention
    - `places`: for every medium, how many tokens come before it
    """

    id: str
    where: str
    tokens_T: np.ndarray
    supervised_T: np.ndarray
    visual_T: np.ndarray
    positions_AT: np.ndarray
    media: tuple[Medium, ...]
    layouts: tuple[Layout, ...]
    places: tuple[int, ...]

    @property
    def name(self) -> str:
        """What to call the sample in messages: `file:line: (id)`."""
        return f"{self.where or 'sample'}: ({self.id})"

    @property
    def seen(self) -> tuple[tuple[Medium, Layout], ...]:
        """Every medium with its layout."""
        return tuple(zip(self.media, self.layouts, strict=True))

    @property
    def num_tokens(self) -> int:
        """Length in tokens, visual ones included."""
        return len(self.tokens_T)

    @property
    def num_patches(self) -> int:
        """Encoder patches of all its media."""
        return sum(layout.patches for layout in self.layouts)

    @property
    def num_supervised(self) -> int:
        """Tokens that are learned (the first token of a sequence has nothing that predicts it)."""
        return int(self.supervised_T[1:].sum())


@dataclass(frozen=True, slots=True)
class Batch:
    """One flat pack of whole documents: no batch axis, no padding, no attention mask.

    - `tokens_T` int64; `positions_AT` int64 (from 0 in every document), with 1 axis, or 3 for M-RoPE
    - `targets_T` int64: the id that position must predict, `IGNORE_INDEX` where nothing is learned
    - `lengths`: tokens per document; they sum to T
    - `layouts`: of all media, in reading order, document by document
    - `visual_N` int64: positions in `tokens_T` that visual tokens take, in the media's order (empty: cross-attention)
    - `sights`: visual tokens of what stands at one place of a document (a medium, or several side by side), and
      `seen_T` int64: which of them each token may look at by cross-attention, its document's latest at or before it,
      -1 for none
    - `pixels_X` uint8: the media's pixels one after the other, or None when there are none or `features_PC` is given
    - `features_PC`: cached output of a frozen encoder, in place of `pixels_X`
    - `kept`: which of the pack's samples the documents are
    - `skipped`: one line for every sample of the pack that is left out, because a medium of it is damaged; a batch of
      which nothing is left has no documents
    """

    tokens_T: Tensor
    targets_T: Tensor
    positions_AT: Tensor
    lengths: tuple[int, ...]
    visual_N: Tensor
    seen_T: Tensor
    sights: tuple[int, ...]
    layouts: tuple[Layout, ...]
    ids: tuple[str, ...]
    pixels_X: Tensor | None = None
    features_PC: Tensor | None = None
    kept: tuple[int, ...] = ()
    skipped: tuple[str, ...] = ()

    @property
    def num_tokens(self) -> int:
        """All tokens, visual ones included."""
        return sum(self.lengths)

    @property
    def num_supervised(self) -> int:
        """Tokens that are learned."""
        return int((self.targets_T != IGNORE_INDEX).sum())
