"""The vision-language model: encoder, connector and decoder, and the way from a `Batch` to hidden states."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import Tensor, nn

from opsin.core.errors import ModelError
from opsin.core.types import Batch
from opsin.model.attention import Attend, PackedAttention
from opsin.model.config import ModelConfig, PartName
from opsin.model.connectors import build_connector
from opsin.model.decoder import load_decoder
from opsin.model.encoders import load_encoder
from opsin.model.splice import splice


class Vlm(nn.Module):
    """A model built from a resolved `ModelConfig`. `weights=False` leaves the parts random, to be filled."""

    def __init__(self, config: ModelConfig, *, weights: bool = True) -> None:
        super().__init__()
        self.config = config
        self.precision: Literal["bf16", "fp32"] = "fp32"
        self.encoder = load_encoder(config.encoder, weights=weights)
        self.decoder = load_decoder(config.language, weights=weights)
        self.connector = build_connector(config.connector, self.encoder.width, self.decoder.width)

    def part(self, name: PartName) -> nn.Module:
        """The module that a stage names when it says what is trained."""
        parts: dict[PartName, nn.Module] = {
            "vision": self.encoder,
            "connector": self.connector,
            "language": self.decoder,
        }
        return parts[name]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.decoder.head_weight.device

    def computing(self) -> AbstractContextManager[None]:
        """The autocast context that `precision` asks for; every forward pass, in training and after, runs inside it."""
        context: AbstractContextManager[None] = torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.precision == "bf16"
        )
        return context

    def encode(self, pixels: Tensor) -> Tensor:
        """uint8 (G, 3, h, w) -> features (G, P, C); without autograd where the encoder is frozen."""
        trained = any(parameter.requires_grad for parameter in self.encoder.parameters())
        with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
            features: Tensor = self.encoder(pixels)
        return features

    def embed(self, batch: Batch) -> Tensor:
        """Text embeddings with the visual tokens in their places (T, D).

        Raises:
            ModelError: features do not match their layouts.
        """
        embeddings_TD = self.decoder.embed(batch.tokens_T)
        if not batch.layouts:
            return embeddings_TD
        features_GPC = batch.features_GPC
        if features_GPC is None:
            if batch.pixels is None:
                raise ModelError(f"{len(batch.layouts)} pictures in the batch but neither pixels nor features")
            features_GPC = self.encode(batch.pixels)
        # Every picture of a square resolution has the same single grid.
        grid = batch.layouts[0].grids[0]
        if features_GPC.shape[:2] != (len(batch.layouts), grid.patches):
            raise ModelError(
                f"features of shape {tuple(features_GPC.shape)} for {len(batch.layouts)} pictures "
                f"of {grid.patches} patches"
            )
        visual_GND = self.connector(features_GPC.to(next(self.connector.parameters()).dtype), grid)
        return splice(embeddings_TD, visual_GND.flatten(0, 1), batch.visual_N)

    def forward(self, batch: Batch, attend: Attend | None = None) -> Tensor:
        """Hidden states (T, D) after the final norm; documents do not see each other."""
        attend = attend or PackedAttention.plan(batch.lengths, batch.tokens_T.device)
        hidden_1TD: Tensor = self.decoder(self.embed(batch)[None], batch.positions_T[None], attend)
        return hidden_1TD[0]
