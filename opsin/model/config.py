"""What a model is made of, as validated values. Nothing here imports torch, so a wrong recipe fails at once.

An encoder or language model is named by `path` (a Hugging Face directory, weights are loaded) or by `config`
(its Hugging Face config, weights start random); `resolve` reads the former's config.json into the latter.
`Encoder` and `Connector` are the only lists of encoders and connectors in the project.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from opsin.core.errors import ModelError
from opsin.core.paths import ExistingFolder
from opsin.core.types import Layout, PictureRole
from opsin.text.templates import Template
from opsin.vision.resolution import Colour, Resolution, Square

CLIP_MEAN: Colour = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Colour = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN: Colour = (0.485, 0.456, 0.406)
IMAGENET_STD: Colour = (0.229, 0.224, 0.225)
HALF: Colour = (0.5, 0.5, 0.5)

LANGUAGE_MODELS = ("llama", "mistral", "qwen2", "qwen3")
"""`model_type`s whose layers the decoder loop is tested with."""

ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings whose frequencies are fixed; others would let one document of a pack change another."""

NEVER_FROM_A_FILE = ("auto_map", "trust_remote_code", "_attn_implementation", "_attn_implementation_internal")
MAX_CONFIG_BYTES = 1_000_000


class Value(BaseModel):
    """Base of configuration values: unknown keys refused, never changed after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def read_hf_config(folder: Path) -> dict[str, Any]:
    """config.json of a Hugging Face directory, without the keys that could make a loader run code or change kernels.

    Raises:
        ModelError: the directory or the file is missing or is not a JSON object.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder}: no config.json there; expected a Hugging Face model directory")
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise ModelError(f"{path}: larger than {MAX_CONFIG_BYTES:,} bytes; this is not a model config")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path}: expected a JSON object, got {type(config).__name__}")
    return {key: value for key, value in config.items() if key not in NEVER_FROM_A_FILE}


class Pretrained(Value):
    """Something with weights at `path`, or from scratch by `config`."""

    path: ExistingFolder | None = None
    config: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _named_once(self) -> Pretrained:
        if self.path is None and self.config is None:
            raise ValueError("give either 'path' (a model directory) or 'config' (to start from random weights)")
        return self

    def resolved(self) -> Pretrained:
        """The same value with `config` filled from `path`."""
        if self.config is not None or self.path is None:
            return self
        return self.model_copy(update={"config": self._read(self.path)})

    def _read(self, path: Path) -> dict[str, Any]:
        return read_hf_config(path)

    @property
    def facts(self) -> dict[str, Any]:
        """The config of a resolved value."""
        if self.config is None:
            raise ModelError(f"{self.path}: not resolved yet; call .resolved() first")
        return self.config


class TowerEncoder(Pretrained):
    """Common to the transformers vision towers. `defaults` are what their published config.json files leave out."""

    family: ClassVar[str]
    defaults: ClassVar[dict[str, int]]

    def _read(self, path: Path) -> dict[str, Any]:
        config = read_hf_config(path)
        config = config.get("vision_config", config)
        if not isinstance(config, dict) or self.family not in str(config.get("model_type", self.family)):
            raise ModelError(f"{path}: not a {self.family} model; does encoder.kind name the right family?")
        return {**self.defaults, **config}

    def _number(self, key: str) -> int:
        value = self.facts.get(key, self.defaults[key])
        if not isinstance(value, int) or value < 1:
            raise ModelError(f"encoder.config.{key} must be a positive integer, got {value!r}")
        return value

    @property
    def patch_size(self) -> int:
        """Pixels per patch side."""
        return self._number("patch_size")

    @property
    def image_size(self) -> int:
        """Side of the square the tower's position embeddings were made for."""
        return self._number("image_size")

    @property
    def width(self) -> int:
        """C."""
        return self._number("hidden_size")


class ClipEncoder(TowerEncoder):
    """CLIP ViT; `select_layer` -2 and no class token is LLaVA's choice (2304.08485, section 4.1)."""

    family: ClassVar[str] = "clip"
    defaults: ClassVar[dict[str, int]] = {"hidden_size": 768, "image_size": 224, "patch_size": 32}
    kind: Literal["clip"]
    select_layer: int = -2
    mean: Colour = CLIP_MEAN
    std: Colour = CLIP_STD


class SiglipEncoder(TowerEncoder):
    """SigLIP ViT; the last hidden state before the final layer norm.

    LLaVA-OneVision takes the layer before: `select_layer: -2` of the full tower (its own copies lack the last layer).
    """

    family: ClassVar[str] = "siglip"
    defaults: ClassVar[dict[str, int]] = {"hidden_size": 768, "image_size": 224, "patch_size": 16}
    kind: Literal["siglip"]
    select_layer: int = -1
    mean: Colour = HALF
    std: Colour = HALF


class Dinov2Encoder(TowerEncoder):
    """DINOv2 ViT; the final layer norm is applied when the last layer is selected."""

    family: ClassVar[str] = "dinov2"
    defaults: ClassVar[dict[str, int]] = {"hidden_size": 768, "image_size": 224, "patch_size": 14}
    kind: Literal["dinov2"]
    select_layer: int = -1
    mean: Colour = IMAGENET_MEAN
    std: Colour = IMAGENET_STD


