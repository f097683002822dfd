"""A whole model of random weights that answers in milliseconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from opsin.model.config import ModelConfig
from opsin.model.vlm import Vlm
from opsin.text.tokenizer import Tokenizer
from tests.support.tokenizers import chatml_tokenizer_dir

if TYPE_CHECKING:
    from pathlib import Path

CONTEXT = 256


def tiny_model(folder: Path) -> tuple[Vlm, Tokenizer]:
    """A convolutional encoder at 64 pixels (4 visual tokens), a two-layer Llama, ChatML; always the same weights."""
    tokenizer_dir = chatml_tokenizer_dir(folder)
    tokenizer = Tokenizer.load(tokenizer_dir)
    language = {
        "model_type": "llama",
        "vocab_size": tokenizer.vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": True,
    }
    config = ModelConfig.model_validate(
        {
            "encoder": {"kind": "efficientnet_lite", "config": {"variant": "tiny"}},
            "connector": {"kind": "mlp"},
            "language": {"config": language, "tokenizer": str(tokenizer_dir)},
            "resolution": {"kind": "square", "size": 64},
            "template": {"kind": "chatml"},
        }
    )
    torch.manual_seed(0)
    model = Vlm(config.resolved())
    model.requires_grad_(requires_grad=False).eval()
    return model, tokenizer
