"""Whether answers are as long as their kind asks for, and do not go round in circles."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from opsin.synthesize.checks.form import ENDS, UNPUNCTUATED
from opsin.synthesize.checks.words import number_of_words, sentences, shown, words
from opsin.synthesize.outcome import Finding

if TYPE_CHECKING:
    from opsin.synthesize.kinds.base import Expected
    from opsin.synthesize.subject import Exchange

LENGTH = "length"
REPETITION = "repetition"
CUT = "cut"

MOST_OF_QUESTION = 300
"""Words."""
_RUN = 4
"""Words of a run that is looked for again, and the fewest of a sentence that must not be there twice."""
_FEWEST_AT_ONCE = 4
"""Words of a sentence that must not be said twice in a row."""
_FEWEST_WORDS = 16
_FEWEST_OF_SENTENCE = 12
"""Words from which an answer is a sentence: shorter ones are often none ("a dog and two cats")."""
_LOOP = 0.4
"""Share of runs that were there before, from which a text is a loop; of a list ("there is a ...") it is about 0.25."""
_GOES_ON = re.compile(r"\s(?:a|an|the|[Aa]nd|or|its|their|my|your|because)$")
"""Words that end no English sentence, however short; "Plan A" ends in none."""
_LIST = re.compile(r"^[^.!?:]*,[^.!?:]*\band (?:an?|the|some|several|two|three) (?:[\w-]+ ){0,2}[\w-]+$")
_LONG_WORD = 25
"""Characters: hardly a text has words that are so long on average."""
_SAME_CHARACTER = re.compile(r"([^\s\d.=_*-])\1{19,}")


def too_long(exchanges: Sequence[Exchange], expected: Expected) -> Iterator[Finding]:
    """Questions and answers of too many words. Nobody should read them further: some checks take the square of that."""
    fewest, most = expected.words
    for number, exchange in enumerate(exchanges, 1):
        if (count := _size(exchange.question)) > MOST_OF_QUESTION:
            yield Finding(LENGTH, f"question {number} has {count:,} words, and {MOST_OF_QUESTION} are the most")
        if (count := _size(exchange.answer)) > most:
            yield Finding(LENGTH, f"answer {number} has {count:,} words, and {fewest:,} to {most:,} are asked for")


def _size(text: str) -> int:
    """Words, or as many as its characters would make: a line of dashes has none."""
    return max(number_of_words(text), len(text) // _LONG_WORD)


def too_short(exchanges: Sequence[Exchange], expected: Expected) -> Iterator[Finding]:
    """Answers of too few words."""
    fewest, most = expected.words
    for number, exchange in enumerate(exchanges, 1):
        if (count := number_of_words(exchange.answer)) < fewest:
            yield Finding(LENGTH, f"answer {number} has {count:,} words, and {fewest:,} to {most:,} are asked for")


def unfinished(exchanges: Sequence[Exchange], expected: Expected) -> Iterator[Finding]:
    """Answers that break off in the middle of a sentence, whatever the endpoint says of their end."""
    code = expected.language.split("-")[0]
    if code in UNPUNCTUATED:
        return
    is_english = code == "en"
    for number, exchange in enumerate(exchanges, 1):
        answer = exchange.answer.strip()
        is_long = number_of_words(answer) >= _FEWEST_OF_SENTENCE
        goes_on = is_english and _GOES_ON.search(answer) is not None
        if answer.endswith(":") or goes_on or (is_long and not _is_finished(answer)):
            yield Finding(CUT, f"answer {number} breaks off in a sentence: {shown(answer[-60:])}")


def _is_finished(answer: str) -> bool:
    """Whether it ends in a sign that ends a sentence, or a smile; or it is a list of things and no sentence."""
    return (
        answer[-1] in ENDS or unicodedata.category(answer[-1]) in ("So", "Mn", "Cf") or _LIST.search(answer) is not None
    )


def repetition(exchanges: Sequence[Exchange]) -> Iterator[Finding]:
    """Answers that say the same over and over, as a model does that has lost its way."""
    for number, exchange in enumerate(exchanges, 1):
        if again := _again(exchange.answer):
            yield Finding(REPETITION, f"answer {number} repeats {shown(again)}")


def _again(text: str) -> str:
    """What is repeated, or nothing."""
    if found := _SAME_CHARACTER.search(text):
        return found[0]
    said = words(text)
    plain = [" ".join(words(sentence)) for sentence in sentences(text)]
    for one, following in pairwise(plain):
        if one == following and number_of_words(one) >= _FEWEST_AT_ONCE:
            return one
    if len(said) < _FEWEST_WORDS:
        return ""
    sentence, count = Counter(plain).most_common(1)[0]
    if count > 1 and sentence.count(" ") >= _RUN - 1:
        return sentence
    runs = Counter(zip(said, said[1:], said[2:], said[3:], strict=False))
    again = 1 - len(runs) / runs.total()
    return " ".join(runs.most_common(1)[0][0]) if again > _LOOP else ""
