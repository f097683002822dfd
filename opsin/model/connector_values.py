"""Connectors as values. `Connector` at the foot is the only list of connectors in the project.

A connector turns one map of patches into one map of tokens. `shrink` says how many (patch grid -> token grid, both
rows and columns) and refuses, with the reason, a grid that it cannot take; `fold` and `spatial` are what
`opsin.vision.tower.Tower` tells the resolutions.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from opsin.model.pretrained import Value


class PointwiseConnector(Value):
    """Common to connectors that treat every patch by itself."""

    fold: ClassVar[int] = 1
    spatial: ClassVar[bool] = True

    def shrink(self, rows: int, cols: int) -> tuple[int, int]:
        """Patch grid -> token grid."""
        return rows, cols


class LinearConnector(PointwiseConnector):
    """One linear map per patch (LLaVA, 2304.08485)."""

    kind: Literal["linear"] = "linear"


class MlpConnector(PointwiseConnector):
    """`depth` linear maps with exact GELU between them (LLaVA-1.5, 2310.03744: depth 2)."""

    kind: Literal["mlp"] = "mlp"
    depth: int = Field(2, ge=1, le=8)


class FoldingConnector(Value):
    """Common to connectors that make one token of every `factor` x `factor` square of patches."""

    spatial: ClassVar[bool] = True
    factor: int = Field(2, ge=2, le=8)

    @property
    def fold(self) -> int:
        """Patches per side of a token."""
        return self.factor

    def shrink(self, rows: int, cols: int) -> tuple[int, int]:
        """Patch grid -> token grid."""
        if rows % self.factor or cols % self.factor:
            raise ValueError(
                f"a connector that folds {self.factor}x{self.factor} patches cannot take a {rows}x{cols} grid: "
                f"{self.factor} does not divide {cols if rows % self.factor == 0 else rows}"
            )
        return rows // self.factor, cols // self.factor


class PixelShuffleConnector(FoldingConnector):
    """Each square of patches side by side in one vector, then `depth` linear maps (InternVL, Idefics3: depth 1)."""

    kind: Literal["pixel_shuffle"] = "pixel_shuffle"
    depth: int = Field(1, ge=1, le=8)


class PatchMergerConnector(FoldingConnector):
    """Layer norm of every patch, each square side by side, then Linear, GELU, Linear (Qwen2-VL, 2409.12191)."""

    kind: Literal["patch_merger"] = "patch_merger"


class PoolingConnector(Value):
    """Common to connectors that make `side` x `side` tokens of any map."""

    fold: ClassVar[int] = 1
    spatial: ClassVar[bool] = True

    @staticmethod
    def pooled(kind: str, rows: int, cols: int, side: int) -> tuple[int, int]:
        """The token grid, checked."""
        if side > min(rows, cols):
            raise ValueError(f"{kind} to {side}x{side} tokens from a {rows}x{cols} grid would enlarge it")
        return side, side


class AveragePoolConnector(PoolingConnector):
    """Average pooling, then an MLP (the compressing baseline of 2410.06765).

    Either adaptive to `side` x `side` tokens, or over squares of `stride` patches (a remainder is left out).
    """

    kind: Literal["average_pool"] = "average_pool"
    side: int | None = Field(None, ge=1, le=64)
    stride: int | None = Field(None, ge=2, le=16)
    depth: int = Field(2, ge=1, le=8)

    @model_validator(mode="after")
    def _one_of_them(self) -> AveragePoolConnector:
        if (self.side is None) == (self.stride is None):
            raise ValueError("average_pool needs 'side' (tokens per side) or 'stride' (patches per token), one of them")
        return self

    def shrink(self, rows: int, cols: int) -> tuple[int, int]:
        """Patch grid -> token grid."""
        if self.side is not None:
            return self.pooled(self.kind, rows, cols, self.side)
        stride = self.stride or 1
        if stride > min(rows, cols):
            raise ValueError(f"average_pool with stride {stride} leaves no token of a {rows}x{cols} grid")
        return rows // stride, cols // stride


class CAbstractorConnector(PoolingConnector):
    """Honeybee's C-Abstractor (2312.06742): convolutions, adaptive pooling to `side` x `side`, convolutions, an MLP."""

    kind: Literal["c_abstractor"] = "c_abstractor"
    side: int = Field(12, ge=1, le=64)
    blocks: int = Field(3, ge=1, le=8, description="RegNet blocks before the pooling, and as many behind it")
    width: int = Field(1024, ge=4, description="channels of the convolutions")
    depth: int = Field(2, ge=1, le=8)

    def shrink(self, rows: int, cols: int) -> tuple[int, int]:
        """Patch grid -> token grid."""
        return self.pooled(self.kind, rows, cols, self.side)


