"""How many of a thing a text speaks of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from opsin.synthesize.checks.concepts import may_follow_noun
from opsin.synthesize.checks.words import word_at
from opsin.synthesize.english import IRREGULAR, NUMBERS

if TYPE_CHECKING:
    from opsin.synthesize.checks.concepts import Concepts, Mention

_TEENS = (
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen"),
    *("sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = {
    "twenty": 20,
    "thirty": 30,
    "forty": 40,
    "fifty": 50,
    "sixty": 60,
    "seventy": 70,
    "eighty": 80,
    "ninety": 90,
}
COUNTS = {
    **{word: value for value, word in enumerate((*NUMBERS, *_TEENS)) if value > 0},
    **_TENS,
    "hundred": 100,
    **{str(value): value for value in range(1, 1000)},
}
"""Words for numbers."""
_AT_LEAST = {"both": 2, "several": 2, "trio": 3, "dozen": 12, "dozens": 24, "hundreds": 200}
_ORDINALS = {"second": 2, "third": 3, "fourth": 4, "fifth": 5}
"""Right before one of things, these tell that there are so many: "the second dog", "there is a second dog"."""
_BEFORE_NOUN = 2
"""Words before a thing among which its number is looked for: "two brown dogs"."""
_PLURALS = frozenset(IRREGULAR.values())
_SINGULARS = frozenset(("bus", "skis", "scissors", "glass", "grass", "dress", "canvas", "lens", *IRREGULAR))


def numbers(said: tuple[str, ...], table: Concepts) -> Iterator[tuple[int, Mention]]:
    """Numbers over one of things: "three brown dogs", "a trio of dogs", "a second dog"; not "a 12-inch pizza"."""
    for mention in table.mentions(said, strict=True):
        if (count := _number(said, mention)) > 1:  # "one" is also a pronoun
            yield count, mention


def number_at(said: tuple[str, ...], at: int) -> int:
    """The number that a word tells, with the tens before it: "twenty-five" is two words; 0 if it is none."""
    number = COUNTS.get(said[at], 0)
    return number + _TENS.get(said[at - 1], 0) if 0 < number < 10 and at else number


def is_several(noun: str) -> bool:
    """Whether a noun may be a plural."""
    return noun in _PLURALS or (noun.endswith("s") and noun not in _SINGULARS)


def _ordinal(before: tuple[str, ...]) -> int:
    """Only of what is there: another train may come, and a second cup of coffee may be had."""
    there_is = before[:2] == ("there", "is")
    if before[-2:-1] == ("the",) or (there_is and before[-2:-1] == ("a",)):
        return _ORDINALS.get(before[-1], 1)
    return 2 if there_is and before[2:] == ("another",) else 1


def _number(said: tuple[str, ...], mention: Mention) -> int:
    before = said[: mention.start]
    if not is_several(said[mention.end - 1]):
        return _ordinal(before) if may_follow_noun(word_at(said, mention.end)) else 1
    if before[-1:] == ("of",):
        return _AT_LEAST.get(before[-2] if len(before) > 1 else "", 1)
    for at, word in reversed(list(enumerate(before))[-_BEFORE_NOUN:]):
        if word in COUNTS or word in _AT_LEAST:
            return number_at(said, at) or _AT_LEAST[word]
        if word in ("of", "and", "the", "to", "or"):
            break
    return 1
