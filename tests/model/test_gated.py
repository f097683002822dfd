from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from opsin.core.errors import ModelError
from opsin.model.connector_values import GatedCrossAttention
from opsin.model.gated import CrossPlan, GatedBlock, GatedBlocks
from tests.support.golden import filled, golden, sine

CPU = torch.device("cpu")
FUSION = GatedCrossAttention(heads=2, head_width=4, feed_forward=2)
FLAMINGO_NAMES = {
    "attn.norm": "norm",
    "attn.to_q": "query",
    "attn.to_kv": "key_value",
    "attn.to_out": "out",
    "attn_gate": "attention_gate",
    "ff_gate": "feed_forward_gate",
    "ff.": "feed_forward.",
}


def opened(gate: float = 0.7) -> GatedBlock:
    """A block of width 8 for media of width 6, with its gates open."""
    torch.manual_seed(0)
    block = GatedBlock(FUSION, 8, 6)
    block.attention_gate.data.fill_(gate)
    block.feed_forward_gate.data.fill_(-gate)
    return block


def slow_twin(block: GatedBlock, hidden: Tensor, media: Tensor, seen: list[int], counts: list[int]) -> Tensor:
    """Token by token and head by head."""
    media_of_each = media.split(counts)
    added = []
    for x, medium in zip(hidden, seen, strict=True):
        if medium < 0:
            added.append(torch.zeros_like(x))
            continue
        q = block.query(block.norm(x)).view(2, 4)
        k, v = (y.view(-1, 2, 4) for y in block.key_value(media_of_each[medium]).chunk(2, dim=-1))
        weights = torch.einsum("hd,nhd->hn", q, k).div(2.0).softmax(dim=-1)
        added.append(block.out(torch.einsum("hn,nhd->hd", weights, v).flatten()))
    hidden = hidden + torch.stack(added) * block.attention_gate.tanh()
    return hidden + block.feed_forward(hidden) * block.feed_forward_gate.tanh()


def from_flamingo(case: dict[str, Any]) -> GatedBlock:
    weights: dict[str, Tensor] = {}
    for name, value in filled(case["keys"]).items():
        for theirs, ours in FLAMINGO_NAMES.items():
            name = name.replace(theirs, ours)
        weights[name] = value
    block = GatedBlock(FUSION, 8, 6)
    block.load_state_dict(weights)
    return block


def rows_of_golden(case: dict[str, Any]) -> tuple[Tensor, Tensor, list[list[int]]]:
    """Hidden states (2, 6, 8), media (2, 2, 3, 6), and the media seen so far by each token of each row."""
    so_far = [torch.tensor(row).cumsum(0).tolist() for row in case["media_locations"]]
    return sine(*case["x_shape"]), sine(2, 2, 3, 6, phase=0.3), so_far


def test_words_look_at_the_latest_medium_as_in_openflamingo() -> None:
    case = golden("connectors_orig")["gated_xattn_immediate=True"]
    hidden, media, so_far = rows_of_golden(case)
    seen = [2 * row + count - 1 if count else -1 for row in range(2) for count in so_far[row]]
    plan = CrossPlan.plan(torch.tensor(seen), [3] * 4, CPU)
    block = from_flamingo(case)
    out = block(hidden.flatten(0, 1), block.project(media.reshape(12, 6)), plan)
    torch.testing.assert_close(out.flatten(), torch.tensor(case["out"]), atol=2e-5, rtol=0)


def test_media_put_together_are_openflamingos_look_at_all_media_so_far() -> None:
    """Where a token has seen nothing yet, OpenFlamingo lets it look at everything to come; that is not reproduced."""
    case = golden("connectors_orig")["gated_xattn_immediate=False"]
    hidden, media, so_far = rows_of_golden(case)
    # Medium 2 * row + n - 1 holds the first n media of the row.
    growing = torch.cat([torch.cat([media[row, 0], media[row].flatten(0, 1)]) for row in range(2)])
    seen = torch.tensor([2 * row + count - 1 if count else -1 for row in range(2) for count in so_far[row]])
    block = from_flamingo(case)
    out = block(hidden.flatten(0, 1), block.project(growing), CrossPlan.plan(seen, [3, 6, 3, 6], CPU))
    expected = torch.tensor(case["out"]).view(12, 8)
    torch.testing.assert_close(out[seen >= 0], expected[seen >= 0], atol=2e-5, rtol=0)


