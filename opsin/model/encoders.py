"""Vision encoders: uint8 pixels in, patch features out. Normalisation happens here, on the model's device.

Every encoder maps (pixels_X, layouts) to features (P, C): all maps of all media, each in raster order.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers.utils import logging

from opsin.core.errors import ModelError
from opsin.core.types import Layout
from opsin.model.efficientnet_lite import EfficientNetLite, EfficientNetLiteConfig
from opsin.model.encoder_values import (
    ClipEncoder,
    Dinov2Encoder,
    EfficientNetLiteEncoder,
    Encoder,
    NativeVitEncoder,
    SiglipEncoder,
    TowerEncoder,
)
from opsin.model.fitting import misfits, refuse
from opsin.model.native_vit import NativeEncoder
from opsin.model.pixels import Normalise, encode_by_canvas
from opsin.model.pretrained import refuse_unknown_keys
from opsin.model.recompute import Recompute, recomputed

TOWER_MODEL_TYPES = {"clip": "clip_vision_model", "siglip": "siglip_vision_model", "dinov2": "dinov2"}
PREFIX_TOKENS = {"clip": 1, "siglip": 0, "dinov2": 1}
"""Tokens before the patches (the class token), which are dropped."""


class TransformerEncoder(nn.Module):
    """A CLIP, SigLIP or DINOv2 tower from transformers; keeps the patch tokens of one hidden layer, or of several.

    The loop over its layers is opsin's own: it stops behind the last selected layer, and holds no other's output.
    """

    def __init__(self, tower: Any, encoder: ClipEncoder | SiglipEncoder | Dinov2Encoder) -> None:
        super().__init__()
        self.tower = tower
        self.normalise = Normalise(encoder.mean, encoder.std)
        self.width = encoder.width
        self.recompute: Recompute = "none"
        self._kind = encoder.kind
        selected = (encoder.select_layer,) if isinstance(encoder.select_layer, int) else encoder.select_layer
        # As in transformers' `hidden_states`: 0 is before the first layer, -1 behind the last.
        depths = len(self._layers) + 1
        if not all(-depths <= layer < depths for layer in selected):
            raise ModelError(f"encoder.select_layer {selected}: the tower has {depths - 1} layers")
        self._depths = [layer % depths for layer in selected]
        self._side = encoder.sizes
        # DINOv2 resizes its position embeddings of its own accord.
        self._options = {} if encoder.kind == "dinov2" else {"interpolate_pos_encoding": encoder.interpolate_positions}

    @property
    def _layers(self) -> Any:
        return self.tower.encoder.layer if self._kind == "dinov2" else self.tower.encoder.layers

    def forward(self, pixels_X: Tensor, layouts: Sequence[Layout]) -> Tensor:
        """uint8 pixels of the layouts' media -> features (P, C).

        Raises:
            ModelError: a canvas of a size that the tower has no position embeddings for.
        """
        return encode_by_canvas(pixels_X, layouts, self._encode)

    def _encode(self, frames: Tensor) -> Tensor:
        height, width = frames.shape[-2:]
        if self._side is not None and (height, width) != (self._side, self._side):
            raise ModelError(
                f"a canvas of {height}x{width} pixels (HxW), but the {self._kind} encoder has position embeddings for "
                f"{self._side}x{self._side} only; set encoder.interpolate_positions: true"
            )
        dtype = next(self.tower.parameters()).dtype
        hidden = self.tower.embeddings(self.normalise(frames).to(dtype), **self._options)
        if self._kind == "clip":
            hidden = self.tower.pre_layrnorm(hidden)
        kept = {}
        for depth in range(max(self._depths) + 1):
            if depth:
                hidden = recomputed(self.recompute, self._layers[depth - 1], hidden, None)
            if depth in self._depths:
                is_normed = self._kind == "dinov2" and depth == len(self._layers)
                kept[depth] = (self.tower.layernorm(hidden) if is_normed else hidden)[:, PREFIX_TOKENS[self._kind] :]
        features = [kept[depth] for depth in self._depths]
        return features[0] if len(features) == 1 else torch.cat(features, dim=-1)


class ConvEncoder(nn.Module):
    """EfficientNet-Lite: the last feature map, row by row."""

    def __init__(self, network: EfficientNetLite, encoder: EfficientNetLiteEncoder) -> None:
        super().__init__()
        self.network = network
        self.normalise = Normalise(encoder.mean, encoder.std)
        self.width = network.width
        self.recompute: Recompute = "none"  # has no layers alike; small enough to keep what it makes

    def forward(self, pixels_X: Tensor, layouts: Sequence[Layout]) -> Tensor:
        """uint8 pixels of the layouts' media -> features (P, C)."""
        return encode_by_canvas(pixels_X, layouts, self._encode)

    def _encode(self, frames: Tensor) -> Tensor:
        dtype = next(self.network.parameters()).dtype
        features: Tensor = self.network(self.normalise(frames).to(dtype))
        return features.flatten(2).transpose(1, 2)


