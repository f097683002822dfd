"""Attention of packed short documents on a CPU: PyTorch's fused kernel against two matrix products.

    python -m bench.attention

Forward and backward, SmolLM2-135M's heads (9 queries, 3 keys and values, width 64); process CPU time, the variants in
turn, medians.
"""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor

from opsin.model.attention import _fused, _two_products

HEADS, GROUPS, WIDTH = 9, 3, 64
ROUNDS = 7


def cpu_ms(q: Tensor, k: Tensor, v: Tensor, kind: str) -> float:
    """Milliseconds of CPU time of one forward and backward pass."""
    tokens = q.shape[2]
    began = time.process_time()
    if kind == "two products":
        mask = torch.ones(tokens, tokens, dtype=torch.bool).tril()[None, None]
        out = _two_products(q, k, v, WIDTH**-0.5, mask)
    elif kind == "fused float32":
        out = _fused(q.float(), k.float(), v.float(), WIDTH**-0.5, None, causal=True).to(q.dtype)
    else:
        out = _fused(q, k, v, WIDTH**-0.5, None, causal=True)
    out.sum().backward()
    return (time.process_time() - began) * 1e3


def main() -> None:
    """Print one line for each shape."""
    kinds = ("fused bfloat16", "fused float32", "two products")
    print(f"{'documents':>10} {'tokens':>7}  " + "  ".join(f"{kind:>15}" for kind in kinds) + "   CPU ms")
    for documents, tokens in ((40, 50), (20, 100), (8, 250), (4, 500)):
        shapes = ((documents, n, tokens, WIDTH) for n in (HEADS, GROUPS, GROUPS))
        q, k, v = (torch.randn(shape, dtype=torch.bfloat16, requires_grad=True) for shape in shapes)
        times: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(ROUNDS + 1):  # the first round warms up
            for kind in kinds:
                times[kind].append(cpu_ms(q, k, v, kind))
        medians = [statistics.median(times[kind][1:]) for kind in kinds]
        print(f"{documents:>10} {tokens:>7}  " + "  ".join(f"{value:>15.1f}" for value in medians))


if __name__ == "__main__":
    main()
