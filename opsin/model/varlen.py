"""Attention inside sequences that lie one after the other, by torch's flash attention kernel, where the device has it.

Nothing is padded, gathered or masked: the kernel is told where sequences end. Without it (CPU, float32, head widths
that it does not take) sequences of similar length share padded calls, see `attention` and `native_vit`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

WIDEST, WIDTH_STEP = 256, 8
"""Head widths of FlashAttention-2: multiples of 8 up to 256 (torch's `mha_varlen_fwd` refuses others)."""

DTYPES = (torch.bfloat16, torch.float16)


def has_kernel(device: torch.device) -> bool:
    """The kernel runs on this device: an NVIDIA one of the Ampere generation or later, and torch was built with it."""
    return (
        device.type == "cuda"
        and torch.version.hip is None
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


@dataclass(frozen=True)
class Varlen:
    """Sequences one after the other: the i-th begins at `bounds[i]` and ends before `bounds[i + 1]` (int32)."""

    bounds: Tensor
    longest: int

    @staticmethod
    def plan(lengths: Sequence[int], device: torch.device) -> Varlen | None:
        """Where the sequences of these lengths are; None if the device has no kernel."""
        if not has_kernel(device):
            return None
        bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
        return Varlen(bounds.to(device), max(lengths, default=0))

    @staticmethod
    def takes(q: Tensor) -> bool:
        """The kernel computes in this dtype, and with heads of this width."""
        return q.dtype in DTYPES and q.shape[-1] <= WIDEST and q.shape[-1] % WIDTH_STEP == 0

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float, causal: bool, window: int | None) -> Tensor:
        """Attend; q (T, H, head width), k and v with as many heads or a divisor of that; returns the shape of q.

        A causal query sees itself and what is before it, with a `window` itself and the `window - 1` tokens before it.
        """
        narrow = window is not None and window < self.longest
        # The kernel counts what is seen on the left besides the query itself; (-1, 0) is its name for plainly causal.
        seen = (window - 1 if window is not None and narrow else -1, 0 if causal else -1)
        out = varlen_attn(
            q,
            k,
            v,
            self.bounds,
            self.bounds,
            self.longest,
            self.longest,
            scale=scale,
            window_size=seen,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        assert isinstance(out, Tensor)  # with what else it can give, which is not asked for, it would be a pair
        return out
