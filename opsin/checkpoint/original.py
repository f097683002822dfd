"""Directories in LLaVA's own layout (liuhaotian/llava-v1.5, lmms-lab/llava-onevision-qwen2) and `mm_projector.bin`."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor

from opsin.checkpoint.chat_templates import read_template
from opsin.checkpoint.hub_config import CLIP_L_336, SO400M_384, default_template, facts_of, read_text
from opsin.checkpoint.hub_names import CONNECTOR, NEWLINE, ORIGINAL, TOWER, renamed
from opsin.checkpoint.hub_values import ClipVision, Part, Pinpoints, SiglipVision, parse, read_config_json
from opsin.checkpoint.shards import Weights
from opsin.core.errors import CheckpointError, ModelError
from opsin.core.types import Pool
from opsin.model.config import LanguageModel, ModelConfig
from opsin.model.connector_values import Connector, LinearConnector, MlpConnector
from opsin.model.encoder_values import ClipEncoder, Encoder, SiglipEncoder
from opsin.model.encoders import fill_exactly
from opsin.model.vlm import Vlm
from opsin.text.templates import Template
from opsin.vision.any_res import AnyRes
from opsin.vision.resolution import Resolution
from opsin.vision.square import Square

LANGUAGES = {
    "LlavaLlamaForCausalLM": "llama",
    "LlavaQwenForCausalLM": "qwen2",
    "LlavaMistralForCausalLM": "mistral",
    "llava_llama": "llama",
    "llava_qwen": "qwen2",
    "llava_mistral": "mistral",
}
"""Class names and `model_type`s of the original code -> the language model behind them."""

TOWERS: dict[str, ClipVision | SiglipVision] = {
    "openai/clip-vit-large-patch14-336": ClipVision.model_validate(CLIP_L_336),
    "openai/clip-vit-large-patch14": ClipVision.model_validate(CLIP_L_336 | {"image_size": 224}),
    "google/siglip-so400m-patch14-384": SiglipVision.model_validate(SO400M_384),
}
"""Architectures of the towers that published configs only name."""

SO400M_LAYERS = 27
"""Of google/siglip-so400m as published; a checkpoint whose tower has fewer was saved without the last."""


class Original(Part):
    """What the original code keeps in config.json beside the language model's own values."""

    mm_vision_tower: str
    mm_projector_type: Annotated[str, Field(pattern=r"^(linear|mlp[1-8]x_gelu)$")] = "linear"
    mm_vision_select_layer: int = -2
    mm_vision_select_feature: Literal["patch"] = "patch"
    mm_patch_merge_type: Literal["flat", "spatial", "spatial_unpad"] = "flat"
    mm_use_im_start_end: Literal[False] = False
    mm_resampler_type: Literal["spatial_pool"] | None = None
    mm_spatial_pool_mode: Pool = "bilinear"
    mm_spatial_pool_stride: Annotated[int, Field(ge=1, le=16)] | None = None
    mm_newline_position: Literal["one_token", "grid", "frame", "no_token"] = "one_token"
    image_aspect_ratio: Annotated[str, Field(pattern=r"^(square|pad|anyres|anyres_max_[1-9]\d{0,3})$")] | None = None
    image_grid_pinpoints: Pinpoints | str | None = None


def is_original(config: dict[str, Any]) -> bool:
    """Whether a config.json is of the original code."""
    return "mm_vision_tower" in config and "vision_config" not in config


def original_model_config(
    folder: Path,
    config: dict[str, Any],
    names: Collection[str],
    vision_tower: Path | None,
    template: Template | None,
    tokenizer: Path,
) -> ModelConfig:
    """The configuration of an original directory, whose weights have `names`.

    Raises:
        CheckpointError: a value is malformed or out of bounds (all named).
        ModelError: something has no counterpart in opsin, or the tower is neither known nor given.
    """
    where = str(folder / "config.json")
    value = parse(Original, config, where)
    named = [*(config.get("architectures") or []), config.get("model_type")]
    model_type = next((LANGUAGES[name] for name in named if name in LANGUAGES), None)
    if model_type is None:
        raise ModelError(f"{where}: neither architectures nor model_type is one of {', '.join(LANGUAGES)}")
    facts = {key: part for key, part in config.items() if key not in {"model_type", "architectures"}}
    text = read_text(facts | {"model_type": model_type}, where, tied=False, default=model_type)
    vision, encoder = _encoder(where, value, tower_names(names), vision_tower)
    anyres = bool(value.image_aspect_ratio and value.image_aspect_ratio.startswith("anyres"))
    family: Literal["llava_next", "llava"] = "llava_next" if anyres else "llava"
    chosen = template or read_template(folder) or default_template(family, model_type, where)
    return ModelConfig(
        encoder=encoder,
        connector=_connector(value.mm_projector_type),
        language=LanguageModel(config=text.facts, tokenizer=tokenizer),
        resolution=_resolution(where, value, vision.image_size),
        template=chosen,
    ).resolved()


def tower_names(names: Collection[str]) -> list[str]:
    """opsin's names of those weights of an original directory that belong to the tower; often there are none."""
    return [mine for mine in (renamed(name, ORIGINAL) for name in names) if mine.startswith(TOWER)]


