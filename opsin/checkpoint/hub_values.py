"""What opsin reads of a Hugging Face config.json: every class is an allow-list, with bounds and published defaults.

Keys that are not named are not looked at. Keys that ask for remote code are refused before anything else is read.
Defaults are those of the transformers classes, since published files list only what differs from them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from opsin.checkpoint.json_files import read_json
from opsin.checkpoint.refusing import refusing
from opsin.core.errors import CheckpointError

MAX_CONFIG_BYTES = 2_000_000
REMOTE_CODE = ("auto_map", "trust_remote_code", "custom_pipelines")
"""Keys that make loaders run Python files of the directory."""

Width = Annotated[int, Field(ge=1, le=131_072)]
Inner = Annotated[int, Field(ge=1, le=1_048_576)]
Count = Annotated[int, Field(ge=1, le=1_024)]
Side = Annotated[int, Field(ge=1, le=16_384)]
Rows = Annotated[int, Field(ge=1, le=4_000_000)]
Epsilon = Annotated[float, Field(gt=0, lt=1)]
Mean = Annotated[float, Field(ge=0, le=1)]
Deviation = Annotated[float, Field(ge=1e-3, le=10)]
Pixels = Annotated[int, Field(ge=1, le=1 << 32)]
Activation = Literal["silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu"]
Pinpoints = Annotated[tuple[tuple[Side, Side], ...], Field(min_length=1, max_length=256)]


WINDOW = ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types")


class Part(BaseModel):
    """Base: only the named keys, checked, the rest ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True, allow_inf_nan=False)


