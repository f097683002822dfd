"""Whether a sample tells positions in numbers, as only the boxes of the context have them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from opsin.synthesize.checks.words import shown
from opsin.synthesize.outcome import Finding

if TYPE_CHECKING:
    from opsin.synthesize.subject import Exchange

COORDINATES = "coordinates"

_DIGIT = re.compile(r"\d")
_NUMBER = r"-?(?:\d+(?:\.\d+)?|\.\d+)"
_UNIT = (
    r"(?:\s*(?:to|or|and|-|–)\s*\d[\d.]*)?[ -]?(?:seconds?|minutes?|hours?|(?:kilo|centi)?met(?:er|re)s?|miles?"
    r"|inch(?:es)?|f(?:ee|oo)t|lit(?:er|re)s?|dollars?|euros?|cents?|pounds?|acres?|(?:kilo)?grams?|ounces?"
    r"|lbs?|kg|km|cm|mm|m|s)\b"
)
_POSITIONS = re.compile(
    rf"[\[({{<]\s*{_NUMBER}(?:\s*[,;]\s*{_NUMBER})+\s*[\])}}>]"  # [0.1, 0.25, 0.5, 0.75] or (120, 45)
    rf"|(?<![\d.,$€£¥])0?\.\d+[^\d.]{{1,12}}0?\.\d+(?![\d%]|{_UNIT})"  # from 0.1 to 0.5
    rf"|(?<![\d.,$€£¥])(?:0?\.\d{{2,}}|1\.000?)(?![\d%]|\.\d|{_UNIT})"  # 0.345; not $0.99, 10.25, 0.75 miles
    r"|\b[xy][12]?\s*[=≈:]\s*-?\d[\d.]*|\b[xy][12]?\s+0?\.\d+"
    r"|\b\d+\s*(?:px|pixels)\b"
    r"|\b(?:left|right|top|bottom)\s+0\.\d+\b"
    r"|\b\d+(?:\.\d+)?\s*(?:%|percent)\s+from the (?:left|right|top|bottom)",
    re.IGNORECASE,
)


def coordinates(exchanges: Sequence[Exchange], known: str) -> Iterator[Finding]:
    """Numbers that look like places in a picture, unless they stand in `known`, the captions and texts."""
    for number, exchange in enumerate(exchanges, 1):
        for name, text in (("question", exchange.question), ("answer", exchange.answer)):
            if not _DIGIT.search(text):
                continue
            found = dict.fromkeys(match[0] for match in _POSITIONS.finditer(text) if match[0].lstrip("0") not in known)
            if found:
                told = ", ".join(shown(position) for position in found)
                yield Finding(
                    COORDINATES, f"{name} {number} holds {told}; say where things are in words, without numbers"
                )
