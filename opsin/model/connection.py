"""What stands between encoder and language model: the connector, the newline, and gated cross-attention blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

from opsin.core.types import Layout
from opsin.model.assemble import assemble
from opsin.model.config import ModelConfig
from opsin.model.connector_values import GatedCrossAttention
from opsin.model.connectors import build_connector
from opsin.model.gated import CrossPlan, GatedBlocks


@dataclass(frozen=True)
class Sights:
    """What gated blocks look at: by layer, the keys and values of all visual tokens, and how many each sight has.

    A sight is what stands at one place of a document: a picture, or several side by side, which are seen together.
    """

    keys_values: Mapping[int, Tensor]
    counts: tuple[int, ...]

    def only(self, sights: Sequence[int]) -> Sights:
        """Some of them, in the order given."""
        starts = [0, *accumulate(self.counts)]
        index = torch.cat(
            [torch.arange(starts[i], starts[i + 1]) for i in sights] or [torch.empty(0, dtype=torch.long)]
        )
        kept = {layer: tensor[index.to(tensor.device)] for layer, tensor in self.keys_values.items()}
        return Sights(kept, tuple(self.counts[i] for i in sights))


@dataclass(frozen=True)
class Gaze:
    """The gated blocks with what the tokens of one forward pass see; the decoder calls it before every layer."""

    blocks: GatedBlocks
    sights: Sights
    plan: CrossPlan

    def __call__(self, layer: int, hidden: Tensor) -> Tensor:
        """Hidden states (batch, tokens, D) after the block before `layer`, or unchanged where none stands."""
        if layer not in self.sights.keys_values:
            return hidden
        looked: Tensor = self.blocks(layer, hidden.flatten(0, 1), self.sights.keys_values[layer], self.plan)
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
        # The published initialisation of LLaVA-NeXT's `image_newline`. Latents have no rows that could end.
        self.newline: nn.Parameter | None = None
        if config.resolution.newline and config.connector.spatial:
            self.newline = nn.Parameter(torch.randn(self.connector.width) / math.sqrt(self.connector.width))
        self.gated: GatedBlocks | None = None
        if isinstance(config.fusion, GatedCrossAttention):
            self.gated = GatedBlocks(config.fusion, language_width, self.connector.width, layers)

    @property
    def closed(self) -> bool:
        """Gates keep every gradient from what is behind them: so begins a model with gated cross-attention."""
        return self.gated is not None and self.gated.closed

    @property
    def opening(self) -> bool:
        """They are closed, but trained: what is behind them has zero gradients in the first step only."""
        return self.gated is not None and self.gated.closed and any(gate.requires_grad for gate in self.gated.gates)

    def forward(self, features_PC: Tensor, layouts: Sequence[Layout]) -> Tensor:
        """Features of all maps -> the blocks' visual tokens (N, D), in the order of the sequence."""
        dtype = next(self.parameters()).dtype
        return assemble(self.connector(features_PC.to(dtype), layouts), layouts, self.newline)

    def sights(self, tokens_ND: Tensor | None, counts: tuple[int, ...]) -> Sights | None:
        """What there is to see, of visual tokens in sights of `counts`; None in a model that splices.

        Without any the blocks run all the same: what they do to words must not depend on what a document is packed
        with.
        """
        if self.gated is None:
            return None
        if tokens_ND is None:
            tokens_ND = next(self.parameters()).new_empty(0, self.connector.width)
        return Sights(self.gated.project(tokens_ND), counts)

    def gaze(self, sights: Sights | None, seen: Tensor) -> Gaze | None:
        """The gated blocks for tokens that see the sights named in `seen` (any shape, -1 for none)."""
        if self.gated is None or sights is None:
            return None
        return Gaze(self.gated, sights, CrossPlan.plan(seen.flatten(), sights.counts, seen.device))
