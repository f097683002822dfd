from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bench.reworded import REWORDINGS, refuse_taught, reworded
from bench.synthesis_gain import in_form, read, right_at_first, shuffled
from opsin.quickstart.dataset import TINY, build_drawn
from opsin.quickstart.groups import GROUPS
from opsin.report.scores import Prediction
from opsin.synthesize.rules import GROUP_QUESTION, TOTAL_QUESTION, group_check, group_count

if TYPE_CHECKING:
    from pathlib import Path

    from bench.reworded import Record

PLURALS = [group.many for group in GROUPS if group.many]
TEMPLATES = [
    GROUP_QUESTION,
    TOTAL_QUESTION,
    *(group_check(group.label) for group in GROUPS),
    *map(group_count, PLURALS),
]


def records(pictures: list[str]) -> list[Record]:
    return [{"id": str(index), "image": picture} for index, picture in enumerate(pictures)]


@given(st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=40), st.integers(0, 99))
def test_every_record_gets_the_picture_of_another_one(pictures: list[str], seed: int) -> None:
    assume(2 * max(Counter(pictures).values()) <= len(pictures))
    found = shuffled(records(pictures), seed)
    assert [record["id"] for record in found] == [str(index) for index in range(len(pictures))]
    assert all(record["image"] != own for record, own in zip(found, pictures, strict=True))
    assert Counter(record["image"] for record in found) == Counter(pictures)


def test_a_seed_decides_which_picture_a_record_gets() -> None:
    given_ = records([f"{index // 2}.jpg" for index in range(60)])
    assert shuffled(given_, 1) == shuffled(given_, 1)
    assert shuffled(given_, 1) != shuffled(given_, 2)


def test_pictures_that_cannot_be_told_apart_are_not_shuffled() -> None:
    with pytest.raises(ValueError, match="2 of 3 records have the same picture"):
        shuffled(records(["a", "a", "b"]), 0)


@pytest.mark.parametrize("name", REWORDINGS)
def test_held_out_questions_keep_all_but_their_words(tmp_path: Path, name: str) -> None:
    held_out = read(build_drawn(tmp_path / "data", 0, TINY).held_out)
    asked = [question for question in held_out if question["task"] != "caption"]
    assert {question["task"] for question in asked} == {"category", "yes_no", "count"}
    found = reworded(held_out, REWORDINGS[name])
    assert [question | {"question": ""} for question in found] == [question | {"question": ""} for question in asked]
    texts = {(own["question"], new["question"]) for own, new in zip(asked, found, strict=True)}
    # As many questions as before, and each in one way: no two of them became the same.
    assert len(texts) == len({own for own, _ in texts}) == len({new for _, new in texts})
    refuse_taught(REWORDINGS[name], [own for own, _ in texts])


@pytest.mark.parametrize("name", REWORDINGS)
def test_every_group_of_the_stamps_can_be_asked_for_in_other_words(name: str) -> None:
    questions = [{"id": text, "task": "count", "question": text} for text in TEMPLATES]
    found = [question["question"] for question in reworded(questions, REWORDINGS[name])]
    assert len(set(found)) == len(TEMPLATES)
    assert not set(found) & set(TEMPLATES)
    assert all("{" not in text for text in found)


def test_a_question_without_a_rewording_is_an_error() -> None:
    question = {"id": "q7", "task": "count", "question": "How far is it?"}
    with pytest.raises(ValueError, match=r"q7: no rewording fits 'How far is it\?'"):
        reworded([question], REWORDINGS["reworded"])


def test_words_that_are_taught_are_no_rewording() -> None:
    with pytest.raises(ValueError, match="'what is the number of cats\\?' is taught"):
        refuse_taught(REWORDINGS["reworded"], ["Is this a cat?", "what is the number of cats?"])


def test_form_and_content_of_answers_are_counted_apart() -> None:
    answers = [("Yes", "No"), ("No", "No."), ("No", "No, it is a dog"), ("Yes", "No. It is a dog"), ("No", "Nobody.")]
    told = [Prediction("", "yes_no", "", "", truth, answer) for truth, answer in answers]
    assert in_form(told) == pytest.approx(2 / 5)
    assert right_at_first(told) == pytest.approx(2 / 5)
