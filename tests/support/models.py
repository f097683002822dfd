"""Tiny models of every kind, and a tiny recipe with its data, for tests that run in milliseconds."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, ImageDraw

from opsin.checkpoint.prepare import preparation
from opsin.core.types import IGNORE_INDEX, Conversation, Turn
from opsin.data.collate import collate
from opsin.data.example import Preparation, make_example
from opsin.data.user_turn import user_turn
from opsin.model.config import ModelConfig
from opsin.model.vlm import Vlm
from opsin.text.tokenizer import Tokenizer
from opsin.train.recipe import Stage
from tests.support.tokenizers import chatml_tokenizer_dir

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from opsin.core.types import Batch, Example, Picture

ENCODERS = ("clip", "siglip", "dinov2", "efficientnet_lite", "native_vit")
CONNECTORS: dict[str, dict[str, Any]] = {
    "linear": {},
    "mlp": {},
    "average_pool": {"side": 1},
    "pixel_shuffle": {},
    "patch_merger": {},
    "c_abstractor": {"side": 1, "blocks": 1, "width": 8},
    "q_former": {"queries": 3, "width": 8, "layers": 2, "heads": 2, "feed_forward": 16, "dropout": 0.0},
    "perceiver": {"latents": 3, "layers": 1, "heads": 2, "head_width": 4},
}
LANGUAGES = ("llama", "mistral", "qwen2", "qwen3")
RESOLUTIONS = ("square", "any_res", "native")
POSITIONS: dict[str, dict[str, Any]] = {"sequential": {}, "mrope": {"sections": [1, 1, 1]}}
FUSIONS: dict[str, dict[str, Any]] = {
    "splice": {},
    "gated_cross_attention": {"every": 2, "heads": 2, "head_width": 4, "feed_forward": 2},
}
VOCABULARY = 512
WIDTH = 24

TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}
NATIVE_VIT = {"depth": 2, "embed_dim": 16, "num_heads": 2, "mlp_ratio": 2, "patch_size": 16, "temporal_patch_size": 2}
SIZES = {"clip": 32, "siglip": 32, "dinov2": 32, "efficientnet_lite": 64, "native_vit": 32}
"""Side of the canvas, so that every encoder gives 2 x 2 patches."""


def encoder_value(kind: str, **changes: Any) -> dict[str, Any]:
    """An encoder's entry of a model: a three-layer tower of width 16, or the tiny EfficientNet."""
    dinov2 = {**{key: value for key, value in TOWER.items() if key != "intermediate_size"}, "mlp_ratio": 2}
    own = {"efficientnet_lite": {"variant": "tiny"}, "native_vit": NATIVE_VIT, "dinov2": dinov2}
    config: dict[str, Any] = own.get(kind, TOWER)
    return {"kind": kind, "config": config | changes}


def connector_value(kind: str) -> dict[str, Any]:
    """A connector's entry of a model, narrow; pools leave one token."""
    return {"kind": kind, **CONNECTORS[kind]}


def resolution_value(kind: str, encoder: str) -> dict[str, Any]:
    """A resolution's entry of a model: pictures of at most a few tens of patches."""
    side = SIZES[encoder]
    if kind == "any_res":
        pinpoints = [[side, 2 * side], [2 * side, side], [2 * side, 2 * side]]
        return {"kind": kind, "size": side, "pinpoints": pinpoints, "max_tiles": 3}
    if kind == "native":
        limits = {"min_pixels": side * side, "max_pixels": 6 * side * side}
        videos = {"video_min_pixels": side * side, "video_max_pixels": 2 * side * side}
        return {"kind": kind, **limits, **videos}
    return {"kind": kind, "size": side}


def language_facts(kind: str, **changes: Any) -> dict[str, Any]:
    """The Hugging Face config of a two-layer language model with grouped key-value heads."""
    facts = {
        "model_type": kind,
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-6,
        "initializer_range": 0.2,
        "tie_word_embeddings": False,
    }
    return facts | ({"sliding_window": None} if kind == "mistral" else {}) | changes


def model_value(
    tokenizer_dir: Path,
    *,
    encoder: str = "efficientnet_lite",
    connector: str = "mlp",
    language: str = "llama",
    resolution: str = "square",
    positions: str = "sequential",
    fusion: str = "splice",
    **facts: Any,
) -> dict[str, Any]:
    """The `model` of a recipe; `facts` change the language model's config."""
    resized = resolution == "native" and encoder in {"clip", "siglip", "dinov2"}
    return {
        "encoder": encoder_value(encoder) | ({"interpolate_positions": True} if resized else {}),
        "connector": connector_value(connector),
        "language": {"config": language_facts(language, **facts), "tokenizer": str(tokenizer_dir)},
        "resolution": resolution_value(resolution, encoder),
        "positions": {"kind": positions, **POSITIONS[positions]},
        "fusion": {"kind": fusion, **FUSIONS[fusion]},
        "template": {"kind": "chatml"},
    }


