"""Low-rank adapters through peft: put them into a part, find their weights, merge them away."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import nn

from opsin.core.errors import MissingExtraError, ModelError
from opsin.model.config import Lora

MARK = "lora_"
"""In the name of every adapter weight (peft's convention)."""


def require_peft() -> None:
    """Say so if adapters cannot be made.

    Raises:
        MissingExtraError: peft is not installed.
    """
    if find_spec("peft") is None:
        raise MissingExtraError("peft", "lora")


def linear_layers(part: nn.Module) -> list[str]:
    """Names below `part` of the layers that adapters can stand beside; the output layer is none of them."""
    return [
        name
        for name, module in part.named_modules()
        if isinstance(module, nn.Linear) and "lm_head" not in name and MARK not in name
    ]


def chosen(name: str, lora: Lora) -> bool:
    """The adapters' targets name this layer, wholly or by its last words."""
    return lora.targets is None or any(name == target or name.endswith(f".{target}") for target in lora.targets)


def add_lora(part: nn.Module, lora: Lora) -> None:
    """Put adapters (float32, B zero, so nothing changes yet) beside linear layers below `part`, in place.

    Raises:
        MissingExtraError: peft is not installed.
        ModelError: there is no linear layer that they want.
    """
    require_peft()
    from peft import LoraConfig, inject_adapter_in_model

    targets = [name for name in linear_layers(part) if chosen(name, lora)]
    if not targets:
        raise ModelError("lora: the part has no linear layers to put adapters on; train all its weights instead")
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets)
    inject_adapter_in_model(config, part)
    for name, parameter in part.named_parameters():
        if MARK in name:
            parameter.data = parameter.data.float()


def merge_lora(part: nn.Module) -> None:
    """Replace every adapted layer below `part` by one linear layer with the sum, computed in float32."""
    if find_spec("peft") is None:
        return
    from peft.tuners.lora import LoraLayer

    for name, module in list(part.named_modules()):
        if isinstance(module, LoraLayer):
            parent, _, child = name.rpartition(".")
            setattr(part.get_submodule(parent), child, _merged(module))
    if hasattr(part, "peft_config"):
        del part.peft_config  # or the next stage's adapters would be taken for a second set


@torch.no_grad()
def _merged(layer: nn.Module) -> nn.Linear:
    base: nn.Linear = layer.base_layer  # type: ignore[assignment]  # adapters sit on linear layers only
    delta = layer.get_delta_weight("default").float()  # type: ignore[operator]
    base.weight.copy_((base.weight.float() + delta).to(base.weight.dtype))
    return base
