"""All checks on an answer: first as it came, then as the sample that was read from it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

from opsin.synthesize.checks.chatter import chatter
from opsin.synthesize.checks.colours import colours
from opsin.synthesize.checks.concepts import concepts
from opsin.synthesize.checks.control import control
from opsin.synthesize.checks.coordinates import coordinates
from opsin.synthesize.checks.count import count
from opsin.synthesize.checks.disclosure import disclosure
from opsin.synthesize.checks.echo import echo
from opsin.synthesize.checks.form import SCHEMA, form
from opsin.synthesize.checks.hallucination import Known, hallucination
from opsin.synthesize.checks.injection import injection
from opsin.synthesize.checks.language import language
from opsin.synthesize.checks.leakage import leakage
from opsin.synthesize.checks.length import CUT, repetition, too_long, too_short, unfinished
from opsin.synthesize.outcome import Finding
from opsin.synthesize.subject import Exchange

if TYPE_CHECKING:
    from opsin.synthesize.check_values import Checks
    from opsin.synthesize.context import Context, Vocabulary
    from opsin.synthesize.kinds.base import Expected
    from opsin.synthesize.request import Finish

EMPTY, REFUSAL, SIZE = "empty", "refusal", "size"

MOST_CHARACTERS = 100_000
"""Of a whole answer: some hundred times what any kind asks for."""

_HELP = (
    r"(?:(?:assist|help[ ](?:with|you)|provide|describe|answer|process)\b"
    r"|(?:see|view)[ ](?:(?:the|this|any|an?)[ ])?(?:images?|pictures?|photos?)\b)"
)
_REFUSES = re.compile(
    rf"""^\W*(?:
    i(?:['’]m|[ ]am)[ ](?:(?:very|so|really)[ ])?
      (?:sorry\b|afraid[ ](?:that[ ])?i\b|(?:unable|not[ ]able)[ ]to[ ]{_HELP})
    | sorry,[ ] | unfortunately,[ ]i\b | as[ ]an?[ ](?:ai|text-based|language[ ]model)\b
    | i[ ](?:cannot|can['’]t|can[ ]not|won['’]t)[ ]{_HELP}
    | i[ ]do(?:[ ]not|n['’]t)[ ](?:have|see)[ ](?:access|the[ ]ability|an?[ ]image|any[ ]image)
    )""",
    re.IGNORECASE | re.VERBOSE,
)

_SPACES = re.compile(r"\s{40,}")

REPAIR = (
    "That answer cannot be used:\n{findings}\n"
    "Write the whole answer again, in the same form and with everything else that was asked for. "
    "Do not mention these remarks, and do not apologise."
)
MOST_TOLD = 12
"""Findings that a teacher is told of at once."""

_BRACKETS = str.maketrans("<>|[]", "‹›¦()")
"""A server could take a mark that is quoted to the teacher for its own."""


def examine_raw(raw: str, finish: Finish) -> tuple[Finding, ...]:
    """What is wrong with an answer before it is read; then there is no use in reading it."""
    if len(raw) > MOST_CHARACTERS:
        return (Finding(SIZE, f"the answer has {len(raw):,} characters, and at most {MOST_CHARACTERS:,} are read"),)
    if finish == "malformed":
        return (Finding(SCHEMA, "the endpoint sent something else than one answer of text"),)
    if finish == "refusal" or _REFUSES.search(raw):
        return (Finding(REFUSAL, "the answer is a refusal; the task is harmless, and about what was described above"),)
    if finish == "length":
        return (Finding(CUT, f"the answer was cut off after {len(raw):,} characters; be briefer"),)
    if not raw.strip():
        return (Finding(EMPTY, "the answer is empty"),)
    return tuple(control(raw, "the answer"))


def examine(
    exchanges: Sequence[Exchange],
    *,
    expected: Expected,
    contexts: Sequence[Context],
    vocabulary: Vocabulary,
    options: Checks,
    finish: Finish,
) -> tuple[Finding, ...]:
    """Everything that is wrong with a sample, or nothing.

    Raises:
        RecipeError: the recipe's file of synonyms cannot be read.
    """
    return tuple(_findings(exchanges, expected, contexts, vocabulary, options, finish))


def _findings(
    exchanges: Sequence[Exchange],
    expected: Expected,
    contexts: Sequence[Context],
    vocabulary: Vocabulary,
    options: Checks,
    finish: Finish,
) -> Iterator[Finding]:
    if finish != "stop":
        yield Finding(CUT, "the answer did not come to its end")
    exchanges = [Exchange(_squeezed(one.question), _squeezed(one.answer)) for one in exchanges]
    transcripts = {_squeezed(context.text) for context in contexts if context.text}
    said = [exchange for exchange in exchanges if exchange.answer not in transcripts]
    known_ones = len(exchanges) - len(said)  # read from the source: no teacher wrote them, and none could mend them
    fewest, most = expected.exchanges
    if excess := tuple(too_long(said, expected)):
        yield from excess
        return
    yield from form(said, replace(expected, exchanges=(max(0, fewest - known_ones), most)))
    for number, exchange in enumerate(said, 1):
        if _REFUSES.search(exchange.answer):
            yield Finding(REFUSAL, f"answer {number} is a refusal: {exchange.answer[:60]!r}")
        yield from control(exchange.question, f"question {number}")
        yield from control(exchange.answer, f"answer {number}")
    known = Known(contexts, concepts(vocabulary, options.synonyms))
    documents = any(context.text for context in contexts)
    yield from disclosure(exchanges, known.words, documents=documents, grounded=expected.grounded)
    if expected.grounded:
        yield from echo(exchanges, contexts)
    there = " ".join(text for one in contexts for text in (*one.captions, one.text))
    if expected.free_of_positions:
        yield from coordinates(exchanges, there)
    if is_looked_up(expected, options):
        refuses = options.hallucination == "refuse"
        found = chain(
            hallucination(exchanges, known, reasoned=expected.reasoned),
            count(exchanges, known, reasoned=expected.reasoned),
            colours(exchanges, known),
        )
        yield from (replace(finding, refuses=refuses) for finding in found)
    yield from language(exchanges, expected.language, there, grounded=expected.grounded)
    yield from too_short(exchanges, expected)
    yield from repetition(said)
    if not documents:  # there, a question may quote what is written around its answer, and an answer a heading
        yield from leakage(exchanges)
        yield from unfinished(exchanges, expected)
    yield from injection(said, contexts)
    yield from chatter(said, there)


def _squeezed(text: str) -> str:
    """Without long runs of spaces, in which some patterns would look for a beginning at every single one."""
    return _SPACES.sub(" ", text)


def is_looked_up(expected: Expected, options: Checks) -> bool:
    """Whether the things that a kind's samples mention are looked up in the contexts: words for things are English."""
    return expected.grounded and options.hallucination != "off" and expected.language.split("-")[0] == "en"


def harmless(raw: str) -> str:
    """A refused answer as it is shown to the teacher again: no mark of a template, no control character."""
    return "".join(sign for sign in raw.translate(_BRACKETS) if sign.isprintable() or sign == "\n")


def repair_text(findings: Sequence[Finding]) -> str:
    """What a teacher is told who is asked again: what is wrong, and to say nothing about being told."""
    told = list(dict.fromkeys(f"- {finding.text.translate(_BRACKETS)}" for finding in findings if finding.refuses))
    if len(told) > MOST_TOLD:
        told = [*told[:MOST_TOLD], f"- and {len(told) - MOST_TOLD} more of that sort"]
    return REPAIR.format(findings="\n".join(told))
