"""Whether a sample speaks of more things than there are, or tells another number where exactly that is asked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from opsin.synthesize.checks.claims import is_denied, is_supposed
from opsin.synthesize.checks.hallucination import ASKS_WHETHER, CLAUSE, DENIES, NOUN
from opsin.synthesize.checks.numbers import COUNTS, numbers
from opsin.synthesize.checks.placed import is_placed
from opsin.synthesize.checks.words import spoken, word_set
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
_DEFINITE = word_set("the these those")
"""Only with these does a question take a number for granted."""
_CORRECTS = re.compile(rf"{DENIES.pattern}|\b(?:only|just|actually)\b")
_FIRST = 4
"""Words of an answer among which the number stands that was asked for."""


def count(exchanges: Sequence[Exchange], known: Known, *, reasoned: bool = False) -> Iterator[Finding]:
    """More things than there are, also in what a question takes for granted, or another number where that is asked.

    Fewer may be some of them.
    """
    for number, exchange in enumerate(exchanges, 1):
        asked = _asked_for(exchange.question, known)
        total = _total(exchange.answer) if asked else 0
        claims = [(total, asked)] if total else list(_claimed(exchange.answer, known, reasoned=reasoned))
        for claimed, things in claims:
            if (name := _miscounted(claimed, things, known, exact=bool(total))) is not None:
                yield _finding(f"answer {number}", claimed, name, known)
        if not ASKS_WHETHER.search(exchange.question) and not _CORRECTS.search(exchange.answer):
            for claimed, things in _claimed(exchange.question, known, reasoned=reasoned, definite=True):
                if (name := _miscounted(claimed, things, known, exact=False)) is not None:
                    yield _finding(f"question {number}", claimed, name, known)


def _finding(where: str, claimed: int, name: str, known: Known) -> Finding:
    return Finding(COUNT, f"{where} says {claimed} for {name!r}, and the picture has {known.counts[name]}")


def _miscounted(claimed: int, things: tuple[str, ...], known: Known, *, exact: bool) -> str | None:
    """The thing of which there are fewer, or if it must be `exact` another number, which no caption tells either."""
    name = next((thing for thing in things if known.counts[thing]), None)
    if name is None or claimed in known.told(name):
        return None
    if exact and claimed != known.counts[name]:
        return name
    there = max(sum(known.counts[thing] for thing in set(things)), *known.told(name), 0)
    return name if claimed > there else None


def _asked_for(question: str, known: Known) -> tuple[str, ...]:
    """The things whose number a question asks for; nothing if it asks for some of them ("dogs with collars")."""
    found = _HOW_MANY.search(question)
    return known.named(spoken(found[1])) if found else ()


def _total(answer: str) -> int:
    """The only number of an answer's first clause; "one man and two women" tells parts of it."""
    said = spoken(next(filter(None, CLAUSE.split(answer)), ""))
    found = [(at, COUNTS[word]) for at, word in enumerate(said) if word in COUNTS]
    return found[0][1] if len(found) == 1 and found[0][0] < _FIRST else 0


def _claimed(
    text: str, known: Known, *, reasoned: bool, definite: bool = False
) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Numbers of things that are claimed to be there: not of those that a table seats, or that might come."""
    for clause in CLAUSE.split(text):
        said = spoken(clause or "")
        for claimed, mention in numbers(said, known.table):
            if is_denied(said, mention, clause) or is_supposed(said, mention, asked=False):
                continue
            if definite and _DEFINITE.isdisjoint(said[max(0, mention.start - 3) : mention.start]):
                continue
            if not reasoned or is_placed(said, mention, known.words):
                yield claimed, mention.things
