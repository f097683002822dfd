"""Whether a sample is complete: exchanges as many as its kind asks for, none empty, none twice, questions that end."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from opsin.synthesize.checks.words import shown, words
from opsin.synthesize.outcome import Finding

if TYPE_CHECKING:
    from opsin.synthesize.kinds.base import Expected
    from opsin.synthesize.subject import Exchange

SCHEMA = "schema"

ENDS = frozenset("?.!:;)]}\"'”“’‘»›。？！：；）」』…؟।॥~`*")
UNPUNCTUATED = frozenset({"th", "lo", "km", "my"})
"""Languages that write no mark at the end of a question or a sentence."""
_SEPARATOR = re.compile(r"(?m)^[^\S\n]*(?:={3,}|(?:\*\*|#+ *)?(?:question|answer)(?: *\d+)?:)", re.IGNORECASE)


def form(exchanges: Sequence[Exchange], expected: Expected) -> Iterator[Finding]:
    """Everything that is wrong with the shape of a sample."""
    fewest, most = expected.exchanges
    if not fewest <= len(exchanges) <= most:
        wanted = str(fewest) if fewest == most else f"{fewest} to {most}"
        yield Finding(SCHEMA, f"it has {len(exchanges)} questions with answers, and {wanted} are asked for")
    seen: set[tuple[str, ...]] = set()
    for number, exchange in enumerate(exchanges, 1):
        yield from _one(number, exchange, expected)
        said = (*words(exchange.question), "/", *words(exchange.answer))
        if said in seen:
            yield Finding(SCHEMA, f"exchange {number} stands there twice: {shown(exchange.question)}")
        seen.add(said)


def _one(number: int, exchange: Exchange, expected: Expected) -> Iterator[Finding]:
    question, answer = exchange.question.strip(), exchange.answer.strip()
    for name, text in (("question", question), ("answer", answer)):
        if not text:
            yield Finding(SCHEMA, f"{name} {number} is empty")
        elif found := _SEPARATOR.search(text):
            yield Finding(SCHEMA, f"{name} {number} holds a mark of the form, {shown(found[0])}")
    if question and question[-1] not in ENDS and expected.language.split("-")[0] not in UNPUNCTUATED:
        yield Finding(
            SCHEMA, f"question {number} does not end as a question or an instruction: {shown(question[-60:])}"
        )
