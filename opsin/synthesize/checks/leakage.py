"""Whether a question can be answered without the picture: by itself, or by what was said before."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from opsin.synthesize.checks.words import COLOURS, EMPTY, content, shown, words
from opsin.synthesize.outcome import Finding

if TYPE_CHECKING:
    from opsin.synthesize.subject import Exchange

LEAKAGE = "leakage"

_OFFERS = re.compile(
    r"(?i)\bor\b|\bbetween\b|\bwhich (?:one )?of\b|\boptions?\b|\bchoices?\b|\([a-e]\)|\b[A-E][.)]\s|\n"
)
_ASKS_WHETHER = re.compile(
    r"(?i)^\W*(?:is|are|was|were|do|does|did|can|could|has|have|had|will|would|should|may|might)(?:n't)?\b"
)
_DECIDES = re.compile(
    r"(?i)^\W*(?:yes|no|not|yeah|it|there|this|that|these|they|he|she|possibly|probably|likely|perhaps|maybe)\b"
)
"""Questions that offer answers, and yes/no questions whose answer is a decision, hold their answers by right."""

_ASKS_COLOUR = re.compile(r"(?i)\b(?:what|which) colou?r\b")
_LEAKED = 0.9
"""Share of an answer's telling words that stand in its question; a long answer may add a word that tells nothing."""


def _may_hold_its_answer(exchange: Exchange) -> bool:
    if _OFFERS.search(exchange.question):
        return True
    return _ASKS_WHETHER.search(exchange.question) is not None and _DECIDES.search(exchange.answer) is not None


def _holds_its_answer(exchange: Exchange) -> bool:
    if _may_hold_its_answer(exchange):
        return False
    told, asked = content(exchange.answer), content(exchange.question)
    colours = told & COLOURS
    if _ASKS_COLOUR.search(exchange.question) and colours and colours <= asked - {"orange"}:  # which is a thing as well
        return True
    return bool(told) and len(told & asked) >= _LEAKED * len(told)


def leakage(exchanges: Sequence[Exchange]) -> Iterator[Finding]:
    """Answers that stand in their own questions, and questions that were asked before.

    "Where is it?" may be asked again, of something else.
    """
    asked: dict[tuple[str, ...], int] = {}
    for number, exchange in enumerate(exchanges, 1):
        question = words(exchange.question)
        first = asked.setdefault(question, number)
        if first != number and not (EMPTY.issuperset(question) and number - first > 1):
            yield Finding(LEAKAGE, f"question {number} is question {first} again: {shown(exchange.question)}")
        if _holds_its_answer(exchange):
            yield Finding(LEAKAGE, f"question {number} holds its own answer: {shown(exchange.question)}")
