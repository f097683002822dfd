"""Captions and texts in pictures that give orders to whoever reads them, and answers that obey.

A caption comes from anywhere. It is data: prompts delimit it, nothing in it is executed (a teacher has no tools), and
here it is flagged, and an answer that says what it demands is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from opsin.synthesize.checks.control import control
from opsin.synthesize.checks.words import EMPTY, shown, words
from opsin.synthesize.outcome import Finding
from opsin.synthesize.prompting import CLOSE, OPEN

if TYPE_CHECKING:
    from opsin.synthesize.context import Context
    from opsin.synthesize.subject import Exchange

INJECTION = "injection"

_ORDERS = re.compile(
    r"""\b(?:
    (?:ignore|disregard|forget|override|bypass)\b[^.!?\n]{0,30}
      \b(?:above|previous|prior|earlier|preceding|foregoing|instructions?|prompts?|rules)
    | (?:system|developer|hidden|initial)[ ](?:prompt|message|instructions?)
    | (?:you|u)[ ]are[ ]now | from[ ]now[ ]on | new[ ]instructions? | pretend[ ]you
    | (?:output|print|repeat|reply|respond|answer)[ ](?:only|exactly|with|verbatim|the[ ]following)
    | (?:instead|please|must|now)[,]?[ ](?:output|print|repeat|reply|respond|say|write)
    | (?:and|then)[,]?[ ](?:output|print|repeat|reply|respond)
    | do[ ]anything[ ]now | jailbreak | developer[ ]mode
    | (?:reveal|show|tell|leak)[ ](?:me[ ])?(?:your|the)[ ](?:system|prompt|instructions?|api|key|password|secret)
    )\b
    | ^[^\S\n]*(?:system|assistant|user|human)\s*:
    | ^[^\S\n]*(?:={3,}|-{3,}|`{3,}|\#{3,})""",
    re.IGNORECASE | re.VERBOSE | re.MULTILINE,
)

_DEMAND = re.compile(
    r"""\b(?:output|print|repeat|reply|respond|say|write|answer)\b
    (?:\s+(?:only|exactly|verbatim|with|that|the[ ]following|the[ ]words?))*\s*:?\s*
    (?:["'“‘](?P<quoted>[^"'”’\n]{2,200})["'”’]|(?P<bare>[^.!?\n]{2,200}))""",
    re.IGNORECASE | re.VERBOSE,
)

_OBEYS = re.compile(
    rf"""{re.escape(OPEN)}|{re.escape(CLOSE)}
    |\b(?:my|the|your)[ ](?:system[ ](?:prompt|message)|initial[ ]instructions)\b
    |\bas[ ]an?[ ](?:ai|language[ ]model)\b | \b(?:previous|above|prior)[ ]instructions\b""",
    re.IGNORECASE | re.VERBOSE,
)

_ECHO = 6
"""Words in a row that an answer shares with an order, and not with what else is known, before it counts as its echo."""


def suspicious(context: Context) -> tuple[Finding, ...]:
    """What looks like an order in the captions and texts of a picture."""
    return tuple(
        Finding(INJECTION, f"it looks like an order to the teacher: {shown(text)}") for text in _orders(context)
    )


def _orders(context: Context) -> Iterator[str]:
    for text in (*context.captions, context.text, *(thing.name for thing in context.things)):
        if _ORDERS.search(text) or any(control(text, "")):
            yield text


def injection(exchanges: Sequence[Exchange], contexts: Sequence[Context]) -> Iterator[Finding]:
    """Answers that speak of their instructions, or say what an order in the context demands."""
    orders = [text for context in contexts for text in _orders(context)]
    demanded = sorted(_demanded(orders, contexts))
    for number, exchange in enumerate(exchanges, 1):
        for name, text in (("question", exchange.question), ("answer", exchange.answer)):
            if found := _OBEYS.search(text):
                yield Finding(INJECTION, f"{name} {number} speaks of its instructions, {shown(found[0])}")
            if echo := _echo(words(text), demanded):
                yield Finding(INJECTION, f"{name} {number} follows an order that stands in the picture, {shown(echo)}")


def _demanded(orders: Sequence[str], contexts: Sequence[Context]) -> set[tuple[str, ...]]:
    """What the orders want to be said, and their own words; but nothing that the other captions say as well."""
    said = {words(found["quoted"] or found["bare"]) for text in orders for found in _DEMAND.finditer(text)}
    said |= {run for text in orders for run in _runs(words(text))}
    others = (caption for context in contexts for caption in context.captions if caption not in orders)
    harmless = EMPTY.union(*map(words, others)) if orders else EMPTY
    return {run for run in said if not harmless.issuperset(run)}


def _runs(said: tuple[str, ...]) -> set[tuple[str, ...]]:
    return {said[at : at + _ECHO] for at in range(len(said) - _ECHO + 1)}


def _echo(said: tuple[str, ...], demanded: Sequence[tuple[str, ...]]) -> str:
    """A demand that stands in a text."""
    for run in demanded:
        if any(said[at : at + len(run)] == run for at in range(len(said) - len(run) + 1)):
            return " ".join(run)
    return ""
