from __future__ import annotations

import math

import numpy as np
import pytest

from opsin.evaluate.metrics import (
    Accuracy,
    accuracy,
    always,
    leave_one_out,
    matches,
    most_frequent,
    nearest_neighbour,
    recall_at,
)


@pytest.mark.parametrize("answer", ["Yes", "yes", " YES. ", "yes ."])
def test_case_spaces_and_a_full_stop_do_not_matter(answer: str) -> None:
    assert matches(answer, "Yes")


@pytest.mark.parametrize("answer", ["", "Yes, it is", "yes..", "No", "Y es"])
def test_anything_else_does(answer: str) -> None:
    assert not matches(answer, "Yes")


def test_wilson_interval_of_published_examples() -> None:
    # Newcombe 1998, table I: 81 of 263 and 15 of 148.
    assert Accuracy(81, 263).interval == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert Accuracy(15, 148).interval == pytest.approx((0.0624, 0.1605), abs=5e-5)


@pytest.mark.parametrize("total", [1, 20, 400])
def test_wilson_interval_at_the_ends(total: int) -> None:
    low, high = Accuracy(0, total).interval
    assert low == 0 < high < 1
    mirrored = Accuracy(total, total).interval
    assert mirrored == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize(("correct", "total"), [(2, 1), (-1, 3), (0, 0)])
def test_impossible_counts_are_refused(correct: int, total: int) -> None:
    with pytest.raises(ValueError, match=f"{correct} correct of {total}"):
        Accuracy(correct, total)


def test_accuracy_and_constant_baselines() -> None:
    truths = ["cat", "Dog", "dog", "bird"]
    assert accuracy(["Cat.", "cat", "dog", "fish"], truths) == Accuracy(2, 4)
    assert most_frequent(truths) == "Dog"
    assert always("dog", truths) == Accuracy(2, 4)
    assert most_frequent(["b", "a"]) == "b"


def test_answers_and_truths_must_pair_up() -> None:
    with pytest.raises(ValueError, match="zip"):
        accuracy(["a"], ["a", "b"])


def test_recall_ranks_each_row() -> None:
    scores = np.array([[0.9, 0.1, 0.2], [0.5, 0.4, 0.3], [0.3, 0.2, 0.1]])
    assert [recall_at(scores, k).correct for k in (1, 2, 3)] == [1, 2, 3]


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_scores_that_say_nothing_get_no_recall(value: float) -> None:
    assert recall_at(np.full((8, 8), value), 5).correct == 0


def test_recall_needs_a_square_matrix() -> None:
    with pytest.raises(ValueError, match="recall at 1 of 2 x 3 scores"):
        recall_at(np.zeros((2, 3)), 1)


def test_nearest_neighbour_is_by_angle() -> None:
    known = np.array([[10.0, 0.0], [0.0, 0.1]])
    asked = np.array([[0.2, 0.1], [1.0, 9.0], [3.0, 0.0]])
    assert nearest_neighbour(known, ["right", "up"], asked, ["right", "up", "up"]) == Accuracy(2, 3)


def test_leave_one_out_never_looks_at_itself() -> None:
    features = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    assert leave_one_out(features, ["a", "a", "b"]) == Accuracy(2, 3)
    with pytest.raises(ValueError, match="at least 2"):
        leave_one_out(features[:1], ["a"])


def test_a_zero_vector_is_like_nothing() -> None:
    assert nearest_neighbour(np.eye(2), ["a", "b"], np.zeros((1, 2)), ["a"]).total == 1
