"""Attention over packed documents and over a key-value cache, for stock transformers layers.

The layers call one registered function, `ATTENTION`, which hands queries, keys and values to the `Attend` value of the
current pass. Documents never see each other because each is its own row of a causal SDPA call: rows are padded on the
right inside a group of similar lengths, where causality alone keeps the padding out of every real position. A CUDA
device that computes in 16 bits needs no rows: see `varlen`.
`dense_attention` is the slow twin that the tests hold it against.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (the field's usual name)
from transformers.modeling_utils import AttentionInterface

from opsin.model.varlen import Varlen

ATTENTION = "opsin"
"""Name under which the attention function is registered with transformers."""

MOST_SCORES = 512 * 512
"""Scores of one head up to which attention in bfloat16 on a CPU is done as two matrix products."""

GROUP_SLACK = 1.25
"""Documents share a padded SDPA call while the longest is at most this much longer than the shortest."""


class Attend(Protocol):
    """Turns one layer's queries, keys and values, each (batch, heads, tokens, head width), into the attended values."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
        """Same shape as `q`; `window` is the sliding window of the layer, or None."""
        ...


def _attention_function(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    scaling: float,
    *,
    attend: Attend,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The signature that transformers' attention interface prescribes; returns (batch, tokens, heads, head width)."""
    del attention_mask  # opsin never builds one
    # Under autocast the rotary embedding can leave queries and keys in float32 beside values in bfloat16.
    query, key = query.to(value.dtype), key.to(value.dtype)
    out = _attended(attend, module, query, key, value, scaling, sliding_window)
    return out.transpose(1, 2), None


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _attended(attend: Attend, module: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
    """Outside of what is compiled, or a layer would be compiled for every plan of a pack, and for every layer again."""
    return attend(module.layer_idx, q, k, v, scale, window)


AttentionInterface.register(ATTENTION, _attention_function)


def sdpa(q: Tensor, k: Tensor, v: Tensor, *, scale: float, mask: Tensor | None, causal: bool) -> Tensor:
    """Scaled dot-product attention with grouped key-value heads; all (batch, heads, tokens, head width).

    `mask` is true where a query sees a key, and broadcasts to (batch, 1, queries, keys).
    """
    dtype = q.dtype
    if q.device.type != "cpu" or dtype != torch.bfloat16:
        return _fused(q, k, v, scale, mask, causal=causal)
    if q.shape[2] * k.shape[2] <= MOST_SCORES:
        return _two_products(q, k, v, scale, _window_mask(q.shape[2], q.shape[2], q.device) if causal else mask)
    with torch.autocast("cpu", enabled=False):  # which would turn the float32 back
        return _fused(q.float(), k.float(), v.float(), scale, mask, causal=causal).to(dtype)


def _fused(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None, *, causal: bool) -> Tensor:
    repeats = q.shape[1] // k.shape[1]
    if repeats > 1:
        k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale)


def _two_products(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """Attention as two matrix products, about 3x the fused CPU kernel's speed in bfloat16 (docs/performance.md).

    The query heads of one key-value head are stacked into one tall matrix, so keys and values are not repeated.
    """
    rows, heads, tokens, width = q.shape
    groups = k.shape[1]
    stacked = q.reshape(rows * groups, -1, width)
    keys, values = k.flatten(0, 1), v.flatten(0, 1)
    if mask is None:
        scores = torch.bmm(stacked, keys.transpose(1, 2)) * scale
    else:
        bias = torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(~mask, float("-inf"))
        bias = bias[:, 0].repeat(1, heads // groups, 1)
        if len(bias) > 1:  # one mask for each row; a single one is broadcast without being copied
            bias = bias.repeat_interleave(groups, dim=0)
        scores = torch.baddbmm(bias, stacked, keys.transpose(1, 2), alpha=scale)
    return torch.bmm(scores.softmax(dim=-1), values).view(rows, heads, tokens, width)


@dataclass(frozen=True)
class Group:
    """Documents of similar length: `index` (rows, longest) into the packed tokens, padded with the row's last token."""

    index: Tensor


@dataclass(frozen=True)
class PackedAttention:
    """Causal attention inside each document of one flat pack (batch axis 1).

    `inverse_T` finds each packed token in the concatenated, flattened groups; `varlen` needs no groups, where there is
    such a kernel.
    """

    groups: tuple[Group, ...]
    inverse_T: Tensor
    longest: int
    varlen: Varlen | None = None

    @staticmethod
    def plan(lengths: Sequence[int], device: torch.device) -> PackedAttention:
        """Group the documents once per batch; every layer reads the same plan."""
        starts = [0]
        for length in lengths:
            starts.append(starts[-1] + length)
        order = sorted(range(len(lengths)), key=lambda i: lengths[i])
        groups, inverse, offset = [], torch.empty(starts[-1], dtype=torch.long), 0
        for members in similar_lengths(order, lengths):
            longest = lengths[members[-1]]
            steps = torch.arange(longest)
            rows = torch.stack([starts[i] + steps.clamp(max=lengths[i] - 1) for i in members])
            for row, i in enumerate(members):
                inverse[starts[i] : starts[i + 1]] = offset + row * longest + torch.arange(lengths[i])
            offset += rows.numel()
            groups.append(Group(rows.to(device)))
        longest = max(lengths, default=0)
        return PackedAttention(tuple(groups), inverse.to(device), longest, Varlen.plan(lengths, device))

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
        """Attend; q (1, H, T, head width)."""
        del layer
        if self.varlen is not None and self.varlen.takes(q):
            out_THd = self.varlen(*(x[0].transpose(0, 1) for x in (q, k, v)), scale=scale, causal=True, window=window)
            return out_THd.transpose(0, 1)[None]
        attended = []
        for group in self.groups:
            one, two, three = (_rows(x, group.index) for x in (q, k, v))
            longest = group.index.shape[1]
            mask = _window_mask(longest, window, q.device) if window is not None and longest > window else None
            out = sdpa(one, two, three, scale=scale, mask=mask, causal=mask is None)
            attended.append(out.transpose(1, 2).flatten(0, 1).flatten(1))
        flat = attended[0] if len(attended) == 1 else torch.cat(attended)
        out_THd = flat.index_select(0, self.inverse_T).view(-1, q.shape[1], q.shape[3])
        return out_THd.transpose(0, 1)[None]


def _rows(packed: Tensor, index: Tensor) -> Tensor:
    """(1, heads, T, width) -> (rows, heads, longest, width). Whole token rows are gathered, each one copy."""
    flat = packed[0].transpose(0, 1).flatten(1).index_select(0, index.flatten())
    return flat.view(*index.shape, packed.shape[1], packed.shape[3]).transpose(1, 2)


def similar_lengths(order: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """Split indices, sorted by length, where a document is more than `GROUP_SLACK` longer than its group's shortest."""
    groups: list[list[int]] = []
    for i in order:
        if groups and lengths[i] <= GROUP_SLACK * lengths[groups[-1][0]] + 1:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _window_mask(length: int, window: int, device: torch.device) -> Tensor:
    """(1, 1, length, length) true where the query (row) sees the key: itself and the `window - 1` tokens before it."""
    steps = torch.arange(length, device=device)
    distance = steps[:, None] - steps[None, :]
    return ((distance >= 0) & (distance < window))[None, None]


def dense_attention(lengths: Sequence[int]) -> Attend:
    """The slow twin of `PackedAttention`: one T x T mask, true inside a document's causal triangle."""
    document_T = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
        del layer
        total = len(document_T)
        mask = _window_mask(total, window or total, q.device) & (document_T[:, None] == document_T[None, :])
        return sdpa(q, k, v, scale=scale, mask=mask, causal=False)

    return attend


class KeyValueCache:
    """Preallocated keys and values of `rows` sequences; `lengths_B` counts what each row holds.

    One forward pass writes at the rows' ends; `advance` then commits what was written.
    """

    def __init__(self, rows: int, capacity: int, device: torch.device) -> None:
        self.capacity = capacity
        self.lengths_B = torch.zeros(rows, dtype=torch.long, device=device)
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}

    def layer(self, layer: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, (rows, heads, capacity, head width), made at its first use in `like`'s dtype."""
        if layer not in self._keys:
            shape = (len(self.lengths_B), like.shape[1], self.capacity, like.shape[3])
            self._keys[layer], self._values[layer] = like.new_zeros(shape), like.new_zeros(shape)
        return self._keys[layer], self._values[layer]

    def advance(self, tokens: int | Tensor) -> None:
        """Commit `tokens` new positions (one number, or one per row)."""
        self.lengths_B = self.lengths_B + tokens

    def keep(self, rows_B: Tensor) -> None:
        """Drop all but the named rows."""
        self.lengths_B = self.lengths_B[rows_B]
        for layer in self._keys:
            self._keys[layer], self._values[layer] = self._keys[layer][rows_B], self._values[layer][rows_B]

    def repeated(self, row: int, times: int) -> KeyValueCache:
        """A new cache of `times` copies of one row."""
        copy = KeyValueCache(times, self.capacity, self.lengths_B.device)
        copy.lengths_B = self.lengths_B[row].repeat(times)
        for layer in self._keys:
            copy._keys[layer] = self._keys[layer][row].repeat(times, 1, 1, 1)
            copy._values[layer] = self._values[layer][row].repeat(times, 1, 1, 1)
        return copy


@dataclass(frozen=True)
class PrefillAttention:
    """Packed attention over prompts that also files each token's keys and values in its row and slot of the cache."""

    packed: PackedAttention
    cache: KeyValueCache
    rows_T: Tensor
    slots_T: Tensor

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
        """Attend and file; q (1, H, T, head width)."""
        keys, values = self.cache.layer(layer, k)
        keys[self.rows_T, :, self.slots_T] = k[0].transpose(0, 1)
        values[self.rows_T, :, self.slots_T] = v[0].transpose(0, 1)
        return self.packed(layer, q, k, v, scale, window)


@dataclass(frozen=True)
class CachedAttention:
    """New tokens of every row (B, H, new, head width) attend to their row's cache and, causally, to each other."""

    cache: KeyValueCache

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
        """Attend; writes the new keys and values behind each row's end."""
        keys, values = self.cache.layer(layer, k)
        new = q.shape[2]
        positions_BS = self.cache.lengths_B[:, None] + torch.arange(new, device=q.device)
        rows = torch.arange(q.shape[0], device=q.device)[:, None]
        keys[rows, :, positions_BS] = k.transpose(1, 2)
        values[rows, :, positions_BS] = v.transpose(1, 2)
        longest = int(positions_BS.max()) + 1
        distance = positions_BS[:, :, None] - torch.arange(longest, device=q.device)
        seen = (distance >= 0) & (distance < (window or longest))
        return sdpa(q, keys[:, :, :longest], values[:, :, :longest], scale=scale, mask=seen[:, None], causal=False)
