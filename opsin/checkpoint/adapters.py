"""Adapters of a checkpoint in peft's own format, beside the model: `adapters/language/` and its like.

Names are those of the model of others that the part holds, so `PeftModel.from_pretrained(language_model, folder)` puts
them on the language model, and the tower, that the stage began with. The connection is opsin's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from opsin.checkpoint.hub_names import PATCHES, POOLING_HEAD, Family, to_module
from opsin.checkpoint.shards import write_tensors
from opsin.core.files import write_json
from opsin.model.config import Lora, ModuleName
from opsin.model.encoder_values import Encoder, NativeVitEncoder
from opsin.model.lora import MARK
from opsin.model.vlm import Vlm

FOLDER = "adapters"
WRAPPERS = ("lm.", "tower.", "vit.")
"""What stands between a part of opsin's and the model of others in it."""

PEFT = "base_model.model."
"""How peft's names of tensors begin."""


def adapter_tensors(model: Vlm, lora: Mapping[ModuleName, Lora]) -> dict[ModuleName, dict[str, Tensor]]:
    """Copies of the adapters' weights, whole, by part and by peft's names. All ranks must call it together."""
    return {
        part: {f"{PEFT}{_unwrapped(name)}": tensor for name, tensor in _weights(model.part(part)).items()}
        for part in lora
    }


def write_adapters(
    folder: Path, tensors: Mapping[ModuleName, Mapping[str, Tensor]], lora: Mapping[ModuleName, Lora]
) -> None:
    """Write `adapters/PART/adapter_config.json` and `adapter_model.safetensors` for every part that carries some."""
    for part, own in tensors.items():
        place = folder / FOLDER / part
        place.mkdir(parents=True)
        layers = dict.fromkeys(_layers(own), lora[part])
        _write(place, own, layers, "CAUSAL_LM" if part == "language" else None)


def write_hub_adapters(folder: Path, model: Vlm, lora: Mapping[ModuleName, Lora], family: Family) -> None:
    """Write all adapters of a model as one of peft's, by the names of a family's class in transformers 5."""
    tensors: dict[str, Tensor] = {}
    layers: dict[str, Lora] = {}
    for part, value in lora.items():
        prefix = next(name for name, module in model.named_children() if module is model.part(part))
        named = {f"{prefix}.{name}": tensor for name, tensor in _weights(model.part(part)).items()}
        own = {
            f"{PEFT}{to_module(name, family)}": _as_convolution(name, tensor, model.config.encoder)
            for name, tensor in named.items()
            if not name.startswith(POOLING_HEAD)
        }
        tensors |= own
        layers |= dict.fromkeys(_layers(own), value)
    _write(folder, tensors, layers, None)


def _write(folder: Path, tensors: Mapping[str, Tensor], layers: Mapping[str, Lora], task: str | None) -> None:
    """One adapter; the rank and alpha of its first layer are those that hold where a layer has no other."""
    usual = next(iter(layers.values()))
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": task,
        "r": usual.rank,
        "lora_alpha": usual.alpha,
        "lora_dropout": usual.dropout,
        "target_modules": list(layers),
        "rank_pattern": {layer: lora.rank for layer, lora in layers.items() if lora.rank != usual.rank},
        "alpha_pattern": {layer: lora.alpha for layer, lora in layers.items() if lora.alpha != usual.alpha},
        "bias": "none",
        "inference_mode": True,
    }
    write_json(folder / "adapter_config.json", config)
    write_tensors(folder / "adapter_model.safetensors", tensors)


def _weights(part: nn.Module) -> dict[str, Tensor]:
    """Copies of a part's adapters, without the name that peft gives a set of them in memory."""
    found = {}
    for name, tensor in part.state_dict().items():
        if MARK in name:
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            found[name.replace(".default", "")] = whole.detach().to("cpu", copy=True)
    return found


def _as_convolution(name: str, tensor: Tensor, encoder: Encoder) -> Tensor:
    """Adapters of the matrix that cuts patches, as those of the convolution that it is in transformers' Qwen2-VL."""
    if not (isinstance(encoder, NativeVitEncoder) and name.startswith(PATCHES.removesuffix("weight"))):
        return tensor
    rows, size = len(tensor), encoder.patch_size
    kernel = (3, encoder.temporal, size, size) if f"{MARK}A." in name else (tensor.shape[1], 1, 1, 1)
    return tensor.view(rows, *kernel)


def _layers(tensors: Mapping[str, Tensor]) -> list[str]:
    """The layers that peft's tensors stand beside, in their order."""
    return list(dict.fromkeys(name.removeprefix(PEFT).partition(f".{MARK}")[0] for name in tensors))


def _unwrapped(name: str) -> str:
    """A name below a part -> the name in the model that the part holds."""
    for wrapper in WRAPPERS:
        if name.startswith(wrapper):
            return name.removeprefix(wrapper)
    return name
