"""Whether a thing is given a colour that no caption has: a teacher that reads captions alone made it up.

"A blue bus" and "the bus is blue" are claims where a bus is known of. What things are by nature is none: white snow.
Where there is only one bus, and captions call it red, it is not blue because a car is.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from opsin.synthesize.checks.hallucination import DENIES, HALLUCINATION
from opsin.synthesize.checks.words import BE, COLOURS, EMPTY, spoken, word_at, word_set
from opsin.synthesize.outcome import Finding

if TYPE_CHECKING:
    from collections.abc import Mapping, Set

    from opsin.synthesize.checks.hallucination import Known
    from opsin.synthesize.subject import Exchange

_ALIKE = tuple(
    map(
        word_set,
        (
            *("gray grey silver white", "gray grey silver black", "white beige yellow", "beige brown orange"),
            *("brown black", "brown red", "orange red", "orange yellow", "yellow green", "pink red", "pink purple"),
            *("purple blue", "blue green"),
        ),
    )
)
"""Colours of each line may be called by one another's names."""
_OTHER_SPELLING = {"grey": "gray", "gray": "grey"}
_BY_NATURE = {
    "red": word_set("brick fire hydrant light stop tomato wine"),
    "blue": word_set("light ocean sea sky water"),
    "green": word_set(
        "bean broccoli field foliage grass grassy hill lawn leaf leaves lettuce light pasture plant salad tennis "
        "tree vegetable"
    ),
    "yellow": word_set("banana bus cab lemon light line school taxi tennis"),
    "orange": word_set("carrot light orange pumpkin"),
    "brown": word_set("bread dirt giraffe soil wood wooden"),
    "black": word_set("bear coffee line olive stripe tire zebra"),
    "white": word_set("bread cloud letter line mountain paper rice slope snow stripe tooth teeth wave wine zebra"),
    "gray": word_set("asphalt cloud concrete elephant pavement road rock sidewalk sky stone street"),
    "silver": word_set("spoon fork knife"),
}
_UNSURE = word_set("no not never neither nor if unless may might could would should can like any or perhaps probably")
_BEHIND = word_set("in on above near behind of beside under over beneath around at by with next")
_NO_NOUNS = EMPTY | COLOURS | _UNSURE | word_set("as at by but for from in near next off on out over under up with")
_ASKS = re.compile(r"(?i)\b(?:what|which) colou?r")
_CLAUSE = re.compile(r"(?<![.!?;:,\n])[.!?;:,\n]+(?=\s|$)")
_ARTICLES = word_set("a an the this that yes no")
_SHOWN = word_set("photo photograph picture image scene")
_ENDS_NAME = _NO_NOUNS | word_set(
    "parked stopped standing sitting lying driving waiting walking resting sleeping flying"
)
_NAMED = 4
"""Words behind a colour among which its thing stands: "a white double decker bus"."""


def colours(exchanges: Sequence[Exchange], known: Known) -> Iterator[Finding]:
    """Colours of things, in answers and in what questions presuppose."""
    there, told = known.words, _told(known)
    for number, exchange in enumerate(exchanges, 1):
        asked = spoken(exchange.question) if _ASKS.search(exchange.question) else ()
        corrected = DENIES.search(exchange.answer) is not None
        for name, text, asked_for, colours_told in (
            ("question", exchange.question, (), {} if corrected else told),
            ("answer", exchange.answer, asked, told),
        ):
            clauses = _claiming(text)
            if first := next(_invented(clauses, there, asked_for), None):
                thing, colour = first
                yield Finding(HALLUCINATION, f"{name} {number} calls {thing!r} {colour}, which no caption does")
            elif first := next(_recoloured(clauses, colours_told), None):
                thing, colour = first
                right = " or ".join(sorted(told[thing]))
                yield Finding(HALLUCINATION, f"{name} {number} calls {thing!r} {colour}, which is {right}")


def _claiming(text: str) -> list[tuple[str, ...]]:
    """The words of each clause that claims a colour; a question whether it is so claims none."""
    return [
        said
        for said in map(spoken, _CLAUSE.split(text))
        if not COLOURS.isdisjoint(said) and _UNSURE.isdisjoint(said) and said[0] not in BE
    ]


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
        while said[behind : behind + 1] and (said[behind] in COLOURS or _joins(said, at, behind)):
            behind += 1
        if behind > at:
            named = said[behind : behind + _NAMED]
            end = next((n for n, one in enumerate(named) if one in _ENDS_NAME), len(named))
            stop = word_at(said, behind + end)
            if 0 < end < _NAMED and (end < len(named) or not stop) and stop not in _SHOWN:
                yield named[end - 1], COLOURS & set(said[at:behind])
            elif behind == len(said) and _is_subject(said, at):
                yield said[at - 2], COLOURS & set(said[at:behind])
        at = behind + 1


def _joins(said: tuple[str, ...], first: int, at: int) -> bool:
    """Whether there is an "and" between colours."""
    return at > first and said[at] == "and" and not COLOURS.isdisjoint(said[at + 1 : at + 2])


def _is_subject(said: tuple[str, ...], at: int) -> bool:
    """Whether before this place a noun and "is" stand, and at most an article: not "the car behind the bus is"."""
    return 1 < at < _NAMED and said[at - 1] in BE and _ARTICLES.issuperset(said[: at - 2])


def _recoloured(clauses: Sequence[tuple[str, ...]], told: Mapping[str, Set[str]]) -> Iterator[tuple[str, str]]:
    """Each (thing, colour) that is claimed where captions give the thing another one."""
    for said in clauses:
        for thing, colours_of in _pairs(said):
            alike = colours_of.union(*(line for line in _ALIKE if line & colours_of))
            if thing in told and alike.isdisjoint(told[thing]):
                yield thing, " and ".join(sorted(colours_of))


def _invented(clauses: Sequence[tuple[str, ...]], there: Set[str], asked: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Each (thing, colour) that is claimed and not known.

    Where the colour is `asked` for, in these words, the answer need not name the thing.
    """
    for said in clauses:
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
    is_subject = at > 1 and _BEHIND.isdisjoint(said[: at - 2])  # not "the sky above the beach is blue"
    if is_subject and said[at - 1] in BE and said[at - 2] in there - _NO_NOUNS:
        return said[at - 2]
    return ""
