"""Resamplers: learned queries look at a map of any size and bring back a fixed number of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (the field's usual name)

from opsin.core.types import Layout
from opsin.model.connector_values import PerceiverConnector, QFormerConnector
from opsin.model.maps import each_map
from opsin.model.mlp import feed_forward


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int, dropout: float = 0.0) -> Tensor:
    """Multi-head attention without a mask; all (maps, tokens, heads * head width)."""
    q, k, v = (x.view(*x.shape[:-1], heads, -1).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout).transpose(1, 2).flatten(2)


class QFormerAttention(nn.Module):
    """BERT's attention with its residual and the norm behind it; keys and values come from width `source`."""

    def __init__(self, value: QFormerConnector, source: int) -> None:
        super().__init__()
        self.heads = value.heads
        self.dropout = nn.Dropout(value.dropout)
        self.query = nn.Linear(value.width, value.width)
        self.key = nn.Linear(source, value.width)
        self.value = nn.Linear(source, value.width)
        self.out = nn.Linear(value.width, value.width)
        self.norm = nn.LayerNorm(value.width, eps=1e-12)

    def forward(self, queries: Tensor, source: Tensor) -> Tensor:
        """Queries (M, N, width) after looking at `source` (M, P, source width)."""
        dropout = self.dropout.p if self.training else 0.0
        seen = _attend(self.query(queries), self.key(source), self.value(source), self.heads, dropout)
        out: Tensor = self.norm(queries + self.dropout(self.out(seen)))
        return out


class QFormerLayer(nn.Module):
    """Queries look at each other, then (in some layers) at the map, then a feed-forward layer."""

    def __init__(self, value: QFormerConnector, vision_width: int, *, looks: bool) -> None:
        super().__init__()
        self.each_other = QFormerAttention(value, value.width)
        self.map = QFormerAttention(value, vision_width) if looks else None
        self.up = nn.Linear(value.width, value.feed_forward)
        self.down = nn.Linear(value.feed_forward, value.width)
        self.dropout = nn.Dropout(value.dropout)
        self.norm = nn.LayerNorm(value.width, eps=1e-12)

    def forward(self, queries: Tensor, features: Tensor) -> Tensor:
        """Queries (M, N, width) and features (M, P, C) -> queries."""
        queries = self.each_other(queries, queries)
        if self.map is not None:
            queries = self.map(queries, features)
        out: Tensor = self.norm(queries + self.dropout(self.down(F.gelu(self.up(queries)))))
        return out


class QFormer(nn.Module):
    """The query branch of BLIP-2's Q-Former (2301.12597) and a linear map to the language model.

    Features pass a layer norm first, as BLIP-2's do. Queries begin as a normal distribution of deviation 0.02.
    """

    def __init__(self, value: QFormerConnector, vision_width: int, language_width: int) -> None:
        super().__init__()
        self.width = language_width
        self.queries_NW = nn.Parameter(torch.empty(value.queries, value.width).normal_(std=0.02))
        self.vision_norm = nn.LayerNorm(vision_width)
        self.query_norm = nn.LayerNorm(value.width, eps=1e-12)
        self.dropout = nn.Dropout(value.dropout)
        self.layers = nn.ModuleList(
            QFormerLayer(value, vision_width, looks=i % value.cross_every == 0) for i in range(value.layers)
        )
        self.project = nn.Linear(value.width, language_width)

    def forward(self, features_PC: Tensor, layouts: Sequence[Layout]) -> Tensor:
        """One token for every query and map (N, D)."""
        return each_map(features_PC, layouts, self._make, self.width)

    def _make(self, maps_MhwC: Tensor) -> Tensor:
        features = self.vision_norm(maps_MhwC.flatten(1, 2))
        queries: Tensor = self.dropout(self.query_norm(self.queries_NW)).expand(len(features), -1, -1)
        for layer in self.layers:
            queries = layer(queries, features)
        tokens: Tensor = self.project(queries)
        return tokens


class PerceiverAttention(nn.Module):
    """Latents look at the map and at themselves, as one sequence of keys."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        inner = heads * head_width
        self.media_norm = nn.LayerNorm(width)
        self.latent_norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, inner, bias=False)
        self.key_value = nn.Linear(width, 2 * inner, bias=False)
        self.out = nn.Linear(inner, width, bias=False)

    def forward(self, latents: Tensor, features: Tensor) -> Tensor:
        """Latents (M, N, C) and features (M, P, C) -> what is added to the latents."""
        latents = self.latent_norm(latents)
        keys, values = self.key_value(torch.cat([self.media_norm(features), latents], dim=1)).chunk(2, dim=-1)
        out: Tensor = self.out(_attend(self.query(latents), keys, values, self.heads))
        return out


class PerceiverLayer(nn.Module):
    """Attention and a feed-forward layer, each with its residual."""

    def __init__(self, value: PerceiverConnector, width: int) -> None:
        super().__init__()
        self.attention = PerceiverAttention(width, value.heads, value.head_width)
        self.feed_forward = feed_forward(width, value.feed_forward)

    def forward(self, latents: Tensor, features: Tensor) -> Tensor:
        """Latents (M, N, C) and features (M, P, C) -> latents."""
        latents = latents + self.attention(latents, features)
        out: Tensor = latents + self.feed_forward(latents)
        return out


class Perceiver(nn.Module):
    """OpenFlamingo's perceiver resampler (2204.14198, section 2.1); every map is a medium of its own.

    Latents begin as a standard normal distribution.
    """

    def __init__(self, value: PerceiverConnector, vision_width: int, language_width: int) -> None:
        super().__init__()
        self.width = language_width if value.project else vision_width
        self.latents_NC = nn.Parameter(torch.randn(value.latents, vision_width))
        self.layers = nn.ModuleList(PerceiverLayer(value, vision_width) for _ in range(value.layers))
        self.norm = nn.LayerNorm(vision_width)
        self.project = nn.Linear(vision_width, language_width) if value.project else nn.Identity()

    def forward(self, features_PC: Tensor, layouts: Sequence[Layout]) -> Tensor:
        """One token for every latent and map (N, D)."""
        return each_map(features_PC, layouts, self._make, self.width)

    def _make(self, maps_MhwC: Tensor) -> Tensor:
        features = maps_MhwC.flatten(1, 2)
        latents = self.latents_NC.expand(len(features), -1, -1)
        for layer in self.layers:
            latents = layer(latents, features)
        tokens: Tensor = self.project(self.norm(latents))
        return tokens
