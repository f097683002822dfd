"""Adapters of a checkpoint in peft's own format, beside the model: `adapters/language/` and its like.

Names are those of the Hugging Face model that the part holds, so `PeftModel.from_pretrained(language_model, folder)`
puts them on the language model that the run began with.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from torch.distributed.tensor import DTensor

from opsin.checkpoint.shards import write_tensors
from opsin.core.files import write_json
from opsin.model.config import Lora, ModuleName
from opsin.model.lora import MARK
from opsin.model.vlm import Vlm

FOLDER = "adapters"
WRAPPERS = ("lm.", "tower.", "vit.", "network.", "connector.")
"""What stands between a part of opsin's and the model of others in it."""


def adapter_tensors(model: Vlm, lora: Mapping[ModuleName, Lora]) -> dict[ModuleName, dict[str, Tensor]]:
    """Copies of the adapters' weights, whole, by part and by peft's names. All ranks must call it together."""
    found: dict[ModuleName, dict[str, Tensor]] = {}
    for part in lora:
        own: dict[str, Tensor] = {}
        for name, tensor in model.part(part).state_dict().items():
            if MARK in name:
                whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
                own[f"base_model.model.{_unwrapped(name.replace('.default', ''))}"] = whole.detach().to(
                    "cpu", copy=True
                )
        found[part] = own
    return found


def write_adapters(
    folder: Path, tensors: Mapping[ModuleName, Mapping[str, Tensor]], lora: Mapping[ModuleName, Lora]
) -> None:
    """Write `adapters/PART/adapter_config.json` and `adapter_model.safetensors` for every part that carries some."""
    for part, own in tensors.items():
        place = folder / FOLDER / part
        place.mkdir(parents=True)
        value = lora[part]
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM" if part == "language" else None,
            "r": value.rank,
            "lora_alpha": value.alpha,
            "lora_dropout": value.dropout,
            "target_modules": [_unwrapped(name) for name in value.targets or []],
            "bias": "none",
            "inference_mode": True,
        }
        write_json(place / "adapter_config.json", config)
        write_tensors(place / "adapter_model.safetensors", own)


def _unwrapped(name: str) -> str:
    """A name below a part -> the name in the model that the part holds."""
    for wrapper in WRAPPERS:
        if name.startswith(wrapper):
            return name.removeprefix(wrapper)
    return name