def _encoder(
    where: str, value: Original, names: Collection[str], vision_tower: Path | None
) -> tuple[ClipVision | SiglipVision, Encoder]:
    """The tower: of the given directory, or the known one of that name, with as many layers as there are weights."""
    if vision_tower is not None:
        vision = _read_tower(vision_tower)
        whole = vision.num_hidden_layers
    elif value.mm_vision_tower in TOWERS and names:
        vision = TOWERS[value.mm_vision_tower]
        whole = SO400M_LAYERS
    else:
        missing = "its architecture is not known" if names else "its weights are not in the checkpoint"
        raise ModelError(
            f"{where}: the vision tower is {value.mm_vision_tower!r} and {missing}; download it and give its "
            "directory: opsin.load(path, vision_tower=DIRECTORY)"
        )
    layers = [
        int(found[1]) for name in names if (found := re.match(rf"{re.escape(TOWER)}encoder\.layers\.(\d+)\.", name))
    ]
    count = max(layers) + 1 if layers else whole
    if layers:
        vision = vision.model_copy(update={"num_hidden_layers": count})
    if isinstance(vision, ClipVision):
        return vision, ClipEncoder(kind="clip", config=facts_of(vision), select_layer=value.mm_vision_select_layer)
    # The original code deletes SigLIP's last layer, whatever mm_vision_select_layer says; what it saves lacks it.
    config = facts_of(vision) | {"vision_use_head": False}
    return vision, SiglipEncoder(kind="siglip", config=config, select_layer=-1 if count < whole else -2)


def _read_tower(folder: Path) -> ClipVision | SiglipVision:
    config = read_config_json(folder)
    inner = config.get("vision_config")
    config = {**inner, "model_type": config.get("model_type")} if isinstance(inner, dict) else config
    kinds: dict[str, type[ClipVision | SiglipVision]] = {"clip": ClipVision, "siglip": SiglipVision}
    kind = kinds.get(str(config.get("model_type")).removesuffix("_vision_model"))
    if kind is None:
        raise ModelError(f"{folder}: model_type {config.get('model_type')!r} is no vision tower of CLIP or SigLIP")
    return parse(kind, {key: part for key, part in config.items() if key != "model_type"}, str(folder / "config.json"))


def _connector(kind: str) -> Connector:
    return LinearConnector() if kind == "linear" else MlpConnector(depth=int(kind[3]))


def _resolution(where: str, value: Original, image_size: int) -> Resolution:
    ratio = value.image_aspect_ratio or "square"
    unpads = value.mm_patch_merge_type == "spatial_unpad"
    if not ratio.startswith("anyres"):
        if unpads:
            raise ModelError(
                f"{where}: image_aspect_ratio {ratio!r} with mm_patch_merge_type 'spatial_unpad' puts a newline behind "
                "a single square; opsin has no counterpart"
            )
        return Square(size=image_size, fit="pad" if ratio == "pad" else "crop")
    if value.mm_patch_merge_type == "flat":
        raise ModelError(
            f"{where}: image_aspect_ratio {ratio!r} with mm_patch_merge_type 'flat' lines tiles up one by one; opsin "
            "has no counterpart ('spatial' and 'spatial_unpad' put them together)"
        )
    return AnyRes(
        size=image_size,
        pinpoints=_pinpoints(where, value.image_grid_pinpoints, image_size),
        max_tiles=int(ratio.rpartition("_")[2]) if "max" in ratio else None,
        unpad=unpads,
        newline=unpads,
        rule="original",
        video_newline=value.mm_newline_position,
        video_pool=value.mm_spatial_pool_mode,
        video_stride=value.mm_spatial_pool_stride or 2,
    )


def _pinpoints(where: str, given: Any, size: int) -> tuple[tuple[int, int], ...]:
    """The canvases as the file lists them.

    A range `(1x1),...,(6x6)` means every grid from its first to its last, the first number outermost.
    """
    if isinstance(given, tuple):
        return given
    ends = re.fullmatch(r"\(([1-9]\d?)x([1-9]\d?)\),\.\.\.,\(([1-9]\d?)x([1-9]\d?)\)", given or "")
    if ends is None:
        raise CheckpointError(f"{where}: image_grid_pinpoints {given!r}; expected pairs or '(1x1),...,(6x6)'")
    first, second, last, final = map(int, ends.groups())
    return tuple((size * i, size * j) for i in range(first, last + 1) for j in range(second, final + 1))


def read_projector(path: Path) -> dict[str, Tensor]:
    """The connector of an `mm_projector.bin` (or .safetensors), by names below `Vlm.connection`.

    Raises:
        CheckpointError: the file is damaged, could run code, or holds something else.
    """
    weights = Weights([path])
    found = {}
    for name, tensor in weights.read(weights.stored.keys()):
        at = max(name.find("mm_projector."), name.find("image_newline"))
        mine = renamed(f"model.{name[at:]}", ORIGINAL) if at >= 0 else name
        if not mine.startswith((CONNECTOR, NEWLINE)):
            raise CheckpointError(f"{path}: holds {name}, which is no part of a projector")
        found[mine.removeprefix("connection.")] = tensor
    return found


def load_projector(model: Vlm, path: Path) -> None:
    """Fill a model's connector from an `mm_projector.bin`.

    Raises:
        CheckpointError: the file is damaged, could run code, or holds something else.
        ModelError: tensors are missing, unexpected or of another shape (all named).
    """
    fill_exactly(model.connection, read_projector(path), str(path))
