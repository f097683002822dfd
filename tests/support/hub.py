"""Tiny random checkpoints of the published families, laid out by transformers, the hub and LLaVA's original code."""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Backend
from transformers import (
    AutoConfig,
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedModel,
    Qwen2VLForConditionalGeneration,
)
from transformers.utils import logging

from tests.support.tokenizers import chatml_tokenizer_dir, llama_tokenizer_dir

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FAMILIES = ("llava", "llava_next", "llava_onevision", "qwen2_vl")
CLASSES: dict[str, type[PreTrainedModel]] = {
    "llava": LlavaForConditionalGeneration,
    "llava_next": LlavaNextForConditionalGeneration,
    "llava_onevision": LlavaOnevisionForConditionalGeneration,
    "qwen2_vl": Qwen2VLForConditionalGeneration,
}
SIDE, PATCH = 56, 14
NEXT_PINPOINTS = [[56, 112], [112, 56], [112, 112]]
ONEVISION_PINPOINTS = [[56 * i, 56 * j] for i in range(1, 4) for j in range(1, 4)]
QWEN_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
CLIP_COLOURS = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
TEXT = {
    "vocab_size": 576,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
}


def tokenizer_dir(family: str, folder: Path, *, media: bool = True) -> Path:
    """A tokenizer that behaves like the family's: Llama's or Qwen2's, with the tokens of its media."""
    made = llama_tokenizer_dir(folder) if family in {"llava", "llava_next"} else chatml_tokenizer_dir(folder)
    if not media:
        return made
    tokens = QWEN_TOKENS if family == "qwen2_vl" else ("<image>", "<video>")[: 1 + (family == "llava_onevision")]
    backend = Backend.from_file(str(made / "tokenizer.json"))
    backend.add_special_tokens(list(tokens))
    backend.save(str(made / "tokenizer.json"))
    return made


def hub_dir(folder: Path, family: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """A model of random weights, its tokenizer and its preprocessor's file, as transformers 5 saves them.

    `changes` are of the top level of the config, or of `text_config` and `vision_config`.
    """
    made = tokenizer_dir(family, folder / "tokenizers")
    ids = {token: Backend.from_file(str(made / "tokenizer.json")).token_to_id(token) for token in media_of(family)}
    config = merged(config_of(family, ids), changes)
    torch.manual_seed(seed)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = CLASSES[family](AutoConfig.for_model(family, **config)).to(dtype)
    for parameter in model.parameters():  # norms and biases too, so that a tensor in the wrong place is seen
        parameter.data = parameter.data + 0.1 * torch.randn_like(parameter)
    target = folder / family
    model.save_pretrained(target)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(made / name, target / name)
    write(target / "preprocessor_config.json", preprocessor_of(family))
    return target


def media_of(family: str) -> tuple[str, ...]:
    """Tokens whose ids a family's config names."""
    if family == "qwen2_vl":
        return ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    return ("<image>", "<video>")[: 1 + (family == "llava_onevision")]


def config_of(family: str, ids: Mapping[str, int]) -> dict[str, Any]:
    """The config of a tiny model."""
    if family == "qwen2_vl":
        return {
            "text_config": TEXT
            | {"rms_norm_eps": 1e-6, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
            "vision_config": {"depth": 2, "embed_dim": 16, "num_heads": 2, "hidden_size": 32, "mlp_ratio": 2},
            "image_token_id": ids["<|image_pad|>"],
            "video_token_id": ids["<|video_pad|>"],
            "vision_start_token_id": ids["<|vision_start|>"],
            "vision_end_token_id": ids["<|vision_end|>"],
        }
    config: dict[str, Any] = {"image_token_index": ids["<image>"]}
    if family == "llava_onevision":
        return config | {
            "video_token_index": ids["<video>"],
            "text_config": TEXT | {"model_type": "qwen2"},
            "vision_config": VISION | {"model_type": "siglip_vision_model", "vision_use_head": False},
            "image_grid_pinpoints": ONEVISION_PINPOINTS,
            "vision_aspect_ratio": "anyres_max_2",
        }
    config |= {
        "text_config": TEXT | {"model_type": "llama"},
        "vision_config": VISION | {"model_type": "clip_vision_model"},
        "image_seq_length": 16,
    }
    return config | ({"image_grid_pinpoints": NEXT_PINPOINTS} if family == "llava_next" else {})


def preprocessor_of(family: str) -> dict[str, Any]:
    """preprocessor_config.json."""
    crop = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}, "do_center_crop": True}
    own: dict[str, dict[str, Any]] = {
        "llava": {"image_processor_type": "CLIPImageProcessor", **crop, **CLIP_COLOURS},
        "llava_next": {
            "image_processor_type": "LlavaNextImageProcessor",
            "image_grid_pinpoints": NEXT_PINPOINTS,
            **crop,
            **CLIP_COLOURS,
        },
        "llava_onevision": {
            "image_processor_type": "LlavaOnevisionImageProcessor",
            "image_grid_pinpoints": ONEVISION_PINPOINTS,
            "size": {"height": SIDE, "width": SIDE},
            **HALF,
        },
        "qwen2_vl": {
            "image_processor_type": "Qwen2VLImageProcessor",
            "min_pixels": 3136,
            "max_pixels": 28 * 28 * 64,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            **CLIP_COLOURS,
        },
    }
    return own[family]


