"""How a thing is spoken of: as one that is there, or denied, supposed, compared with, or meant in general.

Clauses are read by words alone, from what stands around the thing.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING

from opsin.synthesize.checks.concepts import DETERMINERS
from opsin.synthesize.checks.words import BE, word_at, word_set

if TYPE_CHECKING:
    from opsin.synthesize.checks.concepts import Mention

_NOTS = word_set("no not never without neither nor none nothing cannot lacks lack lacking absence")
_NOT_AFTER = re.compile(
    r"\b(?:absent|missing|nowhere|not (?:visible|present|there|in|shown|seen|part|among|any)"
    r"|(?:cannot|can't|can not|couldn't) (?:be )?see)|n't (?:visible|present|there|in|any|shown|seen)\b"
)
_MODALS = word_set("might may could would should")
_CONDITIONS = word_set("if unless imagine suppose assume")
_HEDGES = word_set("perhaps probably possibly maybe likely potentially")
_SUPPOSED = _MODALS | _CONDITIONS | _HEDGES | word_set("usually typically often generally commonly sometimes e.g")
_PERCEIVED = word_set("be see also")
"""Behind "can", these tell what is there: "a dog can be seen", "one can see a dog"."""
_THOUGHT = re.compile(
    r"(?:suggest|indicat|imply|implies|infer|help|allow|enabl|protect|provid|promot|support|encourag|prevent|hinder"
    r"|ensur|attract|invit|cater|appeal|prefer|associat|benefit|contribut|rely|relies)\w{0,3}"
)
"""What a scene is good for, or a sign of: things without a determiner behind it are things in general ("an umbrella
protects people from the sun")."""
_DEFINITE = word_set("the this that these those his her its their my your our")
_INFERRED = re.compile(r"\b(?:suggest|indicat|impl)\w* that\b")
"""What a scene lets one guess: of people, that somebody was here, or works here."""
_DID = word_set("has had left")
_SOMEONE = word_set("someone somebody")
_SUITED = re.compile(
    r"\b(?:perfect|ideal|great|good|excellent|suitable|popular|choice|place|spot|space|setting|environment) for\b"
)
"""Behind these a text speaks of what may be, to the end of the clause: "ideal for hosting friends"."""
_WINDOW = 8
"""Words before a thing among which such a verb is looked for, since it may have a list: "supporting insects, birds, and
other wildlife"."""
_OF_FOR = 4
"""The same, behind "for": "for friends, couples and families"."""
_ABOARD = word_set("driver drivers passenger passengers")
_ALIKE = word_set("like unlike than resembling resembles resemble")
_ALIKE_AS = word_set("such used serve serves serving served act acts acting same known doubles doubling")
_USES = word_set("use uses used using treat treats treated treating")
_JOINS = word_set("and or")
_TOGETHER = (("belong", "with"), ("belongs", "with"), ("similar", "to"), ("compared", "to"), ("compared", "with"))


def is_denied(said: tuple[str, ...], mention: Mention, clause: str) -> bool:
    """Whether it is said not to be there; `clause` is the text of the words."""
    for at, word in enumerate(said[: mention.start]):
        is_not = word in _NOTS or word.endswith("n't")
        if is_not and word_at(said, at + 1) not in ("only", "just", "doubt", "more"):
            return True
        if word in ("instead", "free", "rather", "devoid", "empty") and said[at + 1 : at + 2] in (("of",), ("than",)):
            return True
    return _NOT_AFTER.search(clause.casefold(), clause.casefold().find(said[mention.end - 1])) is not None


def is_supposed(said: tuple[str, ...], mention: Mention, *, asked: bool) -> bool:
    """Whether it is said of what may be, or of things in general ("for people and cars")."""
    before, after = said[: mention.start], said[mention.end :]
    definite = before[-1:] == ("the",)
    if asked and definite and not ("person" in mention.things and not _MODALS.isdisjoint(before)):
        return not _CONDITIONS.isdisjoint(before)  # "what could the duck do?" takes the duck for granted
    if not _SUPPOSED.isdisjoint(before) or not _MODALS.isdisjoint(after[:2]):
        return True
    if after[:1] == ("can",) and _PERCEIVED.isdisjoint(after[1:2]) and _DEFINITE.isdisjoint(before[-3:]):
        return True  # "a plant can give a room an airy look"
    if definite and after[:1] and after[0] in BE and not _HEDGES.isdisjoint(after[1:2]):
        return True  # "the person is likely to come back"
    if "person" in mention.things and _is_guessed(before, said[mention.end - 1], after):
        return True
    if _SUITED.search(" ".join(before)):
        return True
    return _is_general(before, said[mention.end - 1], after)


def _is_guessed(before: tuple[str, ...], head: str, after: tuple[str, ...]) -> bool:
    """Whether it is somebody who must be, or must have been there: "suggesting that a guest slept here"."""
    return _INFERRED.search(" ".join(before)) is not None or (head in _SOMEONE and not _DID.isdisjoint(after[:1]))


def _is_general(before: tuple[str, ...], head: str, after: tuple[str, ...]) -> bool:
    """Whether the words around a thing tell of things in general."""
    is_last = not after or after[0].endswith("ing") or after[0] in _JOINS
    if before and is_last and head.endswith("s") and all(word.endswith("ing") for word in before):
        return True  # what is usually done: "refuelling, loading bags and cleaning"
    for at in range(len(before) - 1, max(len(before) - _WINDOW, 0) - 1, -1):
        word, between = before[at], before[at + 1 :]
        if word in _DEFINITE:
            return False
        if word == "can" and between[:1] and between[0] not in _PERCEIVED:
            return True
        if word == "for" and len(between) < _OF_FOR and head.endswith(("s", "people", "men", "women", "children")):
            return True
        if _THOUGHT.fullmatch(word):
            bare = not any(one in DETERMINERS and one != "other" for one in between)
            return bare and not _does_something(after)
    return False


def is_aboard(said: tuple[str, ...], mention: Mention) -> bool:
    """Whether it is the driver or a passenger who must be somewhere, not one who is seen to do something."""
    return said[mention.end - 1] in _ABOARD and not _does_something(said[mention.end :])


def _does_something(after: tuple[str, ...]) -> bool:
    """Whether it is told what a thing does, as of one that is seen: "who", "waving", "is leaning", "are boarding"."""
    doing = after[1:2] if after[:1] and after[0] in BE else after[:1]
    return any(word == "who" or (word.endswith("ing") and not _THOUGHT.fullmatch(word)) for word in doing)


def is_compared(said: tuple[str, ...], mention: Mention) -> bool:
    """Whether something else is only likened to it, or belongs to it."""
    before = said[max(0, mention.start - 4) : mention.start]
    is_used = "as" in before and not _USES.isdisjoint(said[: mention.start])
    if is_used or any(word in _ALIKE for word in before):
        return True
    if before.count("as") > 1:  # as comfortable as a bed
        return True
    return any(pair in _TOGETHER or (pair[1] == "as" and pair[0] in _ALIKE_AS) for pair in pairwise(before))
