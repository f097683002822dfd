"""Whether a sample speaks of more things than there are, or tells another number where exactly that is asked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from opsin.synthesize.checks.claims import is_denied, is_supposed
from opsin.synthesize.checks.hallucination import CLAUSE, NOUN
from opsin.synthesize.checks.numbers import COUNTS, numbers
from opsin.synthesize.checks.placed import is_placed
from opsin.synthesize.checks.words import spoken
from opsin.synthesize.outcome import Finding

if TYPE_CHECKING:
    from opsin.synthesize.checks.hallucination import Known
    from opsin.synthesize.subject import Exchange

COUNT = "count"

_HOW_MANY = re.compile(
    rf"(?i)^\W*how many {NOUN} (?:are|can be|can|do)"
    r"(?: there| visible| shown| present| seen| you see| you count)?"
    r"(?: in (?:the|this) (?:picture|image|photo|scene))?\W*$"
)
_FIRST = 4
"""Words of an answer among which the number stands that was asked for."""


def count(exchanges: Sequence[Exchange], known: Known, *, reasoned: bool = False) -> Iterator[Finding]:
    """More things than there are, or another number where exactly that is asked. Fewer may be some of them."""
    for number, exchange in enumerate(exchanges, 1):
        asked = _asked_for(exchange.question, known)
        total = _total(exchange.answer) if asked else 0
        claims = [(total, asked)] if total else list(_claimed(exchange.answer, known, reasoned=reasoned))
        for claimed, things in claims:
            name = next((thing for thing in things if known.counts[thing]), "")
            there = known.counts[name] if name else 0
            wrong = claimed > there or (bool(total) and claimed != there)
            if name and wrong and claimed not in known.told(name):
                yield Finding(COUNT, f"answer {number} says {claimed} for {name!r}, and the picture has {there}")


def _asked_for(question: str, known: Known) -> tuple[str, ...]:
    """The things whose number a question asks for; nothing if it asks for some of them ("dogs with collars")."""
    found = _HOW_MANY.search(question)
    return known.named(spoken(found[1])) if found else ()


def _total(answer: str) -> int:
    """The only number of an answer's first clause; "one man and two women" tells parts of it."""
    said = spoken(next(filter(None, CLAUSE.split(answer)), ""))
    found = [(at, COUNTS[word]) for at, word in enumerate(said) if word in COUNTS]
    return found[0][1] if len(found) == 1 and found[0][0] < _FIRST else 0


def _claimed(answer: str, known: Known, *, reasoned: bool) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Numbers of things that are claimed to be there: not of those that a table seats, or that might come."""
    for clause in CLAUSE.split(answer):
        said = spoken(clause or "")
        for claimed, mention in numbers(said, known.table):
            if is_denied(said, mention, clause) or is_supposed(said, mention, asked=False):
                continue
            if not reasoned or is_placed(said, mention, known.words):
                yield claimed, mention.things
