"""Fill a model tensor by tensor: it is built without memory for its weights, and takes them as they are read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from opsin.core.errors import ModelError


class weightless(TorchFunctionMode):  # noqa: N801 (a context, like torch.no_grad)
    """Modules built inside have large parameters of shape and type only (on the meta device), which cost nothing.

    Modules make their matrices by `torch.empty`, to be initialised or loaded. Everything else is made as usual: buffers
    hold what the config alone decides (rotary frequencies, colours), and no file has them.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of a model's parameters and saved buffers by name, a tied weight once, under its first name."""
    tied = tied_names(model)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied}


def tied_names(model: nn.Module) -> dict[str, str]:
    """Second names of weights -> their first name; also where the weights have no memory yet."""
    first: dict[int, str] = {}
    tied = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if first.setdefault(id(parameter), name) != name:
            tied[name] = first[id(parameter)]
    return tied


def fill(model: nn.Module, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Give a weightless model its tensors, which keep their types; names and shapes have been checked before."""
    others: dict[str, list[str]] = {}
    for name, source in tied_names(model).items():
        others.setdefault(source, []).append(name)
    for name, tensor in tensors:
        parameter = nn.Parameter(tensor, requires_grad=False) if tensor.is_floating_point() else None
        for place in (name, *others.get(name, ())):
            _put(model, place, tensor, parameter)


def _put(model: nn.Module, name: str, tensor: Tensor, parameter: nn.Parameter | None) -> None:
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    table: dict[str, Any] = module._parameters if leaf in module._parameters else module._buffers
    if table is module._parameters and parameter is None:
        raise ModelError(f"{name} is stored as {str(tensor.dtype).removeprefix('torch.')}; weights are floating-point")
    table[leaf] = parameter if table is module._parameters else tensor


def check_filled(model: nn.Module) -> None:
    """Every tensor has memory: what this catches would be a mistake of opsin's own, not of a file."""
    empty = [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]
    if empty:
        raise AssertionError(f"tensors without memory after loading: {', '.join(empty)}")


def dtype_of(model: nn.Module) -> torch.dtype:
    """The type of most of a model's weights."""
    counts: dict[torch.dtype, int] = {}
    for parameter in model.parameters():
        counts[parameter.dtype] = counts.get(parameter.dtype, 0) + parameter.numel()
    return max(counts, key=lambda dtype: counts[dtype])
