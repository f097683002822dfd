"""`ModelConfig` -> the configuration files of a Hugging Face directory, in the layout of the published ones.

Older names are written (`rope_theta`, `torch_dtype`, Qwen2-VL's flat config): every release since transformers 4.45
reads them, and vLLM does. What has no counterpart is refused with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opsin.checkpoint.chat_templates import media_tokens
from opsin.checkpoint.hub_config import VISION_END, VISION_START, default_video
from opsin.checkpoint.hub_names import Family
from opsin.checkpoint.hub_values import TEXTS, parse
from opsin.core.errors import ModelError
from opsin.model.config import ModelConfig
from opsin.model.connector_values import MlpConnector, PatchMergerConnector
from opsin.model.encoder_values import ClipEncoder, NativeVitEncoder, SiglipEncoder
from opsin.text.templates import ChatML
from opsin.vision.any_res import AnyRes
from opsin.vision.native import Native
from opsin.vision.positions import MRope
from opsin.vision.square import Square

CLASSES: dict[Family, tuple[str, str]] = {
    "llava": ("LlavaForConditionalGeneration", "LlavaProcessor"),
    "llava_next": ("LlavaNextForConditionalGeneration", "LlavaNextProcessor"),
    "llava_onevision": ("LlavaOnevisionForConditionalGeneration", "LlavaOnevisionProcessor"),
    "qwen2_vl": ("Qwen2VLForConditionalGeneration", "Qwen2VLProcessor"),
}
LANGUAGE_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
BICUBIC = 3


def family_for(config: ModelConfig) -> Family:
    """The family whose class holds such a model.

    Raises:
        ModelError: none does; every part that does not fit is named, with what would.
    """
    resolution = config.resolution
    native = isinstance(resolution, Native) or isinstance(config.encoder, NativeVitEncoder)
    problems = [] if config.spliced else [f"fusion {config.fusion.kind}: transformers' classes splice"]
    problems += _native_problems(config) if native else _llava_problems(config)
    if isinstance(resolution, AnyRes):
        problems += _any_res_problems(config, resolution)
    if problems:
        raise ModelError(f"no Hugging Face class holds this model: {'; '.join(problems)}")
    if native:
        return "qwen2_vl"
    if not isinstance(resolution, AnyRes):
        return "llava"
    return "llava_next" if resolution.max_tiles is None else "llava_onevision"


def _native_problems(config: ModelConfig) -> list[str]:
    wanted = "(a model with native resolution must be Qwen2-VL's)"
    head = config.language.head_width
    width, heads = (int(config.language.facts[key]) for key in ("hidden_size", "num_attention_heads"))
    fits = {
        f"encoder {config.encoder.kind}: native_vit fits": isinstance(config.encoder, NativeVitEncoder),
        f"resolution {config.resolution.kind}: native fits": isinstance(config.resolution, Native),
        f"connector {config.connector.kind}: patch_merger fits": isinstance(config.connector, PatchMergerConnector),
        f"positions {config.positions.kind}: mrope fits": isinstance(config.positions, MRope),
        f"language model {config.language.facts['model_type']}: qwen2 fits": config.language.facts["model_type"]
        == "qwen2",
        f"language.head_dim {head}: {width // heads} fits, the width {width} by {heads} heads": head * heads == width,
        f"template {config.template.kind} without {VISION_START} and {VISION_END} around pictures: transformers and "
        "vLLM find pictures by them": isinstance(config.template, ChatML)
        and config.template.around_picture == (VISION_START, VISION_END),
    }
    return [f"{problem} {wanted}" for problem, fit in fits.items() if not fit]


def _llava_problems(config: ModelConfig) -> list[str]:
    encoder, connector = config.encoder, config.connector
    problems = []
    if not isinstance(encoder, ClipEncoder | SiglipEncoder):
        problems.append(f"encoder {encoder.kind}: clip or siglip fit a square or AnyRes")
    elif encoder.interpolate_positions:
        problems.append("encoder.interpolate_positions: the classes of LLaVA take the tower's own size only")
    if not (isinstance(connector, MlpConnector) and connector.depth == 2):
        depth = f" of depth {connector.depth}" if isinstance(connector, MlpConnector) else ""
        problems.append(f"connector {connector.kind}{depth}: an mlp of depth 2 fits")
    if isinstance(config.positions, MRope):
        problems.append("positions mrope: LLaVA's language models have sequential ones")
    return problems


def _any_res_problems(config: ModelConfig, resolution: AnyRes) -> list[str]:
    problems = []
    if not (resolution.newline and resolution.unpad):
        problems.append("resolution any_res without newline or unpad: LLaVA-NeXT and LLaVA-OneVision have both")
    if resolution.max_tiles is None:
        return problems
    if isinstance(config.encoder, ClipEncoder):
        problems.append("resolution any_res with max_tiles and encoder clip: LLaVA-OneVision has siglip")
    clip = (resolution.video_newline, resolution.video_pool, resolution.video_stride)
    if clip != ("one_token", "bilinear", 2):
        problems.append(f"clips pooled by {clip}: LLaVA-OneVision has one newline, bilinear pooling and stride 2")
    return problems


def notes_on(config: ModelConfig, family: Family) -> list[str]:
    """Where transformers will treat inputs otherwise than opsin does under this config."""
    resolution = config.resolution
    notes = []
    if isinstance(resolution, AnyRes | Native) and resolution.rule == "original":
        notes.append("sizes of a few pictures are rounded by transformers' rule, not by the original code's")
    if isinstance(resolution, AnyRes):
        if resolution.max_tiles is None and resolution.multi == "base":
            notes.append("several pictures: opsin takes the base of each, LlavaNext tiles each of them")
        if resolution.max_tiles is not None and resolution.multi == "tiles":
            notes.append("several pictures: opsin tiles each, LlavaOnevision takes the base of each")
    if isinstance(resolution, Native) and resolution.video_total_pixels is not None:
        notes.append("clips: transformers has no limit for all frames together")
    if family in {"llava_onevision", "qwen2_vl"} and config.video != default_video(family):
        notes.append(f"videos: the directory does not say which frames are taken ({config.video.kind} here)")
    if isinstance(config.positions, MRope) and config.positions.resume == "paper":
        notes.append(
            "after clips with more maps than rows and columns, transformers 5 gives other positions than the paper"
        )
    return notes


def config_json(
    config: ModelConfig, family: Family, lm: Mapping[str, Any], ids: Mapping[str, int], dtype: str
) -> dict[str, Any]:
    """config.json. `lm` is the language model's whole config, `ids` those of the media's tokens."""
    architecture, _ = CLASSES[family]
    text = text_config(lm)
    top: dict[str, Any] = {"architectures": [architecture], "model_type": family, "torch_dtype": dtype}
    top["tie_word_embeddings"] = text["tie_word_embeddings"]
    if family == "qwen2_vl":
        return top | _qwen2_vl_config(config, text, ids)
    encoder, resolution = config.encoder, config.resolution
    assert isinstance(encoder, ClipEncoder | SiglipEncoder)  # family_for has checked
    image, video = media_tokens(family)
    layer = encoder.select_layer
    top |= {
        "image_token_index": ids[image],
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "vision_feature_layer": layer if isinstance(layer, int) else list(layer),
        "vision_feature_select_strategy": strategy_of(config),
        # vLLM finds the language model by its class's name.
        "text_config": {"architectures": [LANGUAGE_CLASSES[text["model_type"]]], **text, "torch_dtype": dtype},
        "vision_config": vision_config(encoder) | {"torch_dtype": dtype},
    }
    if isinstance(resolution, AnyRes):
        top["image_grid_pinpoints"] = pinpoints_of(resolution)
    else:
        top["image_seq_length"] = config.layout(*config.usual_size, "single").tokens
    if family == "llava_onevision" and isinstance(resolution, AnyRes):
        top |= {"video_token_index": ids[video], "vision_aspect_ratio": f"anyres_max_{resolution.max_tiles}"}
    return top


def text_config(lm: Mapping[str, Any]) -> dict[str, Any]:
    """The language model's config under the older names."""
    text = parse(TEXTS[lm["model_type"]], dict(lm), "language model")
    out = text.model_dump(mode="json", exclude_none=True, exclude={"rope_parameters", "rope_theta", "layer_types"})
    rope = text.rope_parameters.model_dump(mode="json", exclude_none=True)
    out["rope_theta"] = rope.pop("rope_theta")
    if rope != {"rope_type": "default"}:
        out["rope_scaling"] = rope
    if text.model_type == "mistral":
        out["sliding_window"] = text.sliding_window
    return out


