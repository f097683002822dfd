"""The language model: a stock transformers causal LM, with opsin's own loop over its layers.

The loop computes cos and sin from explicit positions, passes an `Attend` value to the layers and lets a `BeforeLayer`
act before them, so packs, caches, M-RoPE and gated cross-attention need no subclass of a Hugging Face model.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from opsin.core.errors import ModelError
from opsin.model.attention import ATTENTION, Attend
from opsin.model.config import LANGUAGE_MODELS, LanguageModel
from opsin.model.pretrained import refuse_unknown_keys
from opsin.model.recompute import Recompute, recomputed
from opsin.vision.positions import MRope, Positions, Sequential

BeforeLayer = Callable[[int, Tensor], Tensor]
"""(layer, hidden states before it) -> hidden states that the layer is given."""


class Decoder(nn.Module):
    """Embedding, layers, final norm and head of a Llama, Mistral, Qwen2 or Qwen3 model."""

    def __init__(self, lm: Any, positions: Positions | None = None) -> None:
        super().__init__()
        if lm.config.model_type not in LANGUAGE_MODELS:
            raise ModelError(f"model_type {lm.config.model_type!r}; supported: {', '.join(LANGUAGE_MODELS)}")
        lm.config._attn_implementation = ATTENTION
        self.lm: Any = lm
        self._positions = positions or Sequential()
        self.recompute: Recompute = "none"

    @property
    def _body(self) -> Any:
        return self.lm.model

    @property
    def width(self) -> int:
        """D."""
        return int(self.lm.config.hidden_size)

    @property
    def vocab_size(self) -> int:
        """V: rows of the embedding."""
        return int(self.head_weight.shape[0])

    @property
    def head_weight(self) -> Tensor:
        """(V, D) weight of the output layer; the embedding itself where the model ties them."""
        weight: Tensor = self.lm.lm_head.weight
        return weight

    @property
    def input_weight(self) -> Tensor:
        """(V, D) weight of the embedding."""
        weight: Tensor = self._body.embed_tokens.weight
        return weight

    @property
    def layers(self) -> list[nn.Module]:
        """The transformer blocks, in order."""
        return list(self._body.layers)

    def embed(self, tokens: Tensor) -> Tensor:
        """Ids of any shape -> embeddings (..., D)."""
        embedded: Tensor = self._body.embed_tokens(tokens)
        return embedded

    def forward(
        self, embeddings: Tensor, positions: Tensor, attend: Attend, before: BeforeLayer | None = None
    ) -> Tensor:
        """Embeddings (batch, tokens, D) at `positions` (A, batch, tokens) -> hidden states after the final norm."""
        rotary = self._rotary(embeddings, positions)
        hidden = embeddings
        for index, layer in enumerate(self._body.layers):
            if before is not None:
                hidden = before(index, hidden)
            hidden = recomputed(
                self.recompute, layer, hidden, position_embeddings=rotary, attention_mask=None, attend=attend
            )
        normed: Tensor = self._body.norm(hidden)
        return normed

    def _rotary(self, embeddings: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (batch, tokens, head width)."""
        axes = [self._body.rotary_emb(embeddings, axis) for axis in positions]
        if not isinstance(self._positions, MRope):
            cos, sin = axes[0]
            return cos, sin
        # The head's two halves hold the same frequencies; in each, a section of them turns with its own axis.
        sections = self._positions.sections * 2
        cos, sin = (
            torch.cat([angles[i % 3].split(sections, -1)[i] for i in range(len(sections))], -1)
            for angles in zip(*axes, strict=True)
        )
        return cos, sin

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., D) -> float32 logits (..., V)."""
        return nn.functional.linear(hidden, self.head_weight.to(hidden.dtype)).float()


def load_decoder(language: LanguageModel, positions: Positions | None = None, *, weights: bool = True) -> Decoder:
    """Build the language model: weights from `language.path`, or random ones from `language.config`.

    `weights=False` builds the architecture only (a checkpoint will fill it).

    Raises:
        ModelError: an unsupported model type, or weights that do not match the architecture (all named).
    """
    facts = dict(language.facts)
    model_type = facts.pop("model_type", None)
    if model_type not in LANGUAGE_MODELS:
        raise ModelError(f"model_type {model_type!r}; supported: {', '.join(LANGUAGE_MODELS)}")
    facts.pop("architectures", None)
    if "quantization_config" in facts:
        raise ModelError(f"{language.path}: the weights are quantised; convert them to bfloat16 safetensors first")
    dtype = facts.pop("dtype", facts.pop("torch_dtype", None))
    if language.path is None and weights:
        refuse_unknown_keys("language", facts, AutoConfig.for_model(model_type).to_dict())
    config = AutoConfig.for_model(model_type, **facts)
    if language.path is None or not weights:
        lm = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION, dtype=torch.float32)
        return Decoder(lm, positions)
    return Decoder(_load_weights(language.path, config, dtype), positions)


def _load_weights(path: Path, config: Any, dtype: str | None) -> Any:
    logging.disable_progress_bar()  # opsin shows its own
    lm, report = AutoModelForCausalLM.from_pretrained(
        path,
        config=config,
        dtype=getattr(torch, dtype) if dtype else torch.float32,
        attn_implementation=ATTENTION,
        local_files_only=True,
        use_safetensors=True,
        output_loading_info=True,
    )
    wrong = {kind: sorted(map(str, report[kind])) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    if any(wrong.values()):
        listed = "; ".join(f"{kind.replace('_', ' ')}: {', '.join(names)}" for kind, names in wrong.items() if names)
        raise ModelError(f"{path}: the weights do not match the config ({listed})")
    return lm
