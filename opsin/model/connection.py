"""What stands between encoder and language model: the connector, the newline, and gated cross-attention blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from opsin.core.types import Layout
from opsin.model.assemble import assemble
from opsin.model.config import ModelConfig
from opsin.model.connector_values import GatedCrossAttention
from opsin.model.connectors import build_connector
from opsin.model.gated import CrossPlan, GatedBlocks


@dataclass(frozen=True)
class Media:
    """What gated blocks look at: the media's tokens one after the other, and how many each medium has."""

    tokens_ND: Tensor
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Gaze:
    """The gated blocks with what the tokens of one forward pass see; the decoder calls it before every layer."""

    blocks: GatedBlocks
    media: Media
    plan: CrossPlan

    def __call__(self, layer: int, hidden: Tensor) -> Tensor:
        """Hidden states (batch, tokens, D) after the block before `layer`, or unchanged where none stands."""
        if layer not in self.blocks:
            return hidden
        looked: Tensor = self.blocks[layer](hidden.flatten(0, 1), self.media.tokens_ND, self.plan)
        return looked.view(hidden.shape)


class Connection(nn.Module):
    """The trainable parts between the two backbones; a stage trains them as `connector`."""

    def __init__(self, config: ModelConfig, vision_width: int, language_width: int, layers: int) -> None:
        super().__init__()
        height, width = config.usual_size
        patch = config.encoder.patch_size
        self.connector = build_connector(
            config.connector, vision_width, language_width, (height // patch, width // patch)
        )
        # The published initialisation of LLaVA-NeXT's `image_newline`.
        self.newline = (
            nn.Parameter(torch.randn(self.connector.width) / math.sqrt(self.connector.width))
            if config.resolution.newline
            else None
        )
        fusion = config.fusion
        self.gated = (
            GatedBlocks(fusion, language_width, self.connector.width, layers)
            if isinstance(fusion, GatedCrossAttention)
            else None
        )

    def forward(self, features_PC: Tensor, layouts: Sequence[Layout]) -> Tensor:
        """Features of all maps -> the blocks' visual tokens (N, D), in the order of the sequence."""
        dtype = next(self.parameters()).dtype
        return assemble(self.connector(features_PC.to(dtype), layouts), layouts, self.newline)

    def gaze(self, media: Media | None, seen: Tensor) -> Gaze | None:
        """The gated blocks for tokens that see the media named in `seen` (any shape); None in a model without them.

        They run on text alone too: what they do to words must not depend on what a document is packed with.
        """
        if self.gated is None:
            return None
        if media is None:
            parameter = next(self.parameters())
            media = Media(parameter.new_empty(0, self.connector.width), ())
        return Gaze(self.gated, media, CrossPlan.plan(seen.flatten(), media.counts, seen.device))
