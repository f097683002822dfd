"""Whether an answer speaks to the one who asked for it, or is laid out for a page: what a sample must not teach."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from opsin.synthesize.checks.words import shown
from opsin.synthesize.outcome import Finding

if TYPE_CHECKING:
    from opsin.synthesize.subject import Exchange

CHATTER = "chatter"

_TALKS = re.compile(
    r"""^\W*(?:sure|certainly|of[ ]course|absolutely)[!,.][ ]
    | ^\W*here(?:['’]s|[ ](?:is|are))[ ](?:an?|the|your|my|some)[ ][^.\n]{0,40}
      \b(?:description|conversation|answer|questions?|dialogue)\b
    | \b(?:let[ ]me[ ]know[ ]if|hope[ ](?:this|that)[ ]helps|feel[ ]free[ ]to[ ]ask)\b
    | (?m:^\s*(?:\#{1,6}[ ]|[-*•][ ]|-{3,}\s*$)) | \*\*[^*\n]+\*\*
    | (?m:^\s*[QA][:.][ ])
    """,
    re.IGNORECASE | re.VERBOSE,
)


def chatter(exchanges: Sequence[Exchange]) -> Iterator[Finding]:
    """Openings and offers of a chat, headings, lists, bold type, and labels of a further exchange."""
    for number, exchange in enumerate(exchanges, 1):
        if found := _TALKS.search(exchange.answer):
            yield Finding(
                CHATTER, f"answer {number} holds {shown(found[0].strip())}; write the bare answer, as plain sentences"
            )
