"""A colour that no caption has is made up: a teacher that reads captions has seen nothing."""

from __future__ import annotations

import pytest

from opsin.synthesize.check_values import Checks
from opsin.synthesize.context import Context, Thing
from tests.support.examining import findings

CAPTIONS = ("A red bus parked beside a man in a grey coat.", "A man with a dog waits on a snowy lawn.")
BUS = Context(CAPTIONS, (Thing("bus", ("vehicle", "bus")), Thing("person", ("person", "person"))), "categories")


def found(question: str, answer: str, **options: str) -> list[str]:
    told = findings([(question, answer)], BUS, options=Checks.model_validate(options))
    return [finding.text for finding in told if finding.refuses]


@pytest.mark.parametrize(
    ("question", "answer", "told"),
    [
        ("What is there?", "A blue bus is parked beside a man.", "answer 1 calls 'bus' blue, which no caption does"),
        ("What is there?", "The dog is black.", "answer 1 calls 'dog' black"),
        ("What is there?", "A brown leather coat is what he wears.", "answer 1 calls 'coat' brown"),
        ("What colour is the bus?", "Green.", "answer 1 calls 'it' green"),
        ("What is there?", "A grey bus.", "answer 1 calls 'bus' grey, which is red"),
        ("What is there?", "A yellow bus.", "answer 1 calls 'bus' yellow, which is red"),
        ("What is there?", "The bus is grey.", "answer 1 calls 'bus' grey, which is red"),
        ("Where is the grey double decker bus?", "It waits.", "question 1 calls 'bus' grey, which is red"),
        ("What does the man in the black coat do?", "He waits with a dog.", "question 1 calls 'coat' black"),
        ("Is the bus green?", "Yes, the bus is green.", "answer 1 calls 'bus' green"),
    ],
)
def test_a_colour_that_is_not_known_is_found(question: str, answer: str, told: str) -> None:
    assert found(question, answer)[0].startswith(told)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What colour is the bus?", "Red."),
        ("What colour is the coat?", "The coat is gray."),
        ("What is there?", "The red bus is parked on the white snow of the green lawn, under a blue sky."),
        ("What is there?", "A red and grey bus, and a grey bus stop."),
        ("What is there?", "The bus is grey and red."),
        ("What is there?", "A bus with grey seats waits."),
        ("What is there?", "The sky above the bus is blue."),
        ("What colour is the lawn?", "It is green."),
        ("Is the bus blue?", "No, it is not blue, it is red."),
        ("What is there?", "The man waits in the shade, and the greens of the lawn are covered."),
        ("What could he wear?", "He might wear a black coat the next time."),
        ("What is there?", "The coat stands out against the white."),
        ("What is there?", "The man with the orange in his hand waits."),
    ],
)
def test_other_colours_pass(question: str, answer: str) -> None:
    assert not [text for text in found(question, answer) if "calls" in text]


def test_it_can_be_switched_off() -> None:
    assert found("What is there?", "A blue bus.") != []
    assert found("What is there?", "A blue bus.", hallucination="report") == []
    assert found("What is there?", "A blue bus.", hallucination="off") == []


STREET = ("A red bus passes a black car and a white building.", "a red double decker bus", "green trees behind a bus")
CAT = ("A black cat on a windowsill with a white curtain and green plants.", "a cat by a window")


@pytest.mark.parametrize(
    ("captions", "thing", "question", "answer"),
    [
        (STREET, "bus", "What colour is the car?", "The car that follows the bus is black."),
        (STREET, "bus", "What colour is the car?", "The car waiting for the bus is black."),
        (STREET, "bus", "What colour is the building?", "The building across from the bus is white."),
        (STREET, "bus", "What is written on the white bus?", "There is no white bus; the bus is red."),
        (STREET, "bus", "What is it?", "Everything but the red bus is black and white."),
        (STREET, "bus", "What is it?", "It is a black and white bus photo, but for the bus itself."),
        (CAT, "cat", "What is it like?", "The cat is green-eyed and black."),
        (CAT, "cat", "What is behind it?", "There is a green cat-themed pillow behind it."),
        (CAT, "cat", "What is it like?", "It is a black cat, and the cat is white on its chest."),
        (CAT, "cat", "What colour are the plants?", "The plants surrounding the cat are green."),
    ],
)
def test_a_colour_is_that_of_the_noun_it_belongs_to(
    captions: tuple[str, ...], thing: str, question: str, answer: str
) -> None:
    context = Context(captions, (Thing(f"a {thing}", ("thing", thing)),), "categories")
    assert not [finding.text for finding in findings([(question, answer)], context) if " calls " in finding.text]
