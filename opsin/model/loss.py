"""Cross entropy at supervised positions only, in chunks, so that (S, V) logits never exist at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from opsin.core.types import IGNORE_INDEX

CHUNK_LOGITS = 1 << 25
"""Logits held at a time (128 MiB of float32): 4 to 16 chunks are nearly free, very small ones are slow."""


class ChunkedCrossEntropy(torch.autograd.Function):
    """Sum of cross entropies of hidden_SD @ weight_VD.T against targets_S; gradients are made in the forward pass.

    Making them at once means that a chunk's logits are computed once and dropped (no second pass in backward).
    """

    @staticmethod
    def forward(ctx: Any, hidden_SD: Tensor, weight_VD: Tensor, targets_S: Tensor, chunk: int) -> Tensor:
        """Returns the float32 sum."""
        weight = weight_VD.to(hidden_SD.dtype)
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden_SD) if wants_hidden else None
        grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if wants_weight else None
        total = torch.zeros((), dtype=torch.float32, device=hidden_SD.device)
        for start in range(0, len(targets_S), chunk):
            part = slice(start, start + chunk)
            hidden, targets = hidden_SD[part], targets_S[part]
            logits = (hidden @ weight.T).float()
            log_norm = torch.logsumexp(logits, dim=-1)
            total += (log_norm - logits.gather(1, targets[:, None])[:, 0]).sum()
            if grad_hidden is None and grad_weight is None:
                continue
            # d loss / d logits = softmax - onehot
            grad = logits.sub_(log_norm[:, None]).exp_()
            grad[torch.arange(len(targets), device=grad.device), targets] -= 1
            grad = grad.to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = grad @ weight
            if grad_weight is not None:
                grad_weight += grad.T @ hidden
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight_VD.dtype
        return total

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """Scale what the forward pass prepared."""
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            None if grad_hidden is None else (grad_hidden.float() * grad_total).to(grad_hidden.dtype),
            None if grad_weight is None else (grad_weight * grad_total).to(ctx.weight_dtype),
            None,
            None,
        )


def supervised_loss(hidden_TD: Tensor, weight_VD: Tensor, targets_T: Tensor) -> Tensor:
    """Sum of the cross entropies of all supervised positions; exactly zero, with zero gradients, if there is none."""
    rows_S = torch.nonzero(targets_T != IGNORE_INDEX)[:, 0]
    hidden_SD = hidden_TD.index_select(0, rows_S)
    if torch.is_autocast_enabled(hidden_TD.device.type):
        hidden_SD = hidden_SD.to(torch.get_autocast_dtype(hidden_TD.device.type))
    chunk = max(1, CHUNK_LOGITS // weight_VD.shape[0])
    loss: Tensor = ChunkedCrossEntropy.apply(hidden_SD, weight_VD, targets_T[rows_S], chunk)  # type: ignore[no-untyped-call]
    return loss
