"""Whether a thing is given a colour that no caption has: a teacher that reads captions alone made it up.

"A blue bus" and "the bus is blue" are claims where a bus is known of. What things are by nature is none: white snow.
Where there is only one bus, and captions call it red, it is not blue because a car is.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from opsin.synthesize.checks.hallucination import HALLUCINATION
from opsin.synthesize.checks.words import COLOURS, EMPTY, spoken, word_set
from opsin.synthesize.outcome import Finding

if TYPE_CHECKING:
    from collections.abc import Mapping, Set

    from opsin.synthesize.checks.hallucination import Known
    from opsin.synthesize.subject import Exchange

_ALIKE = {
    "gray": word_set("grey silver black white"),
    "grey": word_set("gray silver black white"),
    "silver": word_set("gray grey white"),
    "white": word_set("beige gray grey silver"),
    "beige": word_set("white brown yellow"),
    "brown": word_set("beige orange red black"),
    "orange": word_set("brown red yellow"),
    "red": word_set("orange pink brown"),
    "yellow": word_set("orange beige"),
    "pink": word_set("red purple"),
    "purple": word_set("pink blue"),
    "blue": word_set("purple green"),
    "green": word_set("blue"),
    "black": word_set("gray grey brown"),
}
"""Colours that may be called by each other's names."""
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
_NO_NOUNS = EMPTY | COLOURS | _UNSURE | word_set("as at by but for from in near next off on out over under up with")
_ASKS = re.compile(r"(?i)\b(?:what|which) colou?r")
_CLAUSE = re.compile(r"(?<![.!?;:,\n])[.!?;:,\n]+(?=\s|$)")
_NAMED = 4
"""Words behind a colour among which its thing stands: "a white double decker bus"."""


def colours(exchanges: Sequence[Exchange], known: Known) -> Iterator[Finding]:
    """Colours of things, in answers and in what questions presuppose."""
    there, told = known.words, _told(known)
    for number, exchange in enumerate(exchanges, 1):
        asked = spoken(exchange.question) if _ASKS.search(exchange.question) else ()
        for name, found in (
            ("question", _invented(exchange.question, there, ())),
            ("answer", _invented(exchange.answer, there, asked)),
        ):
            if first := next(found, None):
                thing, colour = first
                yield Finding(HALLUCINATION, f"{name} {number} calls {thing!r} {colour}, which no caption does")
            elif first := next(_recoloured(getattr(exchange, name), told), None):
                thing, colour = first
                yield Finding(
                    HALLUCINATION,
                    f"{name} {number} calls {thing!r} {colour}, which is {' or '.join(sorted(told[thing]))}",
                )


def _told(known: Known) -> dict[str, set[str]]:
    """The colours that captions give to things, by their nouns, where there is only one of them."""
    told: dict[str, set[str]] = defaultdict(set)
    for caption in known.captions:
        for thing, colours_of in _pairs(spoken(caption)):
            if any(known.counts[name] == 1 for name in known.named((thing,))):
                told[thing] |= colours_of
    return dict(told)


def _pairs(said: tuple[str, ...]) -> Iterator[tuple[str, frozenset[str]]]:
    """Each noun with its colours: of "a black and white double decker bus", and of "the bus is black and white"."""
    at = 0
    while at < len(said):
        behind = at
        while behind < len(said) and (said[behind] in COLOURS or (behind > at and said[behind] == "and")):
            behind += 1
        if behind > at:
            named = said[behind : behind + _NAMED]
            end = next((n for n, one in enumerate(named) if _ends_name(one)), len(named))
            if end > 0 and (end < _NAMED or behind + end == len(said)):
                yield named[end - 1], COLOURS & set(said[at:behind])
            elif end == 0 and _is_subject(said, at):
                yield said[at - 2], COLOURS & set(said[at:behind])
        at = behind + 1


def _ends_name(word: str) -> bool:
    return word in _NO_NOUNS or word.endswith(("ing", "ed"))


def _is_subject(said: tuple[str, ...], at: int) -> bool:
    """Whether a noun and "is" stand before this place, and no other one: not "the sky above the beach is"."""
    return at > 1 and said[at - 1] in _BE and _BEHIND.isdisjoint(said[: at - 2])


def _recoloured(text: str, told: Mapping[str, Set[str]]) -> Iterator[tuple[str, str]]:
    """Each (thing, colour) that is claimed where captions give the thing another one."""
    for clause in _CLAUSE.split(text) if told else ():
        said = spoken(clause)
        if _UNSURE.isdisjoint(said) and said[:1] and said[0] not in _BE:
            for thing, colours_of in _pairs(said):
                alike = colours_of.union(*(_ALIKE[colour] for colour in colours_of))
                if thing in told and alike.isdisjoint(told[thing]):
                    yield thing, " and ".join(sorted(colours_of))


def _invented(text: str, there: Set[str], asked: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Each (thing, colour) that is claimed and not known; a question whether it is so claims nothing.

    Where the colour is `asked` for, in these words, the answer need not name the thing.
    """
    for clause in _CLAUSE.split(text):
        said = spoken(clause)
        if COLOURS.isdisjoint(said) or not _UNSURE.isdisjoint(said) or said[0] in _BE:
            continue
        for at, word in enumerate(said):
            if word in COLOURS and word not in there and _OTHER_SPELLING.get(word) not in there:
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
    if _is_subject(said, at) and said[at - 2] in there - _NO_NOUNS:
        return said[at - 2]
    return ""