class Rope(Part):
    """Rotary embeddings, under their newer names."""

    rope_type: Literal["default", "linear", "llama3", "yarn", "dynamic", "longrope"] = "default"
    rope_theta: Annotated[float, Field(ge=1, le=1e15)]
    factor: float | None = Field(None, gt=0, le=1e6)
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_position_embeddings: int | None = Field(None, ge=1, le=1 << 30)
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool | None = None
    mrope_section: tuple[Count, Count, Count] | None = None

    @model_validator(mode="after")
    def _complete(self) -> Rope:
        scaled = ("factor",)
        needed = {
            "linear": scaled,
            "yarn": scaled,
            "llama3": (*scaled, "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
        }
        missing = [key for key in needed.get(self.rope_type, ()) if getattr(self, key) is None]
        if missing:
            raise ValueError(f"rope type {self.rope_type!r} needs {', '.join(missing)}")
        return self


class Text(Part):
    """A language model; the defaults are Llama's (7B)."""

    model_type: Literal["llama", "mistral", "qwen2", "qwen3"] = "llama"
    vocab_size: Rows = 32_000
    hidden_size: Width = 4_096
    intermediate_size: Inner = 11_008
    num_hidden_layers: Count = 32
    num_attention_heads: Count = 32
    num_key_value_heads: Count | None = None
    head_dim: Annotated[int, Field(ge=2, le=4_096)] | None = None
    hidden_act: Activation = "silu"
    max_position_embeddings: Annotated[int, Field(ge=1, le=1 << 30)] = 2_048
    rms_norm_eps: Epsilon = 1e-6
    rope_theta: float = 10_000.0
    rope_parameters: Rope
    attention_bias: bool | None = None
    mlp_bias: bool | None = None
    tie_word_embeddings: bool = False
    sliding_window: int | None = None
    use_sliding_window: bool | None = None
    max_window_layers: int | None = None
    layer_types: tuple[Literal["full_attention", "sliding_attention"], ...] | None = None
    initializer_range: float = Field(0.02, ge=0, le=100)
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None

    @model_validator(mode="before")
    @classmethod
    def _newer_rope(cls, value: Any) -> Any:
        """`rope_theta` and `rope_scaling` of older files become `rope_parameters`."""
        if not isinstance(value, dict):
            return value
        given = value.get("rope_scaling") or value.get("rope_parameters") or {}
        if not isinstance(given, dict):
            raise ValueError("rope_scaling must be a table")
        rope = dict(given)
        kind = rope.get("rope_type", rope.pop("type", "default"))
        rope["rope_type"] = "default" if kind == "mrope" else kind
        rope.setdefault("rope_theta", value.get("rope_theta") or cls.model_fields["rope_theta"].default)
        return {**value, "rope_parameters": rope}

    @model_validator(mode="after")
    def _whole_heads(self) -> Text:
        heads, given = self.num_attention_heads, self.head_dim
        if given is None and self.hidden_size % heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} in num_attention_heads {heads} is no whole width of a head"
            )
        if (given or self.hidden_size // heads) % 2:
            raise ValueError(f"heads of width {given or self.hidden_size // heads}: pairs of channels are turned")
        if heads % (self.num_key_value_heads or heads):
            raise ValueError(f"num_attention_heads {heads} is no multiple of num_key_value_heads")
        return self

    @property
    def facts(self) -> dict[str, Any]:
        """The config of opsin's language model."""
        facts = self.model_dump(mode="json", exclude_none=True, exclude={"rope_theta", *WINDOW})
        facts["rope_parameters"].pop("mrope_section", None)
        if self.model_type == "mistral":  # its window is on wherever it is named, and named by default
            facts["sliding_window"] = self.sliding_window
        elif self.use_sliding_window:  # Qwen2 names one that is off
            facts |= self.model_dump(mode="json", exclude_none=True, include=set(WINDOW))
        return facts


class MistralText(Text):
    """Mistral's defaults (7B)."""

    intermediate_size: Inner = 14_336
    num_key_value_heads: Count | None = 8
    max_position_embeddings: Annotated[int, Field(ge=1, le=1 << 30)] = 4_096 * 32
    sliding_window: int | None = 4_096


class QwenText(Text):
    """The defaults of Qwen2 and Qwen3."""

    vocab_size: Rows = 151_936
    intermediate_size: Inner = 22_016
    num_key_value_heads: Count | None = 32
    max_position_embeddings: Annotated[int, Field(ge=1, le=1 << 30)] = 32_768


class Qwen2VlText(Text):
    """The defaults of transformers' Qwen2-VL (72B; its epsilon of 1e-5 differs from the published files' 1e-6)."""

    vocab_size: Rows = 152_064
    hidden_size: Width = 8_192
    intermediate_size: Inner = 29_568
    num_hidden_layers: Count = 80
    num_attention_heads: Count = 64
    num_key_value_heads: Count | None = 8
    max_position_embeddings: Annotated[int, Field(ge=1, le=1 << 30)] = 32_768
    rms_norm_eps: Epsilon = 1e-5
    rope_theta: float = 1_000_000.0


TEXTS: dict[str, type[Text]] = {"llama": Text, "mistral": MistralText, "qwen2": QwenText, "qwen3": QwenText}


class Tower(Part):
    """A vision transformer of a fixed size."""

    hidden_size: Width = 768
    intermediate_size: Inner = 3_072
    num_hidden_layers: Count = 12
    num_attention_heads: Count = 12
    num_channels: Literal[3] = 3
    image_size: Side = 224

    @model_validator(mode="after")
    def _whole_heads(self) -> Tower:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is no multiple of its {self.num_attention_heads} heads")
        return self


class ClipVision(Tower):
    """CLIP's vision transformer (B/32)."""

    model_type: Literal["clip_vision_model"] = "clip_vision_model"
    patch_size: Side = 32
    hidden_act: Activation = "quick_gelu"
    layer_norm_eps: Epsilon = 1e-5


class SiglipVision(Tower):
    """SigLIP's vision transformer (B/16). Its pooling head is left out: patch features are read before it."""

    model_type: Literal["siglip_vision_model"] = "siglip_vision_model"
    patch_size: Side = 16
    hidden_act: Activation = "gelu_pytorch_tanh"
    layer_norm_eps: Epsilon = 1e-6


class NativeVision(Part):
    """Qwen2-VL's vision transformer."""

    depth: Count = 32
    embed_dim: Width = 1_280
    hidden_size: Width = 3_584
    num_heads: Count = 16
    mlp_ratio: int = Field(4, ge=1, le=64)
    in_channels: Literal[3] = Field(3, alias="in_chans")
    hidden_act: Literal["quick_gelu"] = "quick_gelu"
    patch_size: Side = 14
    spatial_merge_size: Annotated[int, Field(ge=2, le=8)] = 2
    temporal_patch_size: Annotated[int, Field(ge=1, le=16)] = 2


class Llava(Part):
    """LLaVA, LLaVA-NeXT and LLaVA-OneVision. What is not a `Literal`'s value has no counterpart in opsin."""

    text_config: dict[str, Any] = {}
    vision_config: dict[str, Any] | None = None
    projector_hidden_act: Literal["gelu"] = "gelu"
    multimodal_projector_bias: Literal[True] = True
    vision_feature_select_strategy: Literal["default", "full"] | None = None
    vision_feature_layer: int | tuple[int, ...] | None = None
    tie_word_embeddings: bool = False
    image_grid_pinpoints: Pinpoints | None = None
    vision_aspect_ratio: str = Field("anyres_max_9", pattern=r"^anyres_max_[1-9]\d{0,3}$")


class Preprocessor(Part):
    """preprocessor_config.json, or the same values inside of processor_config.json."""

    image_mean: tuple[Mean, Mean, Mean] | None = None
    image_std: tuple[Deviation, Deviation, Deviation] | None = None
    do_normalize: Literal[True] = True
    do_rescale: Literal[True] = True
    do_resize: Literal[True] = True
    rescale_factor: Annotated[float, Field(ge=0.999 / 255, le=1.001 / 255)] = 1 / 255
    resample: Literal[3] = 3
    """Bicubic, which opsin resizes by."""
    do_pad: bool | None = None
    do_center_crop: bool | None = None
    size: dict[str, Pixels | None] | Side | None = None
    crop_size: dict[str, Side | None] | Side | None = None
    image_grid_pinpoints: Pinpoints | None = None
    min_pixels: Pixels | None = None
    max_pixels: Pixels | None = None
    patch_size: Side | None = None
    temporal_patch_size: Count | None = None
    merge_size: Count | None = None

    @model_validator(mode="after")
    def _square(self) -> Preprocessor:
        """Of sizes that differ, opsin could follow only one."""
        sides = set(self.crop.values())
        sides |= {
            side for key, side in self.edges.items() if key in {"height", "width"} or (sides and key != "longest_edge")
        }
        if len(sides) > 1:
            raise ValueError(
                f"size {self.size} and crop_size {self.crop_size}: opsin makes squares, whose shortest edge is the "
                "crop's; it has no counterpart"
            )
        return self

    @property
    def edges(self) -> dict[str, int]:
        """`size` as a table."""
        given = {"shortest_edge": self.size} if isinstance(self.size, int) else self.size or {}
        return {key: side for key, side in given.items() if side is not None}

    @property
    def crop(self) -> dict[str, int]:
        """`crop_size` as a table; empty where nothing is cropped."""
        if self.do_center_crop is False:
            return {}
        given = {"height": self.crop_size} if isinstance(self.crop_size, int) else self.crop_size or {}
        return {key: side for key, side in given.items() if side is not None}

    @property
    def pixels(self) -> tuple[int | None, int | None]:
        """Least and most pixels of a picture at native resolution, in all spellings that transformers has written."""
        edges = self.edges
        least = self.min_pixels or edges.get("shortest_edge") or edges.get("min_pixels")
        return least, self.max_pixels or edges.get("longest_edge") or edges.get("max_pixels")

    @property
    def side(self) -> int | None:
        """Of the square that pictures or tiles become."""
        return self.crop.get("height") or self.edges.get("height") or self.edges.get("shortest_edge")


P = TypeVar("P", bound=Part)


def parse(kind: type[P], value: Any, where: str) -> P:
    """A value checked against its allow-list.

    Raises:
        CheckpointError: every key that is out of bounds or of the wrong type.
    """
    with refusing(where):
        return kind.model_validate(value)


def read_config_json(folder: Path) -> dict[str, Any]:
    """config.json of a directory, refused where it asks for code of its own to be run, or is quantised.

    Raises:
        CheckpointError: it is missing, not JSON, or refused.
    """
    path = folder / "config.json"
    config = read_json(path, MAX_CONFIG_BYTES)
    for where, table in [("", config), *((f"{key}.", part) for key, part in config.items() if isinstance(part, dict))]:
        for key in REMOTE_CODE:
            if table.get(key):
                raise CheckpointError(
                    f"{path}: {where}{key} asks to run Python code that comes with the weights; opsin never does. "
                    "Use a checkpoint of the model in a format that transformers supports by itself"
                )
        if table.get("quantization_config"):
            raise CheckpointError(f"{path}: {where}quantization_config: convert the weights to bfloat16 first")
    return config


def read_preprocessor(folder: Path, medium: Literal["image", "video"] = "image") -> Preprocessor:
    """The image processor's values, or the video processor's; empty where the directory has none.

    A directory without a file for videos means its image processor's, as transformers reads it.

    Raises:
        CheckpointError: a file is not JSON, or a value is out of bounds.
    """
    path = folder / ("preprocessor_config.json" if medium == "image" else "video_preprocessor_config.json")
    if path.is_file():
        return parse(Preprocessor, read_json(path, MAX_CONFIG_BYTES), str(path))
    path = folder / "processor_config.json"
    inner = read_json(path, MAX_CONFIG_BYTES).get(f"{medium}_processor") if path.is_file() else None
    if inner is None and medium == "video":
        return read_preprocessor(folder)
    return parse(Preprocessor, inner or {}, str(path))
