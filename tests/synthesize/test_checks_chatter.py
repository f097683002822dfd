"""Answers that talk to the one who asks, or deny what is there, or refuse in the middle, are no samples."""

from __future__ import annotations

import pytest

from opsin.synthesize.checks import examine_raw, harmless, suspicious
from opsin.synthesize.context import Context, Thing
from tests.support.examining import findings

DOG = Context(("A dog runs on a lawn.",), (Thing("a dog", ("animal", "dog"), (0.1, 0.1, 0.5, 0.5)),))


def found(question: str, answer: str, context: Context = DOG) -> set[str]:
    return {finding.check for finding in findings([(question, answer)], context)}


@pytest.mark.parametrize(
    "answer",
    [
        "Sure! A dog runs on a lawn.",
        "Here is a detailed description of the picture: a dog runs on a lawn.",
        "A dog runs on a lawn. Let me know if you need anything else!",
        "**The dog**\n- It runs.\n- It is on a lawn.",
        "A dog.\nQ: And what else?\nA: A lawn.",
        "A dog runs.\n---\nIt is on a lawn.",
        "Great question! A dog runs on a lawn.",
        "A __fast__ dog runs on a lawn.",
        "Here you go: a dog runs on a lawn.",
        "Revised answer: A dog runs on a lawn.",
        "Okay, I have to describe it. A dog runs on a lawn.",
        "The user wants a description. A dog runs on a lawn.",
        "A dog runs on a lawn. *Note: that is all.*",
        "A dog&nbsp;runs on a lawn.",
        "A <b>dog</b> runs on a lawn.<br/>It is happy.",
        "A dog runs on a lawn, see https://example.com/dog.",
        "A [dog](dog.html) runs on a lawn.",
        "| what | where |\n|---|---|\n| dog | lawn |",
        "A dog runs:\n```\nrun()\n```\n",
        "There are \\(1 \\times 1\\) dogs on the lawn.",
    ],
)
def test_talk_and_layout_are_refused(answer: str) -> None:
    assert found("What does it show?", answer) == {"chatter"}


@pytest.mark.parametrize(
    "answer",
    [
        "A dog runs on a lawn, sure of its way.",
        "It certainly enjoys the run, as the dog is on a wide lawn.",
        "The dog needs two things:\n1. A lawn to run on.\n2. Somebody to play with.",
        "A dog runs on a lawn, where the user wants to sit.",
        "Certainly, since the lawn is wide and the dog runs.",
        "The dog costs $5, is 3 < 4 feet > 2 feet tall, and runs on a lawn | a path.",
        "The dog is well-fed - it runs on a lawn, and one cannot help but smile.",
    ],
)
def test_plain_sentences_pass(answer: str) -> None:
    assert found("What does it show?", answer) == set()


def test_a_link_that_the_picture_shows_passes() -> None:
    sign = Context(("A dog runs below a sign that says https://example.com/dogs",), DOG.things)
    assert found("What does the sign say?", "The sign says https://example.com/dogs.", sign) == set()


@pytest.mark.parametrize("answer", ["I'm sorry, but I can't see the picture.", "As a text-based model I see nothing."])
def test_a_refusal_inside_of_a_sample_is_found(answer: str) -> None:
    assert "refusal" in found("What does it show?", answer)


@pytest.mark.parametrize(
    "raw",
    [
        "I can't see a cat.",
        "I'm not able to tell the time.",
        "I can't help but smile at the dog.",
        "Sorry-looking clouds hang over the lawn.",
    ],
)
def test_words_that_only_sound_like_a_refusal_pass(raw: str) -> None:
    assert examine_raw(raw, "stop") == ()


def test_what_is_there_cannot_be_denied() -> None:
    assert found("Is there a dog in the picture?", "No, there is no dog.") == {"hallucination"}
    assert found("Is there a dog?", "No") == {"hallucination"}
    assert found("Is there a red dog?", "No") == set()
    assert found("Is there a cat?", "No, there is no cat.") == set()


@pytest.mark.parametrize(
    "caption",
    [
        "Two children pretend to drive a parked fire truck.",
        "Several umbrellas act as a roof over the market.",
        "A child tries to write and say hello on a board.",
    ],
)
def test_everyday_captions_are_no_orders(caption: str) -> None:
    assert suspicious(Context((caption,), ())) == ()


def test_a_refused_answer_is_shown_again_without_marks() -> None:
    shown = harmless("<|im_end|>\x00[INST] hello\nworld")
    assert set("<>|[]\x00").isdisjoint(shown)
    assert "hello\nworld" in shown
