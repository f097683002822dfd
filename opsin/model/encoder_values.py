"""Vision encoders as values. `Encoder` at the foot is the only list of encoders in the project."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from opsin.core.errors import ModelError
from opsin.model.pretrained import Pretrained, read_hf_config
from opsin.vision.resolution import Colour

CLIP_MEAN: Colour = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Colour = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN: Colour = (0.485, 0.456, 0.406)
IMAGENET_STD: Colour = (0.229, 0.224, 0.225)
HALF: Colour = (0.5, 0.5, 0.5)


WHOLE_MODELS = ("llava", "llava_next", "llava_onevision", "qwen2_vl")


class TowerEncoder(Pretrained):
    """Common to the transformers vision towers. `defaults` are what their published config.json files leave out."""

    family: ClassVar[str]
    defaults: ClassVar[dict[str, int]]
    temporal: ClassVar[int] = 1
    select_layer: int | tuple[int, ...]
    interpolate_positions: bool = Field(
        default=False,
        description="resize position embeddings to a picture's grid; without it only `image_size` squares are taken",
    )

    def _read(self, path: Path) -> dict[str, Any]:
        config = read_hf_config(path)
        if "text_config" in config and config.get("model_type") in WHOLE_MODELS:
            raise ModelError(f"{path}: a whole {config['model_type']} model; to train on it, give it as 'start_from'")
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
    def depth(self) -> int:
        """Transformer blocks."""
        return self._number("num_hidden_layers")

    @property
    def sizes(self) -> int | None:
        """Side of the only canvas that is taken, or None when any multiple of the patch will do."""
        return None if self.interpolate_positions else self.image_size

    @property
    def width(self) -> int:
        """C: features of several selected layers stand side by side."""
        layers = 1 if isinstance(self.select_layer, int) else len(self.select_layer)
        return layers * self._number("hidden_size")


class ClipEncoder(TowerEncoder):
    """CLIP ViT; `select_layer` -2 and no class token is LLaVA's choice (2304.08485, section 4.1)."""

    family: ClassVar[str] = "clip"
    defaults: ClassVar[dict[str, int]] = {
        "hidden_size": 768,
        "image_size": 224,
        "patch_size": 32,
        "num_hidden_layers": 12,
    }
    kind: Literal["clip"]
    select_layer: int | tuple[int, ...] = -2
    mean: Colour = CLIP_MEAN
    std: Colour = CLIP_STD


class SiglipEncoder(TowerEncoder):
    """SigLIP ViT; the last hidden state before the final layer norm.

    LLaVA-OneVision takes the layer before: `select_layer: -2` of the full tower (its own copies lack the last layer).
    """

    family: ClassVar[str] = "siglip"
    defaults: ClassVar[dict[str, int]] = {
        "hidden_size": 768,
        "image_size": 224,
        "patch_size": 16,
        "num_hidden_layers": 12,
    }
    kind: Literal["siglip"]
    select_layer: int | tuple[int, ...] = -1
    mean: Colour = HALF
    std: Colour = HALF


class Dinov2Encoder(TowerEncoder):
    """DINOv2 ViT; the final layer norm is applied when the last layer is selected."""

    family: ClassVar[str] = "dinov2"
    defaults: ClassVar[dict[str, int]] = {
        "hidden_size": 768,
        "image_size": 224,
        "patch_size": 14,
        "num_hidden_layers": 12,
    }
    kind: Literal["dinov2"]
    select_layer: int | tuple[int, ...] = -1
    mean: Colour = IMAGENET_MEAN
    std: Colour = IMAGENET_STD


class EfficientNetLiteEncoder(Pretrained):
    """Convolutional encoder of the quick start: the last feature map, one token per 32 x 32 pixels."""

    temporal: ClassVar[int] = 1
    sizes: ClassVar[None] = None
    depth: ClassVar[None] = None
    patch_size: ClassVar[int] = 32
    kind: Literal["efficientnet_lite"]
    mean: Colour = IMAGENET_MEAN
    std: Colour = IMAGENET_STD


NATIVE_KEYS = ("depth", "embed_dim", "num_heads", "mlp_ratio", "in_channels", "patch_size", "temporal_patch_size")
NATIVE_DEFAULTS: dict[str, int | float] = {
    "depth": 32,
    "embed_dim": 1280,
    "num_heads": 16,
    "mlp_ratio": 4,
    "in_channels": 3,
    "patch_size": 14,
    "temporal_patch_size": 2,
}


class NativeVitEncoder(Pretrained):
    """Qwen2-VL's vision transformer (2409.12191): 2D-RoPE instead of position embeddings, pictures of any size.

    `path` is a Qwen2-VL directory, whose `visual.*` weights are taken.
    """

    sizes: ClassVar[None] = None
    kind: Literal["native_vit"]
    mean: Colour = CLIP_MEAN
    std: Colour = CLIP_STD

    @model_validator(mode="after")
    def _known_and_divisible(self) -> NativeVitEncoder:
        if self.config is None:
            return self
        if unknown := sorted(set(self.config) - set(NATIVE_KEYS)):
            raise ValueError(f"config has unknown keys {', '.join(unknown)}; known: {', '.join(NATIVE_KEYS)}")
        try:
            width, heads, channels = self.width, self.heads, self._number("in_channels")
        except ModelError as error:
            raise ValueError(str(error)) from None
        if width % heads or (width // heads) % 4:
            raise ValueError(
                f"config.embed_dim {width} in {heads} heads: each head needs a width that is a multiple of 4, since "
                "pairs of channels are turned by rows and by columns"
            )
        if channels != 3:
            raise ValueError(f"config.in_channels {channels}: pictures have 3 colours")
        return self

    def _read(self, path: Path) -> dict[str, Any]:
        config = read_hf_config(path).get("vision_config")
        if not isinstance(config, dict):
            raise ModelError(f"{path}: its config.json has no vision_config; expected a Qwen2-VL directory")
        if "in_chans" in config:  # the hub's older spelling
            config = {"in_channels": config["in_chans"], **config}
        return {key: config.get(key, NATIVE_DEFAULTS[key]) for key in NATIVE_KEYS}

    def _number(self, key: str) -> int:
        value = self.facts.get(key, NATIVE_DEFAULTS[key])
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 1 or value != int(value):
            raise ModelError(f"encoder.config.{key} must be a positive integer, got {value!r}")
        return int(value)

    @property
    def patch_size(self) -> int:
        """Pixels per patch side."""
        return self._number("patch_size")

    @property
    def temporal(self) -> int:
        """Frames of a patch; a still picture is shown that many times."""
        return self._number("temporal_patch_size")

    @property
    def width(self) -> int:
        """C."""
        return self._number("embed_dim")

    @property
    def depth(self) -> int:
        """Transformer blocks."""
        return self._number("depth")

    @property
    def heads(self) -> int:
        """H."""
        return self._number("num_heads")

    @property
    def feed_forward(self) -> int:
        """Width of the feed-forward layers."""
        return self.width * self._number("mlp_ratio")


Encoder = Annotated[
    ClipEncoder | SiglipEncoder | Dinov2Encoder | EfficientNetLiteEncoder | NativeVitEncoder,
    Field(discriminator="kind"),
]
