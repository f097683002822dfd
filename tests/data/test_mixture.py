"""How much of each source an epoch takes, and which samples."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from opsin.data.mixture import Portion, amounts, draw, needed

SIZE = st.integers(1, 50)


def portions(*values: dict[str, Any]) -> list[Portion]:
    return [Portion.model_validate(value) for value in values]


def test_by_default_every_sample_once() -> None:
    assert amounts(portions({}, {}), [7, 9]) == [7, 9]
    assert draw(Portion(), "a", 7, 7, seed=3, epoch=2).tolist() == list(range(7))


@pytest.mark.parametrize(
    ("value", "taken"),
    [({"weight": 2}, 20), ({"weight": 0.25}, 3), ({"weight": 0.01}, 1), ({"number": 4}, 4), ({"number": 25}, 25)],
)
def test_weights_and_numbers(value: dict[str, Any], taken: int) -> None:
    assert amounts(portions(value), [10]) == [taken]


def test_a_share_is_one_of_the_epochs_samples() -> None:
    assert amounts(portions({"share": 0.25}, {}, {"number": 20}), [1000, 40, 99]) == [20, 40, 20]
    assert amounts(portions({"share": 0.5}, {}), [3, 40]) == [40, 40]  # it is repeated where it has not enough


def test_all_shares_make_the_longest_epoch_without_a_repetition() -> None:
    assert amounts(portions({"share": 0.75}, {"share": 0.25}), [300, 60]) == [180, 60]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (({"share": 0.6}, {"share": 0.6}), "together they are 1.2; they must sum to 1"),
        (({"share": 0.6}, {"share": 0.4}, {}), "which leaves nothing to the sources without one"),
    ],
)
def test_shares_that_do_not_go_together(values: tuple[dict[str, Any], ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        amounts(portions(*values), [5] * len(values))


def test_only_one_way_to_say_how_much() -> None:
    with pytest.raises(ValidationError, match="give one of weight, number and share, not weight and share"):
        Portion.model_validate({"weight": 1, "share": 0.5})


@given(
    size=SIZE, amount=st.integers(1, 120), seed=st.integers(0, 99), pick=st.sampled_from(["random", "first", "last"])
)
def test_no_sample_twice_before_every_one_once(size: int, amount: int, seed: int, pick: Any) -> None:
    taken = draw(Portion(pick=pick), "a", size, amount, seed=seed, epoch=0)
    counts = Counter(taken.tolist())
    assert len(taken) == amount
    assert set(counts) <= set(range(size))
    assert max(counts.values()) - min(counts.values() if len(counts) == size else [0]) <= 1


@given(size=SIZE, amount=st.integers(1, 60), seed=st.integers(0, 99), epochs=st.integers(1, 6))
def test_over_epochs_every_sample_is_seen_equally_often(size: int, amount: int, seed: int, epochs: int) -> None:
    draws = [draw(Portion(weight=0.5), "a", size, amount, seed=seed, epoch=epoch) for epoch in range(epochs)]
    counts = Counter(np.concatenate(draws).tolist())
    seen = [counts[i] for i in range(size)]
    assert max(seen) - min(seen) <= (1 if amount != size else 0)


def test_first_and_last_take_the_same_samples_every_time() -> None:
    for epoch in range(3):
        assert draw(Portion(pick="first"), "a", 10, 3, seed=epoch, epoch=epoch).tolist() == [0, 1, 2]
        assert draw(Portion(pick="last"), "a", 10, 3, seed=epoch, epoch=epoch).tolist() == [7, 8, 9]


def test_the_draw_depends_on_seed_and_name_alone() -> None:
    def drawn(name: str, seed: int) -> list[int]:
        return draw(Portion(), name, 100, 10, seed=seed, epoch=0).tolist()

    assert drawn("a", 0) == drawn("a", 0)
    assert drawn("a", 0) != drawn("a", 1)
    assert drawn("a", 0) != drawn("b", 0)


def test_a_share_is_at_least_one_sample() -> None:
    assert amounts(portions({"share": 0.01}, {}), [5, 20]) == [1, 20]
    assert amounts(portions({"share": 0.999}, {"share": 0.001}), [10, 5]) == [10, 1]


def test_which_sources_must_hold_samples() -> None:
    assert needed(portions({}, {"weight": 2}, {"number": 3})) == [False, True, True]
    assert needed(portions({}, {"share": 0.5})) == [True, True]  # half of what, if the other is empty?
    assert amounts(portions({}, {"number": 3}), [0, 9]) == [0, 3]
    assert draw(Portion(), "a", 0, 0, seed=0, epoch=0).tolist() == []


def test_an_epoch_that_is_too_long_is_refused_with_both_numbers() -> None:
    with pytest.raises(ValidationError, match="less than or equal to 100000000"):
        Portion.model_validate({"number": 10**12})
    with pytest.raises(ValueError, match="epoch of 1,000,000,000 samples is more than the 100,000,000 that can be"):
        amounts(portions({"weight": 1000}), [10**6])
    assert amounts(portions({"weight": 100}), [10**6]) == [10**8]
