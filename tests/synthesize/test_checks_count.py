"""Numbers of things: wrong ones are found, and sizes, seats and parts of a sum are none."""

from __future__ import annotations

import pytest

from opsin.synthesize.checks.concepts import concepts
from opsin.synthesize.checks.count import count
from opsin.synthesize.checks.hallucination import Known
from opsin.synthesize.context import Context, Thing, Vocabulary
from opsin.synthesize.english import noun_phrase
from opsin.synthesize.subject import Exchange

NAMES = ("person", "person", "pizza", "tv", "truck", "toilet", "giraffe", "giraffe", "book", "cat", "dining table")


def found(question: str, answer: str, *, reasoned: bool = False) -> bool:
    things = tuple(Thing(noun_phrase(name), ("thing", name)) for name in NAMES)
    known = Known((Context((), things, "categories"),), concepts(Vocabulary(()), None))
    return any(count([Exchange(question, answer)], known, reasoned=reasoned))


@pytest.mark.parametrize(
    "answer",
    [
        "It is a 12-inch pizza.",
        "A 42-inch TV hangs on the wall beside an 18-wheeler truck.",
        "The pizza is large enough for four people.",
        "The table could seat six people.",
        "The room is too small for two toilets.",
        "There are not three giraffes.",
        "Both giraffes eat.",
        "One of the people reads one book.",
        "At second base, a cat lies on the table for a second.",
        "The truck waits for another year.",
        "Someone waits for another truck, or for a second pizza.",
        "The second truck door is open.",
        "There is a cat bed, and a second cat bed stands behind it.",
        "He takes the cat in the mirror for another cat.",
    ],
)
def test_sizes_seats_and_denials_are_no_numbers_of_things(answer: str) -> None:
    assert not found("What is there?", answer)
    assert not found("What is there?", answer, reasoned=True)


@pytest.mark.parametrize(
    "answer",
    [
        "Three giraffes stand there.",
        "A trio of giraffes stands there.",
        "There are a dozen books.",
        "Hundreds of people look on.",
        "There are several cats.",
        "There are fifteen people.",
        "There are twenty-two people.",
        "About fifty giraffes stand there.",
        "A hundred books lie there.",
        "There is another cat.",
        "There is a second book on the table.",
        "The third person is waiting.",
    ],
)
def test_more_than_there_are_is_found(answer: str) -> None:
    assert found("What is there?", answer)


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        ("Two.", False),
        ("There is one man and one woman.", False),
        ("One.", True),
        ("There are three people. Two of them sit.", True),
        ("There are two people, and one of them sits.", False),
    ],
)
def test_the_number_that_is_asked_for_is_exact(answer: str, wrong: bool) -> None:
    assert found("How many people are there?", answer) is wrong


@pytest.mark.parametrize(
    ("question", "answer", "wrong"),
    [
        ("What are the three giraffes doing?", "They eat.", True),
        ("What is the second cat doing?", "It sleeps.", True),
        ("What are the two giraffes doing?", "They eat.", False),
        ("What are the three giraffes doing?", "There are not three of them, only two.", False),
        ("Where are the two cats?", "Only one of the animals is a cat.", False),
        ("What is the advantage of having two cats?", "They keep each other company.", False),
        ("When will another truck come?", "That can't be told.", False),
        ("Are there three giraffes?", "There are two.", False),
    ],
)
def test_what_a_question_takes_for_granted_is_counted(question: str, answer: str, wrong: bool) -> None:
    assert found(question, answer) == wrong


@pytest.mark.parametrize(
    ("caption", "answer"),
    [
        ("A woman with three cats.", "There is another cat on the bed, and there are two cats beside her."),
        ("Three trucks on a road.", "The second truck is on the left."),
    ],
)
def test_more_than_have_boxes_may_be_told_by_captions(caption: str, answer: str) -> None:
    things = (Thing("a cat", ("thing", "cat")), Thing("a truck", ("thing", "truck")))
    known = Known((Context((caption,), things, "categories"),), concepts(Vocabulary(()), None))
    assert not list(count([Exchange("What is there?", answer)], known))
