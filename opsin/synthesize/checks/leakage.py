"""Whether a question can be answered without the picture: by itself, or by what was said before."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from opsin.synthesize.checks.words import content, shown, words
from opsin.synthesize.outcome import Finding

if TYPE_CHECKING:
    from opsin.synthesize.subject import Exchange

LEAKAGE = "leakage"

CHOICE = re.compile(
    r"(?i)^\W*(?:is|are|was|were|do|does|did|can|could|has|have|had|will|would|should|may|might)(?:n't)?\b"
    r"|\bor\b|\boptions?\b|\bchoices?\b|\([a-e]\)|\b[A-E][.)]\s|\n"
)
"""Yes/no questions, and those that offer the answers: these hold their answers by right."""

_LEAKED = 0.9
"""Share of an answer's telling words that stand in its question; a long answer may add a word that tells nothing."""


def leakage(exchanges: Sequence[Exchange]) -> Iterator[Finding]:
    """Answers that stand in their own questions, and questions that were asked before."""
    asked: dict[tuple[str, ...], int] = {}
    for number, exchange in enumerate(exchanges, 1):
        question = words(exchange.question)
        first = asked.setdefault(question, number)
        if first != number:
            yield Finding(LEAKAGE, f"question {number} is question {first} again: {shown(exchange.question)}")
        told = content(exchange.answer)
        if (
            told
            and not CHOICE.search(exchange.question)
            and len(told & content(exchange.question)) >= _LEAKED * len(told)
        ):
            yield Finding(LEAKAGE, f"question {number} holds its own answer: {shown(exchange.question)}")
