"""Answers of teachers, read strictly: a question never gets another one's answer."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsin.synthesize.kinds.answers import format_blocks, parse_blocks, parse_text
from opsin.synthesize.kinds.base import MalformedAnswerError
from opsin.synthesize.subject import Exchange

TWO = (Exchange("What is it?", "A dog.\n\nIt is brown."), Exchange("Where?", "On a couch."))
PLAIN = format_blocks(TWO)


def is_marked(text: str) -> bool:
    """Whether a text has a line that could be one of the marks."""
    return re.search(r"(?im)^\W*(question|answer)\b|^\s*===", text) is not None or "```" in text


contents = (
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)
    .map(lambda text: text.replace("\r\n", "\n").strip())
    .filter(lambda text: text and not is_marked(text))
)


@settings(deadline=None)
@given(st.lists(st.builds(Exchange, contents, contents), min_size=1, max_size=6))
def test_what_is_written_is_read(exchanges: list[Exchange]) -> None:
    assert parse_blocks(format_blocks(exchanges)) == tuple(exchanges)


@pytest.mark.parametrize(
    "raw",
    [
        PLAIN,
        PLAIN.replace("\n", "\r\n"),
        f"```\n{PLAIN}```",
        f"```text\n{PLAIN}```\n",
        f"\n\n  {PLAIN}\n\n",
        PLAIN.removesuffix("===\n"),
        PLAIN.replace(":\n", ": "),
        PLAIN.replace("Question:", "**Question:**").replace("Answer:", "**Answer**:"),
        PLAIN.replace("Question:", "### Question 1:").replace("Answer:", "ANSWER:"),
        PLAIN.replace("===", "====="),
        PLAIN.replace("Question:", "Question："),
    ],
)
def test_habits_that_cannot_be_misunderstood(raw: str) -> None:
    assert parse_blocks(raw) == TWO


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ("", "empty"),
        ("===\n", "block 1 does not begin with `Question:`"),
        ("Sure! Here it is.\n\n" + PLAIN, "block 1 does not begin with `Question:`"),
        ("Answer:\nA dog.\n===\nQuestion:\nWhat?\n===\n", "block 1 is labelled `Answer:`"),
        (PLAIN + "Question:\nAnd now?\n===\n", "the last question has no answer"),
        (PLAIN + "I hope this helps!", "block 5 does not begin with `Question:`"),
        (PLAIN.replace("Answer:\nOn a couch.\n===\n", ""), "the last question has no answer"),
        (PLAIN.replace("Question:\nWhere?\n===\n", ""), "block 3 is labelled `Answer:`"),
        (PLAIN.replace("===\nAnswer:", "Answer:"), "block 1 has a second label, `Answer:`"),
        (PLAIN.replace("On a couch.", ""), "block 4 (`Answer:`) is empty"),
        (PLAIN.replace("On a couch.", "On a\nQuestion: or not?"), "block 4 has a second label"),
        ('[{"question": "What?", "answer": "A dog."}]', "does not begin with `Question:`"),
        (f"```\n{PLAIN}```\n```\n{PLAIN}```", "does not begin with `Question:`"),
    ],
)
def test_anything_else_is_refused_with_the_reason(raw: str, said: str) -> None:
    with pytest.raises(MalformedAnswerError, match=re.escape(said)):
        parse_blocks(raw)


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["Question:", "Answer:", "===", "\n", "\n===\n", "x", " ", "**", "```", "\r", "#", "\0", "Question"]
        )
        | st.text(max_size=5),
        max_size=30,
    ).map("".join)
)
def test_garbage_is_refused_or_read_but_breaks_nothing(raw: str) -> None:
    for parse in (parse_blocks, parse_text):
        try:
            read = parse(raw)
        except MalformedAnswerError:
            continue
        assert read
    try:
        exchanges = parse_blocks(raw)
    except MalformedAnswerError:
        return
    assert parse_blocks(format_blocks(exchanges)) == exchanges


def test_a_bare_text() -> None:
    assert parse_text("```\nA dog.\n\nA cat.\n```") == "A dog.\n\nA cat."
    for raw in (" \n", "Question: what?", "A dog.\n===\n", PLAIN):
        with pytest.raises(MalformedAnswerError):
            parse_text(raw)
