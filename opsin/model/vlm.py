"""The vision-language model: encoder, connection and decoder, and the way from a `Batch` to hidden states."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import Tensor, nn

from opsin.core.errors import ModelError
from opsin.core.types import Batch
from opsin.model.attention import Attend, PackedAttention
from opsin.model.config import ModelConfig, ModuleName
from opsin.model.connection import Connection, Sights
from opsin.model.decoder import load_decoder
from opsin.model.encoders import load_encoder
from opsin.model.recompute import Recompute
from opsin.model.splice import splice


class Vlm(nn.Module):
    """A model built from a resolved `ModelConfig`. `weights=False` leaves the parts random, to be filled."""

    def __init__(self, config: ModelConfig, *, weights: bool = True) -> None:
        super().__init__()
        self.config = config
        self.precision: Literal["bf16", "fp32"] = "fp32"
        self.encoder = load_encoder(config.encoder, weights=weights)
        self.decoder = load_decoder(config.language, config.positions, weights=weights)
        self.connection = Connection(config, self.encoder.width, self.decoder.width, len(self.decoder.layers))

    def part(self, name: ModuleName) -> nn.Module:
        """One of the modules that the model is made of."""
        parts: dict[ModuleName, nn.Module] = {
            "vision": self.encoder,
            "connector": self.connection,
            "language": self.decoder,
        }
        return parts[name]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.decoder.head_weight.device

    def recompute(self, mode: Recompute) -> None:
        """Say what the layers of both backbones keep for the backward pass."""
        self.encoder.recompute = self.decoder.recompute = mode

    def computing(self) -> AbstractContextManager[None]:
        """The autocast context that `precision` asks for; every forward pass, in training and after, runs inside it."""
        context: AbstractContextManager[None] = torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.precision == "bf16"
        )
        return context

    def encode(self, batch: Batch) -> Tensor:
        """Features (P, C) of the batch's media, cached or computed; without autograd where the encoder is frozen.

        Raises:
            ModelError: the batch has neither pixels nor features, or not as many as its layouts say.
        """
        patches = sum(layout.patches for layout in batch.layouts)
        features_PC = batch.features_PC
        if features_PC is None:
            if batch.pixels_X is None:
                raise ModelError(f"{len(batch.layouts)} pictures in the batch but neither pixels nor features")
            trained = any(parameter.requires_grad for parameter in self.encoder.parameters())
            with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
                features_PC = self.encoder(batch.pixels_X, batch.layouts)
        if len(features_PC) != patches:
            raise ModelError(
                f"{len(features_PC)} features for {len(batch.layouts)} pictures of {patches} patches "
                f"(samples {', '.join(batch.ids[:8])})"
            )
        return features_PC

    def look(self, batch: Batch) -> Tensor | None:
        """The visual tokens (N, D) of the batch's media, or None if it has none."""
        return self.connection(self.encode(batch), batch.layouts) if batch.layouts else None

    def embed(self, batch: Batch, visual_ND: Tensor | None) -> Tensor:
        """Text embeddings (T, D), with the visual tokens in their places where the model splices them.

        Raises:
            ModelError: there are not as many visual tokens as places.
        """
        embeddings_TD = self.decoder.embed(batch.tokens_T)
        if visual_ND is None or not self.config.spliced:
            return embeddings_TD
        return splice(embeddings_TD, visual_ND, batch.visual_N)

    def read(self, batch: Batch, attend: Attend, nothing: Tensor | None = None) -> tuple[Tensor, Sights | None]:
        """Hidden states (T, D) after the final norm, and what gated blocks saw (for tokens to come).

        `nothing` is a zero that is added to the embeddings, for the sake of what it was made of.
        """
        visual_ND = self.look(batch)
        sights = self.connection.sights(visual_ND, batch.sights)
        gaze = self.connection.gaze(sights, batch.seen_T)
        embeddings_TD = self.embed(batch, visual_ND)
        if nothing is not None:
            embeddings_TD = embeddings_TD + nothing
        hidden_1TD = self.decoder(embeddings_TD[None], batch.positions_AT[:, None], attend, gaze)
        return hidden_1TD[0], sights

    def forward(self, batch: Batch, attend: Attend | None = None, nothing: Tensor | None = None) -> Tensor:
        """Hidden states (T, D) after the final norm; documents do not see each other."""
        return self.read(batch, attend or PackedAttention.plan(batch.lengths, batch.tokens_T.device), nothing)[0]