def vision_config(encoder: ClipEncoder | SiglipEncoder) -> dict[str, Any]:
    """A CLIP or SigLIP tower's config."""
    facts = {key: value for key, value in encoder.facts.items() if key not in {"dtype", "torch_dtype", "architectures"}}
    if isinstance(encoder, SiglipEncoder):
        return facts | {"model_type": "siglip_vision_model", "vision_use_head": False}
    return facts | {"model_type": "clip_vision_model"}


def strategy_of(config: ModelConfig) -> str:
    """transformers' word for which tokens of the tower are features: CLIP's class token goes, SigLIP has none."""
    return "default" if isinstance(config.encoder, ClipEncoder) else "full"


def pinpoints_of(resolution: AnyRes) -> list[list[int]]:
    """Canvases as (height, width), in an order that makes transformers choose as opsin does."""
    swap = resolution.rule == "original"  # which reads a pair as (width, height)
    return [[second, first] if swap else [first, second] for first, second in resolution.pinpoints]


def _qwen2_vl_config(config: ModelConfig, text: dict[str, Any], ids: Mapping[str, int]) -> dict[str, Any]:
    encoder, connector, positions = config.encoder, config.connector, config.positions
    assert isinstance(encoder, NativeVitEncoder)  # family_for has checked
    assert isinstance(connector, PatchMergerConnector)
    assert isinstance(positions, MRope)
    image, video = media_tokens("qwen2_vl")
    flat = {key: value for key, value in text.items() if key not in {"model_type", "tie_word_embeddings"}}
    flat["rope_scaling"] = {**flat.get("rope_scaling", {"type": "mrope"}), "mrope_section": list(positions.sections)}
    flat.setdefault("use_sliding_window", False)
    facts = {key: value for key, value in encoder.facts.items() if key != "in_channels"}
    return flat | {
        "image_token_id": ids[image],
        "video_token_id": ids[video],
        "vision_start_token_id": ids[VISION_START],
        "vision_end_token_id": ids[VISION_END],
        "vision_config": facts
        | {
            "model_type": "qwen2_vl",
            "in_chans": 3,
            "hidden_act": "quick_gelu",
            "hidden_size": text["hidden_size"],
            "spatial_merge_size": connector.factor,
        },
    }