def load_encoder(encoder: Encoder, *, weights: bool = True) -> TransformerEncoder | ConvEncoder | NativeEncoder:
    """Build an encoder: weights from `encoder.path`, or random ones. `weights=False` builds the architecture only.

    Raises:
        ModelError: weights that are missing or do not match the architecture (all named).
    """
    if isinstance(encoder, EfficientNetLiteEncoder):
        network = EfficientNetLite(EfficientNetLiteConfig(**encoder.facts))
        if encoder.path is not None and weights:
            load_exactly(network, encoder.path / "model.safetensors")
        return ConvEncoder(network, encoder)
    if isinstance(encoder, NativeVitEncoder):
        native = NativeEncoder(encoder)
        if encoder.path is not None and weights:
            fill_exactly(native.vit, read_native_weights(encoder.path), str(encoder.path))
        return native
    return TransformerEncoder(_load_tower(encoder, weights=weights), encoder)


def read_native_weights(folder: Path) -> dict[str, Tensor]:
    """The vision transformer's tensors of a Qwen2-VL directory (hub or newer names), without its merger.

    Raises:
        ModelError: a file is damaged, or there are no such tensors.
    """
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (the file is not a dict)
                    own = name.removeprefix("model.").removeprefix("visual.")
                    if own != name and own.startswith(("patch_embed.", "blocks.")):
                        tensor = file.get_tensor(name)
                        if own == "patch_embed.proj.weight":  # a convolution whose stride is its kernel
                            own, tensor = "patch_embed.weight", tensor.flatten(1)
                        found[own] = tensor
        except (SafetensorError, OSError):
            raise ModelError(f"{path}: damaged or not a safetensors file") from None
    if not found:
        raise ModelError(f"{folder}: no safetensors file there has 'visual.*' weights; expected a Qwen2-VL directory")
    return found


def _load_tower(encoder: TowerEncoder, *, weights: bool) -> nn.Module:
    facts = {key: value for key, value in encoder.facts.items() if key not in {"model_type", "architectures"}}
    dtype = facts.pop("dtype", facts.pop("torch_dtype", None))
    if encoder.path is None and weights:
        refuse_unknown_keys("encoder", facts, AutoConfig.for_model(TOWER_MODEL_TYPES[encoder.family]).to_dict())
    config = AutoConfig.for_model(TOWER_MODEL_TYPES[encoder.family], **facts)
    if encoder.path is None or not weights:
        tower: nn.Module = AutoModel.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
        return tower
    logging.disable_progress_bar()  # opsin shows its own
    tower, report = AutoModel.from_pretrained(
        encoder.path,
        config=config,
        dtype=getattr(torch, dtype) if dtype else torch.float32,
        attn_implementation="sdpa",
        local_files_only=True,
        use_safetensors=True,
        output_loading_info=True,
    )
    # A full CLIP or SigLIP directory also holds the text half, which is not wanted here: unexpected keys are fine.
    wrong = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if wrong:
        raise ModelError(f"{encoder.path}: weights missing or of the wrong shape: {', '.join(wrong)}")
    return tower


def load_exactly(module: nn.Module, path: Path) -> None:
    """Fill a module from a safetensors file whose names and shapes must match exactly.

    Raises:
        ModelError: the file is missing or damaged, or a name or shape differs (all named).
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such weights file")
    try:
        state = load_file(path)
    except (SafetensorError, json.JSONDecodeError, OSError):
        raise ModelError(f"{path}: damaged or not a safetensors file") from None
    fill_exactly(module, state, str(path))


def fill_exactly(module: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Copy tensors into a module; every name and shape must match.

    Raises:
        ModelError: listing every missing, unexpected and mis-shaped tensor.
    """
    own = {name: tensor.shape for name, tensor in module.state_dict().items()}
    refuse(source, misfits(own, {name: tensor.shape for name, tensor in state.items()}))
    module.load_state_dict(state)