class LatentConnector(Value):
    """Common to resamplers: learned queries look at a map; what they bring back has no place in the picture."""

    fold: ClassVar[int] = 1
    spatial: ClassVar[bool] = False


class QFormerConnector(LatentConnector):
    """The query branch of BLIP-2's Q-Former (2301.12597), then a linear map."""

    kind: Literal["q_former"] = "q_former"
    queries: int = Field(32, ge=1, le=1024)
    width: int = Field(768, ge=8)
    layers: int = Field(12, ge=1, le=48)
    heads: int = Field(12, ge=1)
    feed_forward: int = Field(3072, ge=8)
    cross_every: int = Field(2, ge=1, description="cross-attention in layers 0, n, 2n, ...")
    dropout: float = Field(0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _heads_divide(self) -> QFormerConnector:
        if self.width % self.heads:
            raise ValueError(f"q_former width {self.width} is not a multiple of its {self.heads} heads")
        return self

    def shrink(self, rows: int, cols: int) -> tuple[int, int]:
        """Patch grid -> one row of queries."""
        del rows, cols
        return 1, self.queries


class PerceiverConnector(LatentConnector):
    """OpenFlamingo's perceiver resampler (2204.14198), then a linear map.

    `project: false` leaves the linear map out, so that latents keep the vision width, as Flamingo's gated
    cross-attention takes them.
    """

    kind: Literal["perceiver"] = "perceiver"
    latents: int = Field(64, ge=1, le=1024)
    layers: int = Field(6, ge=1, le=48)
    heads: int = Field(8, ge=1)
    head_width: int = Field(64, ge=1)
    feed_forward: int = Field(4, ge=1, description="width of the feed-forward layers, in vision widths")
    project: bool = True

    def shrink(self, rows: int, cols: int) -> tuple[int, int]:
        """Patch grid -> one row of latents."""
        del rows, cols
        return 1, self.latents


Connector = Annotated[
    LinearConnector
    | MlpConnector
    | AveragePoolConnector
    | PixelShuffleConnector
    | PatchMergerConnector
    | CAbstractorConnector
    | QFormerConnector
    | PerceiverConnector,
    Field(discriminator="kind"),
]


class Splice(Value):
    """Visual tokens take places of their own between the words (LLaVA and its descendants)."""

    kind: Literal["splice"] = "splice"


class GatedCrossAttention(Value):
    """Words look at the latest picture before them, in blocks between the decoder's layers (Flamingo, 2204.14198).

    A block stands before every `every`-th layer. Its gates begin at zero, so an untrained model answers exactly as
    the language model alone. Pictures take no place in the sequence.
    """

    kind: Literal["gated_cross_attention"] = "gated_cross_attention"
    every: int = Field(4, ge=1)
    heads: int = Field(8, ge=1)
    head_width: int = Field(64, ge=1)
    feed_forward: int = Field(4, ge=1, description="width of the feed-forward layers, in language widths")


Fusion = Annotated[Splice | GatedCrossAttention, Field(discriminator="kind")]
