"""A Hugging Face directory's configuration files -> `ModelConfig`. No weights are read, and no torch is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from opsin.checkpoint.chat_templates import read_template
from opsin.checkpoint.hub_names import Family
from opsin.checkpoint.hub_values import (
    TEXTS,
    ClipVision,
    Llava,
    NativeVision,
    Part,
    Preprocessor,
    Qwen2VlText,
    SiglipVision,
    Text,
    parse,
    read_preprocessor,
)
from opsin.core.errors import CheckpointError, ModelError
from opsin.model.config import LanguageModel, ModelConfig
from opsin.model.connector_values import MlpConnector, PatchMergerConnector
from opsin.model.encoder_values import CLIP_MEAN, CLIP_STD, HALF, ClipEncoder, Encoder, NativeVitEncoder, SiglipEncoder
from opsin.text.templates import QWEN_SYSTEM, ChatML, Mistral, Template, VicunaV1
from opsin.vision.any_res import NEXT_PINPOINTS, ONEVISION_PINPOINTS, AnyRes
from opsin.vision.native import Native
from opsin.vision.positions import MRope
from opsin.vision.resolution import Resolution
from opsin.vision.sampling import LlavaFrames, QwenFrames, Sampling
from opsin.vision.square import Square

CLIP_L_336 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
SO400M_384 = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}
"""The towers that configs without a `vision_config` mean (transformers' defaults; 26 layers: LLaVA drops the last)."""

HUB_PIXELS = (3_136, 12_845_056)
"""Qwen2-VL's published preprocessor: least and most pixels of a picture."""

VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"


def family_of(config: dict[str, Any]) -> Family | None:
    """The family that a config.json names, if it is one of those that opsin reads."""
    model_type = config.get("model_type")
    return next((family for family in get_args(Family) if family == model_type), None)


def hub_model_config(folder: Path, config: dict[str, Any], template: Template | None, tokenizer: Path) -> ModelConfig:
    """The configuration of a Hugging Face directory; `template` goes before the one that the directory suggests.

    Raises:
        CheckpointError: a value is malformed or out of bounds (all named).
        ModelError: something has no counterpart in opsin.
    """
    family = family_of(config)
    where, preprocessor = str(folder / "config.json"), read_preprocessor(folder)
    if family == "qwen2_vl":
        value = _qwen2_vl(folder, config, preprocessor)
    elif family is not None:
        value = _llava(where, family, config, preprocessor)
    else:
        raise CheckpointError(
            f"{where}: model_type {config.get('model_type')!r}; opsin reads {', '.join(get_args(Family))}, "
            "LLaVA's original directories, and its own checkpoints"
        )
    model_type = str(value["language"]["model_type"])
    chosen = template or read_template(folder) or default_template(family, model_type, where)
    language = LanguageModel(config=value.pop("language"), tokenizer=tokenizer)
    return ModelConfig(language=language, template=chosen, video=default_video(family), **value).resolved()


def default_video(family: Family) -> Sampling:
    """Which frames of a video the published models of a family are shown."""
    return QwenFrames() if family == "qwen2_vl" else LlavaFrames()


def default_template(family: Family, model_type: str, where: str) -> Template:
    """How the published models of a family are spoken to.

    Raises:
        ModelError: none is known for such a language model.
    """
    if family == "qwen2_vl":
        return ChatML(system=QWEN_SYSTEM, around_picture=(VISION_START, VISION_END), after_picture="")
    if model_type == "qwen2":
        return ChatML(system=QWEN_SYSTEM)
    if model_type == "llama":
        return VicunaV1()
    if model_type == "mistral":
        return Mistral()
    raise ModelError(
        f"{where}: opsin knows no chat template for {family} with a {model_type} language model; "
        "name one: opsin.load(path, template=...)"
    )


def _llava(where: str, family: Family, config: dict[str, Any], preprocessor: Preprocessor) -> dict[str, Any]:
    value = parse(Llava, config, where)
    text = read_text(
        value.text_config, where, tied=value.tie_word_embeddings, default="qwen2" if is_one(family) else "llama"
    )
    vision = _vision(value.vision_config, where, family)
    encoder = _tower(value, vision, preprocessor, where, family)
    if value.image_grid_pinpoints and preprocessor.image_grid_pinpoints not in (None, value.image_grid_pinpoints):
        raise CheckpointError(f"{where}: image_grid_pinpoints differ from those of the preprocessor's file")
    pinpoints = value.image_grid_pinpoints or preprocessor.image_grid_pinpoints
    resolution: Resolution
    if family == "llava":
        resolution = _square(preprocessor, vision.image_size)
    else:
        resolution = AnyRes(
            size=preprocessor.side or vision.image_size,
            pinpoints=pinpoints or (ONEVISION_PINPOINTS if is_one(family) else NEXT_PINPOINTS),
            max_tiles=int(value.vision_aspect_ratio.rpartition("_")[2]) if is_one(family) else None,
            rule="transformers",
            multi="base" if is_one(family) else "tiles",
        )
    return {"encoder": encoder, "connector": MlpConnector(depth=2), "language": text.facts, "resolution": resolution}


def is_one(family: Family) -> bool:
    """LLaVA-OneVision, whose defaults are SigLIP and Qwen2 where the older ones' are CLIP and Llama."""
    return family == "llava_onevision"


def read_text(config: dict[str, Any], where: str, *, tied: bool, default: str) -> Text:
    """A language model's config, with its family's defaults.

    Raises:
        ModelError: a family that the decoder loop is not tested with.
    """
    model_type = config.get("model_type", default)
    if not isinstance(model_type, str) or model_type not in TEXTS:
        raise ModelError(f"{where}: a language model of model_type {model_type!r}; opsin runs {', '.join(TEXTS)}")
    value = {**config, "model_type": model_type}
    return parse(TEXTS[model_type], value | ({"tie_word_embeddings": True} if tied else {}), f"{where}: text_config")


def _vision(config: dict[str, Any] | None, where: str, family: Family) -> ClipVision | SiglipVision:
    kinds: dict[str, type[ClipVision | SiglipVision]] = {
        "clip_vision_model": ClipVision,
        "siglip_vision_model": SiglipVision,
    }
    default = "siglip_vision_model" if is_one(family) else "clip_vision_model"
    value = (SO400M_384 if is_one(family) else CLIP_L_336) if config is None else config
    model_type = value.get("model_type", default)
    if not isinstance(model_type, str) or model_type not in kinds:
        raise ModelError(f"{where}: a vision tower of model_type {model_type!r}; opsin reads {', '.join(kinds)}")
    return parse(kinds[model_type], {**value, "model_type": model_type}, f"{where}: vision_config")


def _tower(
    value: Llava, vision: ClipVision | SiglipVision, preprocessor: Preprocessor, where: str, family: Family
) -> Encoder:
    """The encoder; its class token has to go, which CLIP has and SigLIP has not."""
    strategy = value.vision_feature_select_strategy or ("full" if is_one(family) else "default")
    if strategy == "full" and isinstance(vision, ClipVision):
        raise ModelError(
            f"{where}: vision_feature_select_strategy 'full' with CLIP keeps the class token, which is no part of a "
            "grid; opsin has no counterpart ('default' drops it)"
        )
    if strategy == "default" and isinstance(vision, SiglipVision):
        raise ModelError(
            f"{where}: vision_feature_select_strategy 'default' with SigLIP, which has no class token, drops the "
            "first patch; opsin has no counterpart ('full' keeps all)"
        )
    layer = value.vision_feature_layer
    layer = (-1 if is_one(family) else -2) if layer is None else layer
    if isinstance(vision, ClipVision):
        mean, std = preprocessor.image_mean or CLIP_MEAN, preprocessor.image_std or CLIP_STD
        return ClipEncoder(kind="clip", config=facts_of(vision), select_layer=layer, mean=mean, std=std)
    mean, std = preprocessor.image_mean or HALF, preprocessor.image_std or HALF
    config = facts_of(vision) | {"vision_use_head": False}
    return SiglipEncoder(kind="siglip", config=config, select_layer=layer, mean=mean, std=std)


def facts_of(vision: Part) -> dict[str, Any]:
    """An encoder's config."""
    return vision.model_dump(mode="json", exclude_none=True)


def _square(preprocessor: Preprocessor, image_size: int) -> Square:
    size = preprocessor.side or image_size
    if preprocessor.do_pad:
        return Square(size=size, fit="pad")
    if preprocessor.do_center_crop is False or (preprocessor.do_center_crop is None and "height" in preprocessor.edges):
        if "height" not in preprocessor.edges:
            raise ModelError(
                "preprocessor_config.json: neither crops nor pads pictures to a square; opsin has no counterpart"
            )
        return Square(size=size, fit="stretch")
    return Square(size=size, fit="crop")


def _qwen2_vl(folder: Path, config: dict[str, Any], preprocessor: Preprocessor) -> dict[str, Any]:
    where = str(folder / "config.json")
    nested = config.get("text_config")
    given = nested if isinstance(nested, dict) else config
    tied = bool(config.get("tie_word_embeddings") or given.get("tie_word_embeddings"))
    text = parse(Qwen2VlText, {**given, "model_type": "qwen2", "tie_word_embeddings": tied}, f"{where}: text_config")
    sections = text.rope_parameters.mrope_section
    if sections is None:
        raise CheckpointError(f"{where}: rope_scaling has no mrope_section; not a Qwen2-VL config")
    vision = parse(NativeVision, config.get("vision_config") or {}, f"{where}: vision_config")
    if vision.hidden_size != text.hidden_size:
        raise CheckpointError(
            f"{where}: vision_config.hidden_size {vision.hidden_size} must be the language model's {text.hidden_size}"
        )
    for name, theirs, ours in (
        ("patch_size", preprocessor.patch_size, vision.patch_size),
        ("temporal_patch_size", preprocessor.temporal_patch_size, vision.temporal_patch_size),
        ("merge_size", preprocessor.merge_size, vision.spatial_merge_size),
    ):
        if theirs not in (None, ours):
            raise CheckpointError(f"{where}: {name} is {ours}, but {theirs} in the preprocessor's file")
    kept = {"depth", "embed_dim", "num_heads", "mlp_ratio", "in_channels", "patch_size", "temporal_patch_size"}
    encoder = NativeVitEncoder(
        kind="native_vit",
        config=vision.model_dump(mode="json", include=kept),
        mean=preprocessor.image_mean or CLIP_MEAN,
        std=preprocessor.image_std or CLIP_STD,
    )
    least, most = preprocessor.pixels
    video_least, video_most = read_preprocessor(folder, "video").pixels
    return {
        "encoder": encoder,
        "connector": PatchMergerConnector(factor=vision.spatial_merge_size),
        "language": text.facts,
        "resolution": Native(
            min_pixels=least or HUB_PIXELS[0],
            max_pixels=most or HUB_PIXELS[1],
            video_min_pixels=video_least or HUB_PIXELS[0],
            video_max_pixels=video_most or HUB_PIXELS[1],
            rule="transformers",
        ),
        "positions": MRope(sections=sections, resume="paper"),
    }
