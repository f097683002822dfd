from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsin.core.errors import DataError
from opsin.core.types import Block, Example, Grid, Layout
from opsin.data.plan import WINDOW, Budget, Plan, plan_epoch

BUDGET = 64
LENGTHS = st.lists(st.integers(2, BUDGET), min_size=1, max_size=80)


def budget(tokens: int = BUDGET, patches: int = 10**9) -> Budget:
    return Budget(tokens, patches)


def example(length: int, number: int = 0, patches: int = 0) -> Example:
    supervised = np.zeros(length, dtype=bool)
    supervised[length // 2 :] = True
    empty = np.zeros(length, dtype=bool)
    positions = np.arange(length)[None]
    where = f"data.json:{number}"
    seen = (Layout((8, 8), (8, 8), 1, Grid(1, 1, patches), (1, 1), (Block(1, 1, 1),)),) if patches else ()
    return Example(f"id-{number}", where, np.zeros(length, np.int64), supervised, empty, positions, (), seen, ())


def examples_of(lengths: Any) -> list[Example]:
    return [example(int(length), number) for number, length in enumerate(lengths)]


def order(plan: Plan) -> list[int]:
    return [i for pack in plan.packs for i in pack.samples]


@settings(deadline=None)
@given(lengths=LENGTHS, seed=st.integers(0, 2**31 - 1), epoch=st.integers(0, 100))
def test_every_sample_once_within_the_budget_and_always_the_same(lengths: list[int], seed: int, epoch: int) -> None:
    examples = examples_of(lengths)
    plan = plan_epoch(examples, budget(), seed=seed, epoch=epoch)
    assert sorted(order(plan)) == list(range(len(examples)))
    for pack in plan.packs:
        assert pack.tokens == sum(lengths[i] for i in pack.samples) <= BUDGET
        assert pack.supervised == sum(examples[i].num_supervised for i in pack.samples)
    assert plan.tokens == sum(lengths)
    assert plan.supervised == sum(e.num_supervised for e in examples)
    assert plan == plan_epoch(examples, budget(), seed=seed, epoch=epoch)


@settings(deadline=None)
@given(lengths=LENGTHS)
def test_only_lengths_matter(lengths: list[int]) -> None:
    renamed = [example(length, number + 1000) for number, length in enumerate(lengths)]
    assert plan_epoch(examples_of(lengths), budget(), seed=1, epoch=2) == plan_epoch(renamed, budget(), seed=1, epoch=2)


def test_epochs_and_seeds_differ() -> None:
    examples = examples_of([5 + i % 40 for i in range(200)])
    plans = [plan_epoch(examples, budget(), seed=s, epoch=e) for s, e in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert len({tuple(order(plan)) for plan in plans}) == 4
    company = {frozenset(frozenset(pack.samples) for pack in plan.packs) for plan in plans}
    assert len(company) == 4  # not the same packs in another order


@settings(deadline=None)
@given(lengths=st.lists(st.integers(2, 2 * BUDGET), min_size=1, max_size=30).filter(lambda ls: max(ls) > BUDGET))
def test_every_sample_that_is_too_long_is_named(lengths: list[int]) -> None:
    with pytest.raises(DataError) as caught:
        plan_epoch(examples_of(lengths), budget(), seed=0, epoch=0)
    too_long = [(number, length) for number, length in enumerate(lengths) if length > BUDGET]
    assert caught.value.problems == tuple(
        f"data.json:{number}: (id-{number}) {length} tokens, more than the pack's budget of {BUDGET}; "
        f"raise batch_tokens to at least {max(lengths)}, or shorten the sample"
        for number, length in too_long
    )


def test_packs_of_a_realistic_mixture_are_nearly_full() -> None:
    rng = np.random.default_rng(0)
    captions = rng.integers(60, 90, 3000)
    dialogues = np.clip(rng.lognormal(5.5, 0.6, 2000), 80, 1500)
    texts = np.clip(rng.lognormal(4.5, 0.8, 500), 10, 1500)
    lengths = rng.permutation(np.concatenate([captions, dialogues, texts]).astype(int))
    plan = plan_epoch(examples_of(lengths), budget(2048), seed=0, epoch=0)
    assert plan.efficiency >= 0.95
    assert plan.efficiency == pytest.approx(lengths.sum() / (len(plan.packs) * 2048))


def test_a_pack_holds_a_mixture_and_not_one_length() -> None:
    lengths = [8, 24] * 500
    plan = plan_epoch(examples_of(lengths), budget(256), seed=0, epoch=0)
    mixed = [pack for pack in plan.packs if len({lengths[i] for i in pack.samples}) == 2]
    assert len(mixed) > 0.8 * len(plan.packs)


def test_a_corpus_larger_than_a_window() -> None:
    lengths = [3 + i % 50 for i in range(2 * WINDOW + 7)]
    plan = plan_epoch(examples_of(lengths), budget(), seed=5, epoch=0)
    assert sorted(order(plan)) == list(range(len(lengths)))


def test_no_samples_make_no_packs() -> None:
    plan = plan_epoch([], budget(), seed=0, epoch=0)
    assert plan.packs == ()
    assert plan.efficiency == 1.0


@settings(deadline=None)
@given(costs=st.lists(st.tuples(st.integers(2, BUDGET), st.integers(0, 100)), min_size=1, max_size=80))
def test_no_pack_is_over_either_budget(costs: list[tuple[int, int]]) -> None:
    examples = [example(tokens, number, patches) for number, (tokens, patches) in enumerate(costs)]
    plan = plan_epoch(examples, budget(patches=100), seed=0, epoch=0)
    assert sorted(order(plan)) == list(range(len(examples)))
    for pack in plan.packs:
        assert pack.tokens == sum(costs[i][0] for i in pack.samples) <= BUDGET
        assert pack.patches == sum(costs[i][1] for i in pack.samples) <= 100


def test_a_sample_of_too_many_patches_is_named() -> None:
    with pytest.raises(DataError) as caught:
        plan_epoch([example(5), example(5, 1, patches=101)], budget(patches=100), seed=0, epoch=0)
    assert caught.value.problems == (
        "data.json:1: (id-1) 101 patches of 1 pictures, more than the pack's budget of 100; "
        "raise batch_patches to at least 101, or show it fewer or smaller pictures",
    )
