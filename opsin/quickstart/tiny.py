"""Backbones for `opsin quickstart --tiny`: an untrained encoder, and a language model and tokenizer from scratch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from opsin.core.files import write_json
from opsin.model.efficientnet_lite import EfficientNetLite, EfficientNetLiteConfig
from opsin.quickstart.records import Dataset

CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCABULARY = 1000
VARIANT = "tiny"


@dataclass(frozen=True)
class Backbones:
    """Folders of a language model and an encoder."""

    language: Path
    encoder: Path


def write_tiny_backbones(folder: Path, dataset: Dataset) -> Backbones:
    """Write random weights (a function of torch's seed) and a tokenizer trained on the dataset's own text."""
    backbones = Backbones(language=folder / "language", encoder=folder / "encoder")
    backbones.language.mkdir(parents=True)
    backbones.encoder.mkdir()
    vocabulary = _write_tokenizer(backbones.language, dataset)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    logging.disable_progress_bar()
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(backbones.language)
    write_json(backbones.encoder / "config.json", {"variant": VARIANT})
    network = EfficientNetLite(EfficientNetLiteConfig(variant=VARIANT))
    save_file(network.state_dict(), backbones.encoder / "model.safetensors")
    return backbones


def _write_tokenizer(folder: Path, dataset: Dataset) -> int:
    """A byte-level BPE tokenizer; returns the size of its vocabulary."""
    texts = [
        turn["value"]
        for path in (dataset.align, *dataset.instruct)
        for record in json.loads(path.read_text(encoding="utf-8"))
        for turn in record["conversations"]
    ]
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(CONTROLS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    )
    return backend.get_vocab_size()
