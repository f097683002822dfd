"""Cross entropy at supervised positions only, in chunks, so that (S, V) logits never exist at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from opsin.core.types import IGNORE_INDEX

CHUNK_LOGITS = 1 << 25
"""Logits held at a time (128 MiB of float32): 4 to 16 chunks are nearly free, very small ones are slow."""


@dataclass(frozen=True)
class Terms:
    """What a position's loss is made of, besides the cross entropy.

    `z_loss` is the weight of log(Z) squared (PaLM, 2204.02311, section 5); `smoothing` the share of a target that all
    tokens of the vocabulary get alike (1512.00567, section 7).
    """

    z_loss: float = 0.0
    smoothing: float = 0.0


PLAIN = Terms()


class ChunkedCrossEntropy(torch.autograd.Function):
    """Losses_S of hidden_SD @ weight_VD.T against targets_S, and their sum, weighed by weights_S.

    Gradients of the sum are made in the forward pass: a chunk's logits are computed once and dropped.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_SD: Tensor, weight_VD: Tensor, targets_S: Tensor, weights_S: Tensor, terms: Terms, chunk: int
    ) -> tuple[Tensor, Tensor]:
        """Returns the float32 sum, and the losses of the positions, through which no gradient goes."""
        weight = weight_VD.to(hidden_SD.dtype)
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden_SD) if wants_hidden else None
        grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if wants_weight else None
        losses_S = torch.empty(len(targets_S), dtype=torch.float32, device=hidden_SD.device)
        for start in range(0, len(targets_S), chunk):
            part = slice(start, start + chunk)
            hidden = hidden_SD[part]
            logits = (hidden @ weight.T).float()
            log_norm = torch.logsumexp(logits, dim=-1)
            losses_S[part] = _losses(logits, log_norm, targets_S[part], terms)
            if grad_hidden is None and grad_weight is None:
                continue
            grad = _gradients(logits, log_norm, targets_S[part], terms).mul_(weights_S[part, None]).to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = grad @ weight
            if grad_weight is not None:
                grad_weight += grad.T @ hidden
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight_VD.dtype
        ctx.mark_non_differentiable(losses_S)
        return (losses_S * weights_S).sum(), losses_S

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, _grad_losses: Tensor) -> tuple[Tensor | None, ...]:
        """Scale what the forward pass prepared."""
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            None if grad_hidden is None else (grad_hidden.float() * grad_total).to(grad_hidden.dtype),
            None if grad_weight is None else (grad_weight * grad_total).to(ctx.weight_dtype),
            *(None,) * 4,
        )


def _losses(logits: Tensor, log_norm: Tensor, targets: Tensor, terms: Terms) -> Tensor:
    losses = log_norm - logits.gather(1, targets[:, None])[:, 0]
    if terms.smoothing:
        losses = torch.lerp(losses, log_norm - logits.mean(dim=-1), terms.smoothing)
    return losses + terms.z_loss * log_norm.square() if terms.z_loss else losses


def _gradients(logits: Tensor, log_norm: Tensor, targets: Tensor, terms: Terms) -> Tensor:
    """d loss / d logits = softmax - target, in the place of the logits."""
    grad = logits.sub_(log_norm[:, None]).exp_()
    if terms.z_loss:
        grad *= 1 + 2 * terms.z_loss * log_norm[:, None]
    if terms.smoothing:
        grad -= terms.smoothing / grad.shape[1]
    grad[torch.arange(len(targets), device=grad.device), targets] -= 1 - terms.smoothing
    return grad


def weighed_loss(
    hidden_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, weights_T: Tensor | None = None, terms: Terms = PLAIN
) -> tuple[Tensor, Tensor]:
    """The weighed sum of the losses of all supervised positions, and those losses (S), through which no gradient goes.

    The sum is exactly zero, with zero gradients, if nothing is supervised. `weights_T` are 1 by default.
    """
    rows_S = torch.nonzero(targets_T != IGNORE_INDEX)[:, 0]
    hidden_SD = hidden_TD.index_select(0, rows_S)
    if torch.is_autocast_enabled(hidden_TD.device.type):
        hidden_SD = hidden_SD.to(torch.get_autocast_dtype(hidden_TD.device.type))
    weights_S = torch.ones(len(rows_S), device=hidden_SD.device) if weights_T is None else weights_T[rows_S]
    chunk = max(1, CHUNK_LOGITS // weight_VD.shape[0])
    total, losses_S = ChunkedCrossEntropy.apply(hidden_SD, weight_VD, targets_T[rows_S], weights_S, terms, chunk)  # type: ignore[no-untyped-call]
    return total, losses_S


def supervised_loss(hidden_TD: Tensor, weight_VD: Tensor, targets_T: Tensor) -> Tensor:
    """The sum of the cross entropies of all supervised positions."""
    return weighed_loss(hidden_TD, weight_VD, targets_T)[0]
