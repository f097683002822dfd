"""Whether a sample gives away that its teacher read about the picture instead of seeing it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from opsin.synthesize.checks.words import shown, word_set
from opsin.synthesize.outcome import Finding

if TYPE_CHECKING:
    from opsin.synthesize.subject import Exchange

DISCLOSURE = "disclosure"

_SOURCE = (
    r"(?:captions?|descriptions?|sentences?|annotations?|contexts?|information|metadata|input|prompt|details|data)"
)
_GIVEN = r"(?:provided|given|supplied|available|above|following|aforementioned)"

_ALWAYS = re.compile(
    rf"""\b(?:
    bounding[ -](?:box(?:es)?|areas?|regions?) | bbox(?:es)? | objects?[ ]listed | listed[ ]objects?
    | from[ ]the[ ]context
    | (?:object|box|image|normali[sz]ed|pixel|the|its|their|x|y)[ ]coordinates?
    | coordinates[ ](?:of|for|given|provided|show|indicate|suggest)
    | image[ ]annotations? | annotated[ ](?:objects?|image|picture|as|with)
    | annotations?[ ](?:says?|shows?|of|for|in|indicate)
    | object[ ]detections? | list[ ]of[ ](?:objects|detections)
    | (?:based[ ](?:up)?on|from|according[ ]to|given|in|per|by|using|with)
      [ ](?:the[ ]|this[ ]|these[ ]|any[ ])?{_GIVEN}[ ]{_SOURCE}
    | (?:the|this|these|your|five|all|no|any)[ ]{_GIVEN}[ ]{_SOURCE}
    | {_SOURCE}[ ](?:(?:that|which)[ ])?(?:(?:is|are|was|were|you|i)[ ])?(?:been[ ])?(?:provided|given|supplied)
    )\b""",
    re.IGNORECASE | re.VERBOSE,
)
"""Never said by anyone who looks at a picture."""

_READ = re.compile(
    r"""\b(?:
    captions? | captioned | annotations? | annotated
    | (?:according[ ]to|based[ ]on|mentioned[ ]in|stated[ ]in|described[ ]in|specified[ ]in|listed[ ]in|in)
      [ ](?:the|these|my|your)[ ](?:descriptions?|sentences?|text|information|statements?)
    | (?:the|this|each|one|another|first|second|third|last|these)
      [ ](?:descriptions?|sentences?|text|contexts?|statements?)
      [ ](?:also[ ]|only[ ]|does[ ]not[ ]|do[ ]not[ ]|doesn't[ ]|don't[ ])?
      (?:says?|states?|mentions?|mentioned|describes?|tells?|indicates?|notes?|specif(?:y|ies)|suggests?)
    | (?:is|are|was|were)[ ]not[ ](?:explicitly[ ]|specifically[ ])?(?:mentioned|specified|stated)
    | (?:is|are|was|were)[ ](?:not[ ])?(?:explicitly[ ]|specifically[ ])?(?:mentioned|specified|described|stated)
      [ ](?:in|by)[ ]the[ ](?:text|description|sentences?)
    )\b""",
    re.IGNORECASE | re.VERBOSE,
)
"""Said of something that is read; right in a document, wrong of a picture."""

_SIGNS = (
    *(
        "box",
        "bounding",
        "listed",
        "coord",
        "annotat",
        "caption",
        "descri",
        "sentence",
        "context",
        "informat",
        "metadata",
        "input",
        "prompt",
    ),
    *("detail", "data", "text", "statement", "detection", "list of", "mention", "specif", "stated"),
)
"""Every phrase above holds one of these, and few texts do: to look for them first takes a tenth of the time."""

_BOX = re.compile(r"\bbox(?:es)?\b", re.IGNORECASE)
_WRITTEN = word_set(
    "sign signs says label labels banner banners poster posters billboard written text letters lettering logo graffiti"
)
"""Where the context speaks of these, there is a text in the picture that says something."""
_REQUEST = re.compile(
    r"(?i)^\W*caption\b|\b(?:give|write|provide|suggest|create|compose|generate|make)\b[^.?!]*\bcaption"
)
"""A question may ask for a caption; an answer that speaks of one has seen one."""


def _is_seen(said: str, seen: Collection[str]) -> bool:
    """Whether the words may be about something in the picture: a caption on a sign, the text of a label."""
    return said in seen or (said in ("the text says", "the text say") and not _WRITTEN.isdisjoint(seen))


def disclosure(
    exchanges: Sequence[Exchange], seen: Collection[str], *, documents: bool, grounded: bool
) -> Iterator[Finding]:
    """Words that only somebody uses who was given sentences and boxes.

    `seen` are the words of the context: what is truly in the picture (a cardboard box, a caption on a sign) may be
    spoken of. `documents`: there is text to be read in the picture.
    """
    for number, exchange in enumerate(exchanges, 1):
        for name, text in (("question", exchange.question), ("answer", exchange.answer)):
            folded = text.lower()
            if not any(sign in folded for sign in _SIGNS):
                continue
            found = {match[0].lower(): None for match in _ALWAYS.finditer(text)}
            if not documents:
                request = name == "question" and _REQUEST.search(text) is not None
                read = (match[0].lower() for match in _READ.finditer(text))
                found |= {said: None for said in read if not ((request and "caption" in said) or _is_seen(said, seen))}
            if grounded and not {"box", "boxes"} & set(seen):
                found |= {match[0].lower(): None for match in _BOX.finditer(text) if not any("box" in f for f in found)}
            if found:
                said = ", ".join(shown(phrase) for phrase in found)
                yield Finding(DISCLOSURE, f"{name} {number} says {said}; speak as somebody who only sees the picture")
