"""What a model is made of, as one validated value. Nothing here imports torch, so a wrong recipe fails at once.

An encoder or language model is named by `path` (a Hugging Face directory, weights are loaded) or by `config`
(its Hugging Face config, weights start random); `resolve` reads the former's config.json into the latter.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from opsin.core.errors import ModelError
from opsin.core.paths import ExistingFolder
from opsin.core.types import Layout, MediumRole
from opsin.model.connector_values import Connector, Fusion, GatedCrossAttention, PerceiverConnector, Splice
from opsin.model.encoder_values import Encoder, TowerEncoder
from opsin.model.pretrained import Pretrained, Value
from opsin.text.templates import Template
from opsin.vision.positions import MRope, Positions, Sequential
from opsin.vision.resolution import Native, Resolution, Square, plan_layout
from opsin.vision.sampling import LlavaFrames, Sampling
from opsin.vision.tower import Tower

LANGUAGE_MODELS = ("llama", "mistral", "qwen2", "qwen3")
"""`model_type`s whose layers the decoder loop is tested with."""

ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings whose frequencies are fixed; others would let one document of a pack change another."""


class LanguageModel(Pretrained):
    """A stock transformers causal language model; `tokenizer` is a directory, by default the model's own."""

    tokenizer: ExistingFolder | None = None

    @model_validator(mode="after")
    def _has_tokenizer(self) -> LanguageModel:
        if self.path is None and self.tokenizer is None:
            raise ValueError("a language model from 'config' needs 'tokenizer' (a directory with tokenizer.json)")
        return self

    @property
    def rope(self) -> dict[str, Any]:
        """What the config says of rotary embeddings, under its newer or its older name."""
        return dict(self.facts.get("rope_parameters") or self.facts.get("rope_scaling") or {})

    @property
    def layers(self) -> int:
        """Transformer blocks."""
        return self._number("num_hidden_layers")

    @property
    def head_width(self) -> int:
        """Width of an attention head."""
        given = self.facts.get("head_dim")
        return int(given) if given else self.width // self.heads[0]

    @property
    def width(self) -> int:
        """D."""
        return self._number("hidden_size")

    @property
    def heads(self) -> tuple[int, int]:
        """Attention heads, and how many of them have keys and values of their own."""
        heads = self._number("num_attention_heads")
        return heads, self._number("num_key_value_heads") if self.facts.get("num_key_value_heads") else heads

    @property
    def splits_unevenly(self) -> bool:
        """Heads get their width from the model's, and do not divide it."""
        return not self.facts.get("head_dim") and self.width % self.heads[0] != 0

    def _number(self, key: str) -> int:
        value = self.facts.get(key)
        if not isinstance(value, int) or value < 1:
            raise ModelError(f"language.config.{key} must be a positive integer, got {value!r}")
        return value

    @property
    def tokenizer_path(self) -> Path:
        """Where the tokenizer's files are."""
        path = self.tokenizer or self.path
        assert path is not None  # guaranteed by _has_tokenizer
        return path


ModuleName = Literal["vision", "connector", "language"]
"""The modules that a model is made of."""


class Lora(Value):
    """Low-rank adapters (arXiv 2106.09685) on linear layers: all, or those whose names end as in `targets`."""

    rank: int = Field(16, ge=1, le=1024)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: list[str] | None = Field(None, min_length=1, description="such as q_proj, v_proj; by default all")