def hub_layout(source: Path, target: Path) -> Path:
    """The same directory with the names, and Qwen2-VL's flat config, of the published files."""

    def rename(name: str) -> str:
        return re.sub(r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model.", name)

    copied(source, target, rename)
    config = read(target / "config.json")
    if config["model_type"] == "qwen2_vl":
        text = config.pop("text_config")
        rope = text.pop("rope_parameters")
        flat = {key: value for key, value in text.items() if key not in {"model_type", "layer_types"}}
        vision = config["vision_config"] | {"model_type": "qwen2_vl", "in_chans": 3}
        vision.pop("in_channels")
        config = flat | config | {"vision_config": vision, "rope_theta": rope["rope_theta"]}
        config["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
        write(target / "config.json", config)
    return target


def in_memory_layout(source: Path, target: Path) -> Path:
    """The same directory with the names that transformers 5 uses in memory."""
    rules = (
        (r"^language_model\.lm_head\.", "lm_head."),
        (r"^language_model\.model\.", "model.language_model."),
        (r"^vision_tower\.(?:vision_model\.)?", "model.vision_tower."),
        (r"^multi_modal_projector\.", "model.multi_modal_projector."),
        (r"^image_newline$", "model.image_newline"),
        (r"^visual\.", "model.visual."),
        (r"^model\.(?!language_model\.|visual\.|vision_tower\.|multi_modal|image_)", "model.language_model."),
    )

    def rename(name: str) -> str:
        for pattern, new in rules:
            if re.match(pattern, name):
                return re.sub(pattern, new, name)
        return name

    return copied(source, target, rename)


def original_layout(source: Path, target: Path, *, tower: bool = True) -> Path:
    """A LLaVA or LLaVA-OneVision directory as LLaVA's original code saves it, with or without the tower's weights."""

    def rename(name: str) -> str | None:
        if name.startswith("vision_tower."):
            rest = name.removeprefix("vision_tower.").removeprefix("vision_model.")
            return f"model.vision_tower.vision_tower.vision_model.{rest}" if tower else None
        name = name.removeprefix("language_model.")
        name = name.replace("multi_modal_projector.linear_1", "model.mm_projector.0")
        name = name.replace("multi_modal_projector.linear_2", "model.mm_projector.2")
        return "model.image_newline" if name == "image_newline" else name

    copied(source, target, rename)
    config = read(target / "config.json")
    text, vision, family = config["text_config"], config["vision_config"], config["model_type"]
    grids = [[width, height] for height, width in config.get("image_grid_pinpoints", [])]
    is_qwen = text["model_type"] == "qwen2"
    rope = text.pop("rope_parameters")
    original = text | {
        "architectures": ["LlavaQwenForCausalLM" if is_qwen else "LlavaLlamaForCausalLM"],
        "model_type": "llava",
        "rope_theta": rope["rope_theta"],
        "mm_vision_tower": "someone/a-tower",
        "mm_hidden_size": vision["hidden_size"],
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "mm_patch_merge_type": "flat" if family == "llava" else "spatial_unpad",
        "image_aspect_ratio": {"llava": "pad", "llava_next": "anyres", "llava_onevision": "anyres_max_2"}[family],
        "image_grid_pinpoints": grids or None,
    }
    write(target / "config.json", original)
    (target / "preprocessor_config.json").unlink()
    return target


def tower_dir(source: Path, target: Path, *, more_layers: int = 0) -> Path:
    """The tower of a LLaVA directory as a directory of its own, with further random layers at the end."""
    config = read(source / "config.json")["vision_config"]
    tensors = load_file(source / "model.safetensors")
    found = {
        "vision_model." + name.removeprefix("vision_tower.").removeprefix("vision_model."): tensor
        for name, tensor in tensors.items()
        if name.startswith("vision_tower.")
    }
    last = config["num_hidden_layers"] - 1
    for added in range(1, more_layers + 1):
        for name in [name for name in found if f".layers.{last}." in name]:
            found[name.replace(f".layers.{last}.", f".layers.{last + added}.")] = torch.randn_like(found[name])
    target.mkdir(parents=True)
    save_file(found, target / "model.safetensors")
    kind = config["model_type"].removesuffix("_vision_model")
    config["num_hidden_layers"] += more_layers
    write(target / "config.json", {"model_type": kind, "vision_config": config, "text_config": {}})
    return target


def copied(source: Path, target: Path, rename: Any) -> Path:
    """A copy of a directory with other names of its weights; those renamed to None are left out."""
    shutil.copytree(source, target)
    tensors = {rename(name): tensor for name, tensor in load_file(source / "model.safetensors").items()}
    save_file({name: t for name, t in tensors.items() if name is not None}, target / "model.safetensors")
    return target


def merged(config: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A config with changes, whose tables are merged."""
    return config | {
        key: config.get(key, {}) | value if isinstance(value, dict) else value for key, value in changes.items()
    }


def change(path: Path, **values: Any) -> None:
    """Change keys of a JSON file; a value of None removes the key."""
    config = merged(read(path), values)
    write(path, {key: value for key, value in config.items() if value is not None})


def read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
