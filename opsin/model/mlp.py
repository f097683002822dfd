"""Stacks of linear maps that several modules are made of."""

from __future__ import annotations

from torch import nn


def mlp(width: int, out: int, depth: int, activation: type[nn.Module] = nn.GELU) -> nn.Sequential:
    """`depth` linear maps with `activation` (exact GELU) between them; the first goes from `width` to `out`."""
    layers: list[nn.Module] = [nn.Linear(width, out)]
    for _ in range(depth - 1):
        layers += [activation(), nn.Linear(out, out)]
    return nn.Sequential(*layers)


def feed_forward(width: int, factor: int) -> nn.Sequential:
    """Flamingo's feed-forward layer (2204.14198): layer norm, then two linear maps without biases."""
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, factor * width, bias=False),
        nn.GELU(),
        nn.Linear(factor * width, width, bias=False),
    )