class ModelConfig(Value):
    """Encoder + connector + language model, and how pictures and text are put to them.

    It is saved with the weights: training, evaluation and chat prepare their inputs from this one value.
    """

    encoder: Encoder
    connector: Connector
    language: LanguageModel
    resolution: Resolution = Square(size=336)
    positions: Positions = Sequential()
    fusion: Fusion = Splice()
    video: Sampling = LlavaFrames()
    template: Template

    def resolved(self) -> ModelConfig:
        """Read the parts' config.json files, and check that the parts fit.

        Raises:
            ModelError: a part is missing or the parts do not fit together.
        """
        value = self.model_copy(
            update={"encoder": self.encoder.resolved(), "language": self.language.resolved()},
        )
        value.check()
        return value

    def with_resolution(self, resolution: Resolution) -> ModelConfig:
        """The same model with a resolution of a stage's own.

        Raises:
            ModelError: the model cannot take it.
        """
        if resolution.newline and self.connector.spatial and not self.resolution.newline:
            raise ModelError(
                f"a resolution {resolution.kind} with newlines, but the model has no newline vector, since its own "
                f"resolution is {self.resolution.kind} without them; put the resolution with newlines into 'model', "
                "or set newline: false"
            )
        changed = self.model_copy(update={"resolution": resolution})
        changed.check()
        return changed

    def check(self) -> None:
        """Refuse combinations that cannot work, with the reason.

        Raises:
            ModelError: naming the two settings that do not fit.
        """
        self._check_language()
        self._check_positions()
        self._check_canvas()
        if isinstance(self.connector, PerceiverConnector) and not self.connector.project and self.spliced:
            raise ModelError(
                "connector.project: false leaves latents at the vision width, which only fusion gated_cross_attention "
                "can take; with splice, remove it"
            )
        if isinstance(self.fusion, GatedCrossAttention) and self.fusion.every > self.language.layers:
            raise ModelError(
                f"fusion.every is {self.fusion.every}, but the language model has {self.language.layers} layers: no "
                f"block would stand before any of them; set it to {self.language.layers} or less"
            )
        self.layout(*self.usual_size, "single")
        self.layout(*self.usual_size, "video", frames=2)

    def _check_language(self) -> None:
        model_type = self.language.facts.get("model_type")
        if model_type not in LANGUAGE_MODELS:
            raise ModelError(
                f"language model of model_type {model_type!r}; the decoder loop supports {', '.join(LANGUAGE_MODELS)}"
            )
        rope_type = self.language.rope.get("rope_type", self.language.rope.get("type", "default"))
        if rope_type not in ROPE_TYPES:
            raise ModelError(
                f"language model with rope type {rope_type!r}, whose frequencies depend on the whole pack; "
                f"supported: {', '.join(ROPE_TYPES)}"
            )

        heads, kv_heads = self.language.heads
        if heads % kv_heads or self.language.head_width % 2 or self.language.splits_unevenly:
            raise ModelError(
                f"language model of width {self.language.width} with {heads} heads, {kv_heads} of keys and values: the "
                "heads must divide the width into even parts, and the heads of keys and values the heads"
            )

    def _check_positions(self) -> None:
        if not isinstance(self.positions, MRope):
            return
        half, given = self.language.head_width // 2, self.positions.sections
        if sum(given) != half:
            raise ModelError(
                f"positions.sections {list(given)} sum to {sum(given)}, but the language model has {half} rotary "
                f"frequencies (half its head width of {self.language.head_width})"
            )

    def _check_canvas(self) -> None:
        """A tower with position embeddings takes the one square they were made for, or any if it may resize them."""
        side = self.encoder.sizes
        if side is None:
            return
        if isinstance(self.resolution, Native):
            raise ModelError(
                f"native resolution, but the {self.encoder.kind} encoder has position embeddings for {side}x{side} "
                "pixels only; set encoder.interpolate_positions: true, or take the encoder native_vit"
            )
        if self.resolution.size != side:
            raise ModelError(
                f"resolution size {self.resolution.size} but the {self.encoder.kind} encoder has position embeddings "
                f"for {side}; set resolution.size to {side}, or encoder.interpolate_positions: true"
            )

    @property
    def spliced(self) -> bool:
        """Pictures take places in the sequence."""
        return isinstance(self.fusion, Splice)

    @property
    def usual_size(self) -> tuple[int, int]:
        """A canvas (height, width) that the encoder is often given."""
        if not isinstance(self.resolution, Native):
            return self.resolution.size, self.resolution.size
        token = self.encoder.patch_size * self.connector.fold
        # A square half-way, in octaves, from the smallest to the largest picture.
        side = math.sqrt(math.sqrt(self.resolution.min_pixels * self.resolution.max_pixels))
        return (max(1, round(side / token)) * token,) * 2

    @property
    def tower(self) -> Tower:
        """What a resolution has to know of encoder and connector."""
        return Tower(
            patch=self.encoder.patch_size,
            shrink=self.connector.shrink,
            temporal=self.encoder.temporal,
            fold=self.connector.fold,
            spatial=self.connector.spatial,
            # A published tower's own square may hold part of a patch (SigLIP's 384 pixels); no other size may.
            trims=isinstance(self.encoder, TowerEncoder) and self.usual_size[0] == self.encoder.image_size,
        )

    def layout(self, height: int, width: int, role: MediumRole, frames: int = 1) -> Layout:
        """Geometry of one picture or clip under this model.

        Raises:
            ModelError: resolution, encoder and connector do not fit together, or no picture has such a shape.
        """
        return plan_layout(self.resolution, height, width, role, self.tower, frames)