class EfficientNetLiteEncoder(Pretrained):
    """Convolutional encoder of the quick start: the last feature map, one token per 32 x 32 pixels."""

    kind: Literal["efficientnet_lite"]
    mean: Colour = IMAGENET_MEAN
    std: Colour = IMAGENET_STD

    @property
    def patch_size(self) -> int:
        """Stride of the last feature map."""
        return 32

    @property
    def image_size(self) -> None:
        """Any multiple of the stride will do."""
        return


Encoder = Annotated[ClipEncoder | SiglipEncoder | Dinov2Encoder | EfficientNetLiteEncoder, Field(discriminator="kind")]


class LinearConnector(Value):
    """One linear map per patch (LLaVA, 2304.08485)."""

    kind: Literal["linear"] = "linear"

    def shrink(self, rows: int, cols: int) -> tuple[int, int]:
        """Patch grid -> token grid."""
        return rows, cols


class MlpConnector(Value):
    """`depth` linear maps with GELU between them (LLaVA-1.5, 2310.03744: depth 2)."""

    kind: Literal["mlp"] = "mlp"
    depth: int = Field(2, ge=1, le=8)

    def shrink(self, rows: int, cols: int) -> tuple[int, int]:
        """Patch grid -> token grid."""
        return rows, cols


class AveragePoolConnector(Value):
    """Adaptive average pooling to `side` x `side` tokens, then an MLP (the compressing baseline of 2410.06765)."""

    kind: Literal["average_pool"] = "average_pool"
    side: int = Field(ge=1, le=64)
    depth: int = Field(2, ge=1, le=8)

    def shrink(self, rows: int, cols: int) -> tuple[int, int]:
        """Patch grid -> token grid."""
        if self.side > min(rows, cols):
            raise ValueError(
                f"average_pool to {self.side}x{self.side} tokens from a {rows}x{cols} grid would enlarge it"
            )
        return self.side, self.side


Connector = Annotated[LinearConnector | MlpConnector | AveragePoolConnector, Field(discriminator="kind")]


class LanguageModel(Pretrained):
    """A stock transformers causal language model; `tokenizer` is a directory, by default the model's own."""

    tokenizer: ExistingFolder | None = None

    @model_validator(mode="after")
    def _has_tokenizer(self) -> LanguageModel:
        if self.path is None and self.tokenizer is None:
            raise ValueError("a language model from 'config' needs 'tokenizer' (a directory with tokenizer.json)")
        return self

    @property
    def tokenizer_path(self) -> Path:
        """Where the tokenizer's files are."""
        path = self.tokenizer or self.path
        assert path is not None  # guaranteed by _has_tokenizer
        return path


PartName = Literal["vision", "connector", "language"]
"""The parts that a stage can train."""


class Lora(Value):
    """Low-rank adapters (arXiv 2106.09685) on every linear layer of a part."""

    rank: int = Field(16, ge=1, le=1024)
    alpha: float = Field(32.0, gt=0)


class ModelConfig(Value):
    """Encoder + connector + language model, and how pictures and text are put to them.

    It is saved with the weights: training, evaluation and chat prepare their inputs from this one value.
    """

    encoder: Encoder
    connector: Connector
    language: LanguageModel
    resolution: Resolution = Square(size=336)
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

    def check(self) -> None:
        """Refuse combinations that cannot work, with the reason.

        Raises:
            ModelError: the language model is of an unsupported kind, or the resolution does not fit the encoder.
        """
        model_type = self.language.facts.get("model_type")
        if model_type not in LANGUAGE_MODELS:
            raise ModelError(
                f"language model of model_type {model_type!r}; the decoder loop supports {', '.join(LANGUAGE_MODELS)}"
            )
        rope = self.language.facts.get("rope_parameters") or self.language.facts.get("rope_scaling") or {}
        rope_type = rope.get("rope_type", rope.get("type", "default"))
        if rope_type not in ROPE_TYPES:
            raise ModelError(
                f"language model with rope type {rope_type!r}, whose frequencies depend on the whole pack; "
                f"supported: {', '.join(ROPE_TYPES)}"
            )
        trained_for = self.encoder.image_size
        if trained_for is not None and trained_for != self.resolution.size:
            raise ModelError(
                f"resolution size {self.resolution.size} but the {self.encoder.kind} encoder has position embeddings "
                f"for {trained_for}; set resolution.size to {trained_for}"
            )
        self.layout(self.resolution.size, self.resolution.size, "single")

    def layout(self, height: int, width: int, role: PictureRole) -> Layout:
        """Geometry of one picture under this model.

        Raises:
            ModelError: resolution, encoder and connector do not fit together.
        """
        try:
            return self.resolution.plan(
                height, width, role, patch=self.encoder.patch_size, shrink=self.connector.shrink
            )
        except ValueError as error:
            raise ModelError(str(error)) from None
