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
    r"""^\W*(?:sure|certainly|of[ ]course|absolutely)(?:[!.][ ]|,[ ](?:here|i|let|below|the[ ]following)\b)
    | ^\W*(?:great|good|excellent|interesting)[ ]question\b | \bwould[ ]you[ ]like[ ]me[ ]to\b | [(*]note:
    | ^\W*(?:here[ ]you[ ]go|(?:here[ ]is[ ]|my[ ])?(?:the[ ])?(?:revised|corrected|updated|final)[ ]answer)\b
    | ^\W*ok(?:ay)?,[ ] | \bthe[ ]user[ ](?:wants[ ](?:an?|me|the)|asks|asked|is[ ]asking|provided|gave)\b
    | ^\W*here(?:['’]s|[ ](?:is|are))[ ](?:an?|the|your|my|some)[ ][^.\n]{0,40}
      \b(?:description|conversation|answer|questions?|dialogue)\b
    | \b(?:let[ ]me[ ]know[ ]if|hope[ ](?:this|that)[ ]helps|feel[ ]free[ ]to[ ]ask)\b
    | (?m:^[^\S\n]*(?:\#{1,6}[ ]|[-*•–][ ]|-{3,}[^\S\n]*$)) | \*\*[^*\n]+\*\* | (?<!\w)__[^_\n]+__(?!\w)
    | (?m:^[^\S\n]*[QA][:.][ ])
    """,
    re.IGNORECASE | re.VERBOSE,
)
_LAYOUT = re.compile(
    r"""
      </?(?:a|b|br|code|div|em|h[1-6]|hr|i|img|li|ol|p|pre|span|strong|sub|sup|table|td|th|tr|u|ul)
      (?:[ /][^<>\n]{0,200})?>
    | https?://\S{1,200} | \]\([^()\s]{1,200}\)
    | (?m:^[ ]{0,3}\|[^\n]{0,500}\|[ ]*$) | ```
    | &(?:nbsp|lt|gt|amp|quot|\#\d{1,4}); | \\[(\[] | \$\$ | \\(?:begin|boxed|frac|text|times)\b
    """,
    re.IGNORECASE | re.VERBOSE,
)
_ENDS = ".,;:!?)\"'”’"
"""What stands behind a link, and belongs to the sentence."""


def chatter(exchanges: Sequence[Exchange], there: str) -> Iterator[Finding]:
    """Openings and offers of a chat, headings, lists, bold type, and labels of a further exchange.

    Tags, links, tables and formulas too, unless they stand in the text `there`: a picture may show them.
    """
    for number, exchange in enumerate(exchanges, 1):
        found = _TALKS.search(exchange.answer)
        laid_out = (match for match in _LAYOUT.finditer(exchange.answer) if match[0].rstrip(_ENDS) not in there)
        if match := found or next(laid_out, None):
            yield Finding(
                CHATTER, f"answer {number} holds {shown(match[0].strip())}; write the bare answer, as plain sentences"
            )