def processor_files(config: ModelConfig, family: Family) -> dict[str, dict[str, Any]]:
    """preprocessor_config.json, processor_config.json and, for clips, video_preprocessor_config.json."""
    processor_class = CLASSES[family][1]
    colours = {"image_mean": list(config.encoder.mean), "image_std": list(config.encoder.std)}
    common = {
        "processor_class": processor_class,
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "resample": BICUBIC,
        **colours,
    }
    processor: dict[str, Any] = {"processor_class": processor_class}
    if family == "qwen2_vl":
        files = _native_files(config)
    else:
        image, video = media_tokens(family)
        processor |= {"image_token": image, "vision_feature_select_strategy": strategy_of(config)}
        files = {"preprocessor_config.json": _square_or_tiles(config)}
    if family == "llava_onevision":
        assert isinstance(config.resolution, AnyRes)  # family_for has checked
        side = config.resolution.size
        processor["num_image_tokens"] = (side // config.encoder.patch_size) ** 2
        processor |= {"video_token": video, "vision_aspect_ratio": f"anyres_max_{config.resolution.max_tiles}"}
        kind = {"video_processor_type": "LlavaOnevisionVideoProcessor", "size": {"height": side, "width": side}}
        files["video_preprocessor_config.json"] = kind
    elif family != "qwen2_vl":
        classes = int(isinstance(config.encoder, ClipEncoder))
        processor |= {"patch_size": config.encoder.patch_size, "num_additional_image_tokens": classes}
    return {"processor_config.json": processor} | {name: common | own for name, own in files.items()}


def _square_or_tiles(config: ModelConfig) -> dict[str, Any]:
    resolution = config.resolution
    assert isinstance(resolution, Square | AnyRes)  # family_for has checked
    side = {"height": resolution.size, "width": resolution.size}
    shortest = {"size": {"shortest_edge": resolution.size}, "crop_size": side, "do_center_crop": True}
    if isinstance(resolution, AnyRes):
        pinpoints = {"do_pad": True, "image_grid_pinpoints": pinpoints_of(resolution)}
        if resolution.max_tiles is None:
            return {"image_processor_type": "LlavaNextImageProcessor", **shortest, **pinpoints}
        return {"image_processor_type": "LlavaOnevisionImageProcessor", "size": side, **pinpoints}
    if resolution.fit == "pad":
        return {"image_processor_type": "LlavaImageProcessor", "do_pad": True, **shortest}
    if resolution.fit == "crop":
        return {"image_processor_type": "CLIPImageProcessor", **shortest}
    return {"image_processor_type": "CLIPImageProcessor", "size": side, "do_center_crop": False}


def _native_files(config: ModelConfig) -> dict[str, dict[str, Any]]:
    resolution, encoder = config.resolution, config.encoder
    assert isinstance(resolution, Native)  # family_for has checked
    assert isinstance(encoder, NativeVitEncoder)
    cut = {
        "patch_size": encoder.patch_size,
        "temporal_patch_size": encoder.temporal,
        "merge_size": config.connector.fold,
    }
    files = {}
    for name, kind, least, most in (
        ("preprocessor_config.json", "image", resolution.min_pixels, resolution.max_pixels),
        ("video_preprocessor_config.json", "video", resolution.video_min_pixels, resolution.video_max_pixels),
    ):
        limits = {"min_pixels": least, "max_pixels": most, "size": {"shortest_edge": least, "longest_edge": most}}
        files[name] = {f"{kind}_processor_type": f"Qwen2VL{kind.title()}Processor", **limits, **cut}
    return files
