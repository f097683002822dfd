"""Golden values, and the rules by which their inputs and weights were made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FOLDER = Path(__file__).parents[1] / "golden"


def golden(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def sine(*shape: int, phase: float = 0.0) -> Tensor:
    """sin(0.11 i + phase) over the flat index i."""
    count = torch.Size(shape).numel()
    return torch.sin(0.11 * torch.arange(count, dtype=torch.float64) + phase).float().view(shape)


def filled(shapes: dict[str, Sequence[int]]) -> dict[str, Tensor]:
    """Weights: key number k in sorted order has 0.05 sin(0.37 i + k), plus 1 where it is a 1-d `.weight`."""
    weights: dict[str, Tensor] = {}
    for k, name in enumerate(sorted(shapes)):
        shape = tuple(shapes[name])
        index = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
        values = (0.05 * torch.sin(0.37 * index + k)).float().view(shape)
        weights[name] = values + 1 if len(shape) == 1 and name.endswith(".weight") else values
    return weights
