"""Whether a thing is given a colour that no caption has: a teacher that reads captions alone made it up.

"A blue bus" and "the bus is blue" are claims where a bus is known of. What things are by nature is none: white snow.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from opsin.synthesize.checks.hallucination import HALLUCINATION
from opsin.synthesize.checks.words import EMPTY, spoken, word_set
from opsin.synthesize.outcome import Finding

if TYPE_CHECKING:
    from collections.abc import Set

    from opsin.synthesize.subject import Exchange

_COLOURS = word_set("red blue green yellow orange purple pink brown black white gray grey silver beige")
_OTHER_SPELLING = {"grey": "gray", "gray": "grey"}
_BY_NATURE = {
    "red": word_set("brick fire hydrant light stop tomato wine"),
    "blue": word_set("light ocean sea sky water"),
    "green": word_set(
        "bean broccoli field foliage grass grassy hill lawn leaf leaves lettuce light pasture plant salad tree "
        "vegetable"
    ),
    "yellow": word_set("banana bus cab lemon light line school taxi"),
    "orange": word_set("carrot light orange pumpkin"),
    "brown": word_set("bread dirt giraffe soil wood wooden"),
    "black": word_set("bear coffee line olive stripe tire zebra"),
    "white": word_set("bread cloud line mountain paper rice slope snow stripe tooth teeth wave wine zebra"),
    "gray": word_set("cloud elephant pavement road sky"),
    "silver": word_set("spoon fork knife"),
}
_UNSURE = word_set("no not never neither nor if unless may might could would should can like any or perhaps probably")
_BE = word_set("is are was were")
_BEHIND = word_set("in on above near behind of beside under over beneath around at by with next")
_NO_NOUNS = EMPTY | _COLOURS | _UNSURE | word_set("as at by but for from in near next off on out over under up with")
_ASKS = re.compile(r"(?i)\b(?:what|which) colou?r")
_CLAUSE = re.compile(r"(?<![.!?;:,\n])[.!?;:,\n]+(?=\s|$)")


def colours(exchanges: Sequence[Exchange], there: Set[str]) -> Iterator[Finding]:
    """Colours of things, in answers and in what questions presuppose; `there` are all words that are known."""
    for number, exchange in enumerate(exchanges, 1):
        asked = spoken(exchange.question) if _ASKS.search(exchange.question) else ()
        for name, found in (
            ("question", _invented(exchange.question, there, ())),
            ("answer", _invented(exchange.answer, there, asked)),
        ):
            if first := next(found, None):
                thing, colour = first
                yield Finding(HALLUCINATION, f"{name} {number} calls {thing!r} {colour}, which no caption does")


def _invented(text: str, there: Set[str], asked: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Each (thing, colour) that is claimed and not known; a question whether it is so claims nothing.

    Where the colour is `asked` for, in these words, the answer need not name the thing.
    """
    for clause in _CLAUSE.split(text):
        said = spoken(clause)
        if _COLOURS.isdisjoint(said) or not _UNSURE.isdisjoint(said) or said[0] in _BE:
            continue
        for at, word in enumerate(said):
            if word in _COLOURS and word not in there and _OTHER_SPELLING.get(word) not in there:
                thing = _coloured(said, at, there) or ("it" if asked else "")
                by_nature = _BY_NATURE.get(word.replace("grey", "gray"), frozenset())
                named = (thing, *asked)
                if thing and by_nature.isdisjoint({*named, *(one.removesuffix("s") for one in named)}):
                    yield thing, word


def _coloured(said: tuple[str, ...], at: int, there: Set[str]) -> str:
    """The known thing that a colour is said of, if there is one."""
    for word in said[at + 1 : at + 3]:
        if word in _NO_NOUNS or word.endswith("ing"):
            break
        if word in there:
            return word
    is_subject = at > 1 and _BEHIND.isdisjoint(said[: at - 2])  # not "the sky above the beach is blue"
    if is_subject and said[at - 1] in _BE and said[at - 2] in there - _NO_NOUNS:
        return said[at - 2]
    return ""
