"""What the flash attention kernel of a GPU is asked, by a stand-in of the same signature that runs anywhere."""

from __future__ import annotations

import inspect
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (the field's usual name)
from torch.nn.attention.varlen import varlen_attn

from opsin.core.types import Grid
from opsin.model import varlen
from opsin.model.attention import PackedAttention, dense_attention
from opsin.model.native_vit import MapAttention
from opsin.model.varlen import Varlen

CPU = torch.device("cpu")


class StandIn:
    """Attends one sequence at a time, in float32, and refuses what the kernel refuses."""

    def __init__(self) -> None:
        self.windows: list[tuple[int, int]] = []

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor | None,
        max_q: int,
        max_k: int,
        *,
        scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
        enable_gqa: bool = False,
    ) -> Tensor:
        assert query.dtype == key.dtype == value.dtype
        assert query.dtype in (torch.bfloat16, torch.float16)
        assert query.shape[-1] % 8 == 0
        assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
        assert cu_seq_k is not None
        assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
        assert type(max_q) is type(max_k) is int
        assert enable_gqa or query.shape[1] == key.shape[1]
        bounds = cu_seq_q.tolist()
        assert bounds == cu_seq_k.tolist()
        assert (bounds[0], bounds[-1]) == (0, len(query))
        lengths = [end - start for start, end in pairwise(bounds)]
        assert max_q == max_k == max(lengths)
        self.windows.append(window_size)
        parts = zip(*(x.float().split(lengths) for x in (query, key, value)), strict=True)
        return torch.cat([self._one(*part, scale, window_size) for part in parts]).to(query.dtype)

    @staticmethod
    def _one(q: Tensor, k: Tensor, v: Tensor, scale: float | None, window: tuple[int, int]) -> Tensor:
        steps = torch.arange(len(q))
        distance = steps[:, None] - steps
        left, right = (len(q) if side < 0 else side for side in window)
        mask = (distance <= left) & (-distance <= right)
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=True).transpose(0, 1)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """As if the CPU had the kernel."""
    stand_in = StandIn()
    monkeypatch.setattr(varlen, "varlen_attn", stand_in)
    monkeypatch.setattr(varlen, "has_kernel", lambda _device: True)
    return stand_in


def test_the_stand_in_has_the_signature_of_torchs_function() -> None:
    theirs = inspect.signature(varlen_attn).parameters
    for name, parameter in inspect.signature(StandIn().__call__).parameters.items():
        assert (theirs[name].kind, theirs[name].default) == (parameter.kind, parameter.default), name


def states(lengths: list[int], heads: int, groups: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    """Queries, keys and values as a layer makes them: (1, heads, T, width), of whole token rows in memory."""
    generator = torch.Generator().manual_seed(sum(lengths))
    shapes = [(1, sum(lengths), n, width) for n in (heads, groups, groups)]
    return [torch.randn(shape, generator=generator).to(dtype).transpose(1, 2) for shape in shapes]


@pytest.mark.parametrize("lengths", [[7], [1, 1, 1], [5, 1, 40, 39, 12]])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2)])
@pytest.mark.parametrize("window", [None, 1, 3, 39, 40, 1000])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_documents_are_attended_as_by_the_dense_twin_forward_and_backward(
    kernel: StandIn, lengths: list[int], heads: tuple[int, int], window: int | None, dtype: torch.dtype
) -> None:
    results = []
    for attend in (PackedAttention.plan(lengths, CPU), dense_attention(lengths)):
        inputs = states(lengths, *heads, 16, dtype)
        if attend.__class__ is not PackedAttention:  # exactly, on the same rounded numbers
            inputs = [x.float() for x in inputs]
        inputs = [x.detach().requires_grad_() for x in inputs]
        out = attend(0, *inputs, 0.3, window)
        (out.float() * torch.arange(16)).sum().backward()
        results.append([out, *(x.grad for x in inputs)])
    assert len(kernel.windows) == 1
    assert results[0][0].dtype == dtype
    assert results[0][0].shape == inputs[0].shape
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one.float(), other, atol=0.02 * float(other.detach().abs().max()) + 1e-4, rtol=0)


def test_plain_causal_attention_is_asked_for_by_its_name(kernel: StandIn) -> None:
    """The kernel is faster where no window is named, so none is, where it would hide nothing."""
    for window in (None, 5, 4):
        PackedAttention.plan([5, 2], CPU)(0, *states([5, 2], 2, 1, 8, torch.bfloat16), 0.3, window)
    assert kernel.windows == [(-1, 0), (-1, 0), (3, 0)]


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 16), (torch.bfloat16, 12), (torch.bfloat16, 264)])
def test_what_the_kernel_does_not_take_is_attended_without_it(kernel: StandIn, dtype: torch.dtype, width: int) -> None:
    inputs = states([3, 9, 4], 4, 2, width, dtype)
    attended = PackedAttention.plan([3, 9, 4], CPU)(0, *inputs, 0.3, None)
    expected = dense_attention([3, 9, 4])(0, *inputs, 0.3, None)
    assert not kernel.windows
    torch.testing.assert_close(attended, expected, atol=0.03, rtol=0.03)


@pytest.mark.parametrize("grids", [[Grid(1, 3, 4)], [Grid(1, 3, 4), Grid(2, 2, 2), Grid(1, 4, 3), Grid(1, 1, 1)]])
def test_patches_attend_inside_their_map_without_the_kernel_as_with_it(kernel: StandIn, grids: list[Grid]) -> None:
    patches = sum(grid.patches for grid in grids)
    qkv = torch.randn(patches, 3, 2, 8, generator=torch.Generator().manual_seed(0))
    results: list[list[Any]] = []
    for dtype in (torch.bfloat16, torch.float32):
        leaf = qkv.bfloat16().to(dtype).requires_grad_()
        out = MapAttention(grids, CPU)(*leaf.unbind(1))
        out.float().square().sum().backward()
        results.append([out, leaf.grad])
    assert kernel.windows == [(-1, -1)]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one.float(), other.float(), atol=0.03, rtol=0.03)


def test_a_cpu_has_no_kernel() -> None:
    assert Varlen.plan([3, 4], CPU) is None
    assert PackedAttention.plan([3, 4], CPU).varlen is None
