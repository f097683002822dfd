from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsin.data.costs import Costs
from opsin.data.plan import WINDOW, Budget, Pack, Plan, plan_batches, plan_epoch, rank_share

BUDGET = 64
LENGTHS = st.lists(st.integers(2, BUDGET), min_size=1, max_size=80)


def budget(tokens: int = BUDGET, patches: int = 10**9) -> Budget:
    return Budget(tokens, patches)


def costs_of(lengths: Sequence[int], patches: Sequence[int] | None = None) -> Costs:
    cost = patches or [0] * len(lengths)
    rows = [(length, 0, length // 2, patch, 0) for length, patch in zip(lengths, cost, strict=True)]
    return Costs.from_rows(rows)


def order(plan: Plan) -> list[int]:
    return [i for pack in plan.packs for i in pack.samples]


@settings(deadline=None)
@given(lengths=LENGTHS, seed=st.integers(0, 2**31 - 1), epoch=st.integers(0, 100))
def test_every_sample_once_within_the_budget_and_always_the_same(lengths: list[int], seed: int, epoch: int) -> None:
    costs = costs_of(lengths)
    plan = plan_epoch(costs, budget(), seed=seed, epoch=epoch)
    assert sorted(order(plan)) == list(range(len(costs)))
    for pack in plan.packs:
        assert pack.tokens == sum(lengths[i] for i in pack.samples) <= BUDGET
        assert pack.supervised == sum(lengths[i] // 2 for i in pack.samples)
    assert plan.tokens == sum(lengths)
    assert plan.supervised == int(costs.supervised.sum())
    assert plan == plan_epoch(costs, budget(), seed=seed, epoch=epoch)


@settings(deadline=None)
@given(lengths=LENGTHS, data=st.data())
def test_an_epoch_takes_the_samples_that_it_is_given(lengths: list[int], data: st.DataObject) -> None:
    samples = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=60))
    plan = plan_epoch(costs_of(lengths), budget(), seed=0, epoch=0, samples=np.array(samples, dtype=np.int64))
    assert Counter(order(plan)) == Counter(samples)
    assert plan.tokens == sum(lengths[i] for i in samples)


def test_epochs_and_seeds_differ() -> None:
    costs = costs_of([5 + i % 40 for i in range(200)])
    plans = [plan_epoch(costs, budget(), seed=s, epoch=e) for s, e in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert len({tuple(order(plan)) for plan in plans}) == 4
    company = {frozenset(frozenset(pack.samples) for pack in plan.packs) for plan in plans}
    assert len(company) == 4  # not the same packs in another order


def test_a_sample_over_a_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="a sample has 65 tokens"):
        plan_epoch(costs_of([3, BUDGET + 1]), budget(), seed=0, epoch=0)
    with pytest.raises(ValueError, match="101 patches"):
        plan_epoch(costs_of([3, 4], [0, 101]), budget(patches=100), seed=0, epoch=0)


def llava_lengths(rng: np.random.Generator, count: int) -> np.ndarray:
    """576 tokens for a picture, which 95 of 100 samples have, and a text of log-normal length."""
    text = np.clip(rng.lognormal(4.6, 0.8, count), 20, 1500).astype(int)
    return text + np.where(rng.random(count) < 0.95, 576, 0)


@pytest.mark.parametrize("tokens", [4096, 8192])
def test_packs_of_a_realistic_mixture_are_full(tokens: int) -> None:
    lengths = llava_lengths(np.random.default_rng(0), 8000).tolist()
    plan = plan_epoch(costs_of(lengths), budget(tokens), seed=0, epoch=0)
    assert plan.efficiency >= 0.995
    assert plan.efficiency == pytest.approx(sum(lengths) / (len(plan.packs) * tokens))


def test_packs_are_full_under_a_budget_of_patches_too() -> None:
    rng = np.random.default_rng(1)
    lengths = llava_lengths(rng, 4000).tolist()
    patches = rng.integers(0, 4000, 4000).tolist()
    plan = plan_epoch(costs_of(lengths, patches), budget(10**9, 16_384), seed=0, epoch=0)
    assert plan.patches / (len(plan.packs) * 16_384) > 0.85
    assert max(pack.patches for pack in plan.packs) <= 16_384


def test_a_pack_holds_a_mixture_and_not_one_length() -> None:
    lengths = [8, 24] * 500
    plan = plan_epoch(costs_of(lengths), budget(256), seed=0, epoch=0)
    mixed = [pack for pack in plan.packs if len({lengths[i] for i in pack.samples}) == 2]
    assert len(mixed) > 0.8 * len(plan.packs)


def test_long_samples_do_not_gather_at_the_end() -> None:
    """Filling the last room of a pack by length must not use up the short samples first."""
    lengths = llava_lengths(np.random.default_rng(2), 6000)
    plan = plan_epoch(costs_of(lengths.tolist()), budget(4096), seed=0, epoch=0)
    half = len(plan.packs) // 2
    means = [
        np.mean([lengths[i] for pack in part for i in pack.samples]) for part in (plan.packs[:half], plan.packs[half:])
    ]
    assert means[0] == pytest.approx(means[1], rel=0.03)


def test_a_corpus_larger_than_a_window() -> None:
    lengths = [3 + i % 50 for i in range(5 * WINDOW + 7)]
    plan = plan_epoch(costs_of(lengths), budget(), seed=5, epoch=0)
    assert sorted(order(plan)) == list(range(len(lengths)))


def test_no_samples_make_no_packs() -> None:
    plan = plan_epoch(costs_of([]), budget(), seed=0, epoch=0)
    assert plan.packs == ()
    assert plan.efficiency == 1.0


@settings(deadline=None)
@given(costs=st.lists(st.tuples(st.integers(2, BUDGET), st.integers(0, 100)), min_size=1, max_size=80))
def test_no_pack_is_over_either_budget(costs: list[tuple[int, int]]) -> None:
    lengths, patches = (list(column) for column in zip(*costs, strict=True))
    plan = plan_epoch(costs_of(lengths, patches), budget(patches=100), seed=0, epoch=0)
    assert sorted(order(plan)) == list(range(len(costs)))
    for pack in plan.packs:
        assert pack.tokens == sum(costs[i][0] for i in pack.samples) <= BUDGET
        assert pack.patches == sum(costs[i][1] for i in pack.samples) <= 100


@settings(deadline=None)
@given(lengths=LENGTHS, size=st.integers(1, 100), tokens=st.integers(BUDGET, 400), seed=st.integers(0, 2**31 - 1))
def test_batches_hold_the_samples_of_a_step_whatever_the_budget(
    lengths: list[int], size: int, tokens: int, seed: int
) -> None:
    costs = costs_of(lengths)
    batches = plan_batches(costs, budget(tokens), size, seed=seed, epoch=1)
    held = [sorted(i for pack in batch for i in pack.samples) for batch in batches]
    assert sorted(i for samples in held for i in samples) == list(range(len(lengths)))
    assert [len(samples) for samples in held[:-1]] == [size] * (len(held) - 1)
    assert 1 <= len(held[-1]) <= size
    assert all(pack.tokens == sum(lengths[i] for i in pack.samples) <= tokens for batch in batches for pack in batch)
    roomy = plan_batches(costs, budget(10**6), size, seed=seed, epoch=1)
    assert [sorted(pack.samples) for (pack,) in roomy] == held


def test_batches_differ_between_epochs_and_refuse_what_no_pack_holds() -> None:
    costs = costs_of([9] * 40)
    first, second = (plan_batches(costs, budget(), 8, seed=0, epoch=epoch) for epoch in (0, 1))
    assert first != second
    with pytest.raises(ValueError, match="9 tokens"):
        plan_batches(costs, budget(8), 8, seed=0, epoch=0)


def test_a_batch_takes_few_packs() -> None:
    lengths = llava_lengths(np.random.default_rng(3), 128 * 20)
    batches = plan_batches(costs_of(lengths.tolist()), budget(8192), 128, seed=0, epoch=0)
    least = [np.ceil(sum(pack.tokens for pack in batch) / 8192) for batch in batches]
    assert np.mean([len(batch) for batch in batches]) <= np.mean(least) + 0.3


STEP = st.lists(st.integers(0, 50), max_size=20)


def packs_of(patches: Sequence[int]) -> list[Pack]:
    return [Pack((number,), tokens=9, patches=cost, supervised=4) for number, cost in enumerate(patches)]


@given(patches=STEP, ranks=st.integers(1, 9))
def test_ranks_share_a_step_without_rest(patches: list[int], ranks: int) -> None:
    step = packs_of(patches)
    shares = [rank_share(step, rank, ranks) for rank in range(ranks)]
    assert sorted(pack.samples for share in shares for pack in share) == [pack.samples for pack in step]
    counts = [len(share) for share in shares]
    assert max(counts) - min(counts) <= 1
    assert all(list(share) == sorted(share, key=lambda pack: pack.samples) for share in shares)


def test_no_rank_gets_all_the_pictures() -> None:
    loads = [sum(pack.patches for pack in rank_share(packs_of([90, 10, 80, 20]), rank, 2)) for rank in range(2)]
    assert loads == [100, 100]