def build(value: dict[str, Any], seed: int = 0) -> Vlm:
    """A model of random weights, always the same ones."""
    torch.manual_seed(seed)
    return Vlm(ModelConfig.model_validate(value).resolved())


def tiny_vlm(folder: Path, **kinds: Any) -> tuple[Vlm, Preparation]:
    """A model and what prepares its inputs."""
    tokenizer_dir = chatml_tokenizer_dir(folder)
    model = build(model_value(tokenizer_dir, **kinds))
    return model, preparation(model.config, Tokenizer.load(tokenizer_dir))


def draw_picture(path: Path, number: int, size: tuple[int, int] = (40, 30)) -> Path:
    """A PNG that differs from every other number's."""
    image = Image.new("RGB", size, (number * 67 % 256, number * 101 % 256, number * 151 % 256))
    pen = ImageDraw.Draw(image)
    pen.rectangle((2 + number % 9, 3, 20 + number % 9, 20), fill=(number * 29 % 256, 255 - number * 13 % 256, 40))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def dialogue(identity: str, question: str, answer: str, pictures: Sequence[Picture] = ()) -> Conversation:
    """A question about pictures, or about none, and its answer."""
    return Conversation(identity, (user_turn(question, pictures), Turn("assistant", (answer,))))


def examples_of(conversations: Sequence[Conversation], prepare: Preparation) -> list[Example]:
    """Examples to train on."""
    return [make_example(conversation, prepare) for conversation in conversations]


def packed(conversations: Sequence[Conversation], prepare: Preparation) -> Batch:
    """One pack of whole conversations."""
    return collate(examples_of(conversations, prepare), prepare)


def appended(batch: Batch, tokens: Sequence[int]) -> Batch:
    """A batch of one document with more text behind it."""
    count = len(tokens)
    following = int(batch.positions_AT.max()) + 1 + torch.arange(count)
    return replace(
        batch,
        tokens_T=torch.cat([batch.tokens_T, torch.tensor(tokens, dtype=torch.long)]),
        targets_T=torch.cat([batch.targets_T, torch.full((count,), IGNORE_INDEX)]),
        positions_AT=torch.cat([batch.positions_AT, following.expand(len(batch.positions_AT), count)], dim=1),
        lengths=(batch.lengths[0] + count,),
        seen_T=torch.cat([batch.seen_T, batch.seen_T[-1:].expand(count)]),
    )


def open_gates(model: Vlm) -> None:
    """Let gated blocks act; freshly made ones change nothing, which would hide their mistakes."""
    for name, parameter in model.named_parameters():
        if name.endswith("gate"):
            parameter.data.fill_(0.5)


def stage_of(train: dict[str, Any], **changes: Any) -> Stage:
    """A stage that trains these parts, and whose data is made by hand."""
    value = {"name": "x", "data": [{"kind": "llava", "path": "x.json"}], "train": train}
    return Stage.model_validate(value | changes)


def write_data(folder: Path, *, pictures: int = 6, texts: int = 2) -> Path:
    """A LLaVA JSON file of questions about drawn pictures, and of some without a picture."""
    records: list[dict[str, Any]] = []
    for number in range(pictures):
        name = f"pictures/{number}.png"
        draw_picture(folder / name, number)
        turns = [
            {"from": "human", "value": "<image>\nWhat colour is it?"},
            {"from": "gpt", "value": f"Number {number}" + " again" * (number % 3)},
        ]
        records.append({"id": f"picture-{number}", "image": name, "conversations": turns})
    for number in range(texts):
        turns = [{"from": "human", "value": f"Say {number}"}, {"from": "gpt", "value": f"the answer is {number}"}]
        records.append({"id": f"text-{number}", "conversations": turns})
    path = folder / "data.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def recipe_value(folder: Path, **changes: Any) -> dict[str, Any]:
    """Two stages, align and instruct, in float32, on `write_data`'s files."""
    data = [{"kind": "llava", "path": str(write_data(folder))}]
    connector = {"lr": 1e-2}
    value = {
        "name": "tiny",
        "seed": 3,
        "precision": "fp32",
        "model": model_value(chatml_tokenizer_dir(folder)),
        "stages": [
            {"name": "align", "data": data, "train": {"connector": connector}, "batch_tokens": 96},
            {
                "name": "instruct",
                "data": data,
                "train": {"connector": connector, "language": {"lr": 1e-3}},
                "batch_tokens": 96,
            },
        ],
    }
    return value | changes
