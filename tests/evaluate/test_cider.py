from __future__ import annotations

import pytest

from opsin.evaluate.cider import CiderD, mean, words_of

REFERENCES = [
    ["A helmeted guinea fowl."],
    ["A red fire truck.", "A red truck with a ladder."],
    ["A black cat on a chair."],
    ["A violin."],
    ["Santa's sleigh, full of toys!"],
]
CAPTIONS = [
    "A guinea fowl.",
    "A truck with a red ladder.",
    "A black cat on a chair.",
    "A a a violin violin on a big brown chair that stands there",
    "Santa's toys",
]
# From pycocoevalcap 1.2, CiderScorer(n=4, sigma=6.0), given the words of `words_of` joined by spaces.
GOLDEN = [3.022832, 3.298349, 10.0, 0.264266, 1.395350]
GOLDEN_CONSTANT = 1.0191011626782787


def test_equals_the_reference_implementation() -> None:
    assert CiderD(REFERENCES).scores(CAPTIONS) == pytest.approx(GOLDEN, abs=1e-6)


def test_a_constant_caption_is_the_mean_over_pictures() -> None:
    scorer = CiderD(REFERENCES)
    assert scorer.constant("A violin.") == pytest.approx(GOLDEN_CONSTANT, abs=1e-12)
    assert mean(scorer.scores(["A violin."] * 5)) == pytest.approx(GOLDEN_CONSTANT, abs=1e-12)


def test_words_are_lower_case_without_punctuation() -> None:
    assert words_of('Santa\'s "well-known" Sleigh, (full)!') == ("santa's", "well-known", "sleigh", "full")
    assert words_of("...") == ()


def test_an_empty_caption_scores_zero() -> None:
    assert CiderD(REFERENCES).scores(["", *CAPTIONS[1:]])[0] == 0


def test_repeating_a_rare_word_does_not_pay() -> None:
    scorer = CiderD(REFERENCES)
    assert scorer.scores(["violin violin violin"] * 5)[3] < scorer.scores(["violin"] * 5)[3]


def test_one_picture_has_no_rare_words() -> None:
    assert CiderD([["A cat."]]).scores(["A cat."]) == [0]


def test_every_picture_needs_a_reference() -> None:
    with pytest.raises(ValueError, match=r"pictures \[1\] have no reference caption"):
        CiderD([["A cat."], []])