@st.composite
def packs(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """(seen, counts): tokens see any medium in any order; some media are seen by nobody, some have no tokens."""
    counts = draw(st.lists(st.integers(0, 5), max_size=5))
    return draw(st.lists(st.integers(-1, len(counts) - 1), max_size=20)), counts


@settings(max_examples=60, deadline=None)
@given(packs())
def test_it_is_exactly_the_slow_twin(pack: tuple[list[int], list[int]]) -> None:
    seen, counts = pack
    block = opened()
    hidden, media = torch.randn(len(seen), 8), torch.randn(sum(counts), 6)
    out = block(hidden, block.project(media), CrossPlan.plan(torch.tensor(seen, dtype=torch.long), counts, CPU))
    expected = slow_twin(block, hidden, media, seen, counts) if seen else hidden
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


def test_media_of_one_size_share_a_call() -> None:
    seen = torch.tensor([0] * 10 + [1] * 11 + [2] * 10 + [3] * 40)
    plan = CrossPlan.plan(seen, [4, 4, 9, 4], CPU)
    assert [tuple(group.lookers.shape) for group in plan.groups] == [(2, 11), (1, 40), (1, 10)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_at_initialisation_nothing_changes_bit_for_bit(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    block = GatedBlock(FUSION, 8, 6).to(dtype)
    hidden, media = (torch.randn(50, 8) * 100).to(dtype), torch.randn(7, 6).to(dtype)
    seen = torch.randint(-1, 2, (50,))
    assert (seen < 0).any()
    out = block(hidden, block.project(media), CrossPlan.plan(seen, [3, 4], CPU))
    bits = torch.int32 if dtype == torch.float32 else torch.int16
    assert torch.equal(out.view(bits), hidden.view(bits))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_the_hidden_states_keep_their_dtype_and_at_first_their_bits(dtype: torch.dtype) -> None:
    hidden, media = torch.randn(5, 8).to(dtype), torch.randn(3, 6)
    plan = CrossPlan.plan(torch.tensor([-1, 0, 0, 0, 0]), [3], CPU)
    with torch.autocast("cpu", torch.bfloat16):
        for block, same in ((GatedBlock(FUSION, 8, 6), True), (opened(), False)):
            for own in (torch.float32, torch.bfloat16):  # as a stage stores it: trained, or frozen
                out = block.to(own)(hidden, block.project(media), plan)
                assert out.dtype == dtype
                assert torch.equal(out, hidden) is same


def test_the_gates_learn_from_the_first_step_and_open_the_way_for_the_rest() -> None:
    torch.manual_seed(0)
    block = GatedBlock(FUSION, 8, 6)
    plan = CrossPlan.plan(torch.tensor([-1, 0, 1, 1]), [3, 2], CPU)
    hidden, media = torch.randn(4, 8), torch.randn(5, 6)
    block(hidden, block.project(media), plan).square().sum().backward()
    touched = {name for name, p in block.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert touched == {"attention_gate", "feed_forward_gate"}
    block = opened()
    block(hidden, block.project(media), plan).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in block.parameters())


def test_a_token_that_sees_nothing_gets_exactly_nothing() -> None:
    block = opened()
    block.feed_forward_gate.data.zero_()
    hidden, media = torch.randn(4, 8), torch.randn(3, 6)
    out = block(hidden, block.project(media), CrossPlan.plan(torch.tensor([-1, 0, 0, -1]), [3], CPU))
    assert (out == hidden).all(dim=1).tolist() == [True, False, False, True]


def test_a_pack_without_pictures_still_has_every_weight_in_its_graph() -> None:
    block = opened()
    plan = CrossPlan.plan(torch.tensor([-1, -1]), [], CPU)
    block(torch.randn(2, 8), block.project(torch.randn(0, 6)), plan).sum().backward()
    assert [name for name, p in block.named_parameters() if p.grad is None] == []


def test_another_picture_moves_only_those_who_look_at_it() -> None:
    block, hidden, media = opened(), torch.randn(6, 8), torch.randn(7, 6)
    plan = CrossPlan.plan(torch.tensor([-1, 0, 0, 1, 0, 1]), [3, 4], CPU)
    changed = media.clone()
    changed[3:] += 1
    moved = (block(hidden, block.project(media), plan) != block(hidden, block.project(changed), plan)).any(dim=1)
    assert moved.tolist() == [False, False, False, True, False, True]


def test_a_token_that_looks_at_a_medium_that_is_not_there_is_refused() -> None:
    with pytest.raises(ModelError, match=r"a token looks at medium 2, but there are 2 media"):
        CrossPlan.plan(torch.tensor([0, 2, 1]), [3, 3], CPU)


def test_a_plan_for_another_pack_is_refused_with_the_counts() -> None:
    plan = CrossPlan.plan(torch.tensor([0, 0]), [3], CPU)
    with pytest.raises(ModelError, match=r"2 tokens and 4 of media, but the plan is for 2 and 3"):
        opened()(torch.randn(2, 8), torch.randn(4, 6), plan)


@pytest.mark.parametrize(
    ("every", "layers", "expected"), [(1, 3, [0, 1, 2]), (2, 5, [1, 3]), (4, 12, [3, 7, 11]), (3, 3, [2])]
)
def test_blocks_stand_before_every_nth_layer(every: int, layers: int, expected: list[int]) -> None:
    blocks = GatedBlocks(GatedCrossAttention(every=every, heads=1, head_width=2), 8, 6, layers)
    assert sorted(blocks.project(torch.randn(2, 6))) == expected
    assert {int(name.split(".")[1]) for name in blocks.state_dict()} == set(expected)


def test_a_model_too_shallow_for_any_block_is_refused() -> None:
    with pytest.raises(ModelError, match=r"fusion\.every is 4, but the language model has 3 layers"):
        GatedBlocks(GatedCrossAttention(every=4), 8, 6, 3)


@pytest.mark.parametrize("width", [2048, 4096])
def test_a_block_has_openflamingos_number_of_weights(width: int) -> None:
    with torch.device("meta"):
        block = GatedBlock(GatedCrossAttention(), width, 1024)
    assert (
        sum(p.numel() for p in block.parameters())
        == golden("connectors_orig")["counts"][f"gated_block_dim{width}_vis1024"]
    )
