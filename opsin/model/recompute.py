"""Activation checkpointing: what a layer makes on its way is made again in the backward pass, instead of being kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Recompute = Literal["none", "selective", "full"]
"""Keep everything; make all but matrix products and attention again; make all of it again."""

KEPT = frozenset(
    (
        "aten::mm",
        "aten::addmm",
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_scaled_dot_product_cudnn_attention",
        "torch_attn::_varlen_attn",
    )
)
"""Costly operations, whose outputs `selective` keeps; the rest is cheap to make again, and most of the memory.

Attention of short documents in bfloat16 on a CPU is not among them: its batched products are mostly scores.
"""


def _policy(_context: Any, operation: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation.name() in KEPT else CheckpointPolicy.PREFER_RECOMPUTE


def recomputed(mode: Recompute, layer: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """What `layer` gives, with as much of it made again in the backward pass as `mode` says."""
    if mode == "none" or not torch.is_grad_enabled():
        return layer(*args, **options)
    if mode == "full":
        return checkpoint(layer, *args, use_reentrant=False, **options)
    contexts = partial(create_selective_checkpoint_contexts, _policy)
    return checkpoint(layer, *args, use_reentrant=False, context_fn=contexts, **options)
