from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opsin.model.attention import KeyValueCache, PackedAttention, dense_attention
from opsin.model.config import LanguageModel
from opsin.model.decoder import Decoder, load_decoder
from tests.support.models import language_facts

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

CPU = torch.device("cpu")
LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def states(lengths: list[int], heads: int, groups: int, seed: int = 0, width: int = 8) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    return tuple(torch.randn(1, n, total, width, generator=generator) for n in (heads, groups, groups))


@settings(max_examples=60, deadline=None)
@given(
    lengths=LENGTHS,
    heads=st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1)]),
    window=st.sampled_from([None, 1, 3, 16, 1000]),
    seed=st.integers(0, 100),
)
def test_packed_equals_the_dense_twin(lengths: list[int], heads: tuple[int, int], window: Any, seed: int) -> None:
    q, k, v = states(lengths, *heads, seed)
    packed = PackedAttention.plan(lengths, CPU)(0, q, k, v, 0.3, window)
    dense = dense_attention(lengths)(0, q, k, v, 0.3, window)
    assert packed.shape == q.shape
    torch.testing.assert_close(packed, dense, atol=1e-5, rtol=1e-5)


@settings(max_examples=15, deadline=None)
@given(lengths=LENGTHS, window=st.sampled_from([None, 5]))
def test_gradients_equal_those_of_the_dense_twin(lengths: list[int], window: Any) -> None:
    gradients = []
    for attend in (PackedAttention.plan(lengths, CPU), dense_attention(lengths)):
        inputs = [x.requires_grad_() for x in states(lengths, 4, 2)]
        attend(0, *inputs, 0.3, window).square().sum().backward()
        gradients.append([x.grad for x in inputs])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("heads", [(4, 4), (6, 2)])
@pytest.mark.parametrize("lengths", [[1, 7, 8, 30], [600, 5]])  # 600 is beyond the short path
def test_bfloat16_is_close_to_float32(lengths: list[int], heads: tuple[int, int]) -> None:
    q, k, v = (x.bfloat16() for x in states(lengths, *heads))
    attended = PackedAttention.plan(lengths, CPU)(0, q, k, v, 0.35, None)
    exact = dense_attention(lengths)(0, q.float(), k.float(), v.float(), 0.35, None)
    assert attended.dtype == torch.bfloat16
    assert (attended.float() - exact).abs().max() < 0.04
    assert (attended.float() - exact).abs().mean() < 0.004


def test_a_window_sees_itself_and_the_tokens_just_before() -> None:
    lengths = [6]
    q = k = torch.zeros(1, 1, 6, 2)
    v = torch.arange(6.0).view(1, 1, 6, 1).expand(-1, -1, -1, 2).contiguous()
    attended = PackedAttention.plan(lengths, CPU)(0, q, k, v, 1.0, 3)
    torch.testing.assert_close(attended[0, 0, :, 0], torch.tensor([0.0, 0.5, 1.0, 2.0, 3.0, 4.0]))


def test_similar_lengths_share_a_call_and_different_ones_do_not() -> None:
    plan = PackedAttention.plan([100, 8, 101, 9, 100], CPU)
    assert sorted(tuple(group.index.shape) for group in plan.groups) == [(2, 9), (3, 101)]
    assert plan.longest == 101


def decoder(**facts: Any) -> Decoder:
    torch.manual_seed(0)
    value = {"config": language_facts("llama", **facts), "tokenizer": "."}
    return load_decoder(LanguageModel.model_validate(value)).requires_grad_(requires_grad=False)


@pytest.mark.parametrize("changed", [0, 1, 2])
def test_no_document_sees_another(changed: int, tmp_path: Path) -> None:
    lengths = [9, 10, 31]
    model = decoder()
    positions = torch.cat([torch.arange(length) for length in lengths])[None, None]
    tokens = torch.randint(1, 500, (1, sum(lengths)), generator=torch.Generator().manual_seed(1))
    other = tokens.clone()
    start = sum(lengths[:changed])
    other[0, start : start + lengths[changed]] = 77
    attend = PackedAttention.plan(lengths, CPU)
    before, after = (model(model.embed(ids), positions, attend)[0].split(lengths) for ids in (tokens, other))
    for document in range(3):
        difference = (before[document] - after[document]).abs().max()
        assert difference > 1e-2 if document == changed else difference <= 1e-6


def test_a_document_does_not_depend_on_what_it_is_packed_with() -> None:
    model = decoder()
    documents = [torch.randint(1, 500, (1, n), generator=torch.Generator().manual_seed(n)) for n in (5, 6, 40)]
    lengths = [ids.shape[1] for ids in documents]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    together = model(model.embed(torch.cat(documents, dim=1)), positions[None], PackedAttention.plan(lengths, CPU))
    for ids, hidden in zip(documents, together[0].split(lengths), strict=True):
        length = ids.shape[1]
        alone = model(model.embed(ids), torch.arange(length)[None, None], PackedAttention.plan([length], CPU))
        torch.testing.assert_close(hidden, alone[0], atol=1e-5, rtol=1e-5)


def test_a_repeated_cache_row_is_a_copy() -> None:
    cache = KeyValueCache(2, 4, CPU)
    keys, values = cache.layer(0, torch.ones(2, 1, 1, 3))
    keys[1], values[1] = 5, 7
    cache.advance(torch.tensor([1, 2]))
    copy = cache.repeated(1, 3)
    assert copy.lengths_B.tolist() == [2, 2, 2]
    copied_keys, copied_values = copy.layer(0, keys)
    assert (copied_keys == 5).all()
    assert (copied_values == 7).all()
    copied_keys.zero_()
    assert (keys[1] == 5).all()
