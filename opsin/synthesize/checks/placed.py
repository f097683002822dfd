"""Whether an answer that reasons says of a thing that it is in the picture.

Such answers speak of what one needs, of other places and of things in general, in more ways than can be listed. So
only what the words place into the picture is taken for a claim there: what is seen, what does or is something beside
other things, what somebody holds, and what a clause ties to a thing that is there.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from opsin.synthesize.checks.words import BE, word_set

if TYPE_CHECKING:
    from collections.abc import Set

    from opsin.synthesize.checks.concepts import Mention

_SEEN = re.compile(
    r"\bthere (?:is|are|was|were)\b|\bcan (?:also )?be seen\b|\bvisible\b|\b(?:i|we|you|one) (?:can )?see\b"
    r"|\b(?:in|of) (?:the|this) (?:image|picture|photo|scene|background|foreground|frame)\b"
)
_DEFINITE = word_set("the this that these those his her its their")
_REFERRING = _DEFINITE | word_set("him them it he she they")
_RELATIVE = word_set("that who which")
_STANDS = word_set(
    "stands sits lies hangs leans rests waits seems appears stand sit lie hang lean rest wait seem appear"
)
_WHERE = word_set(
    "on at next beside behind near under in between above below inside around by against alongside over opposite to "
    "across from parked visible seen"
)
_POSED = word_set("parked asleep seated perched tied")
_POSES = word_set("sitting standing lying leaning sleeping waiting holding carrying riding wearing")
_HELD = word_set("holding carrying wearing riding walking pushing pulling brought")
_MODALS = word_set("can could may might would should")
_WOULD = _MODALS | word_set("must will if when whenever unless to")
_GENERAL = _WOULD | word_set(
    "many most some few usually typically often generally commonly sometimes such or than cannot"
)
_NO_DOING = word_set(
    "parking during including according bring swing ring sing spring string wing thing nothing something anything "
    "everything morning evening building ceiling clothing"
)
"""Words that end so, and tell nothing of what a thing does."""
_NEAR = 5
"""Words behind a thing among which another one is referred to, and before it among which somebody does something."""


def is_placed(said: tuple[str, ...], mention: Mention, there: Set[str]) -> bool:
    """Whether the words around a thing say that it is there to be seen; `there` are the words for what is."""
    before, after = said[: mention.start], said[mention.end :]
    if _SEEN.search(" ".join(said)) or "presence" in before[-_NEAR:] or not _STANDS.isdisjoint(before[-2:]):
        return True
    is_person = "person" in mention.things
    return _is_told_of(before, after, is_person=is_person) or _is_held(before) or _is_tied(said, mention, there)


def _is_told_of(before: tuple[str, ...], after: tuple[str, ...], *, is_person: bool) -> bool:
    """Whether what stands behind tells where it is or what it does; or it is what the clause is about."""
    definite = not _DEFINITE.isdisjoint(before[-2:])
    near = not _REFERRING.isdisjoint(after[1 : _NEAR + 1])
    subject = len(before) <= 2
    first, second = (*after[:2], "", "")[:2]
    if first in _RELATIVE:
        return second != "" and (second in BE or definite or near)
    if _is_doing(first) or first in _POSED:
        return definite or near
    if first in BE:
        somewhere = _is_doing(second) or second in _WHERE or (second.endswith("ed") and after[2:3] != ("in",))
        return somewhere or (definite and not is_person)
    if first in _STANDS:
        return True
    return (first in _WHERE and near and (definite or subject)) or (definite and subject and not is_person)


def _is_held(before: tuple[str, ...]) -> bool:
    """Whether somebody holds it, or does something with it: "is reading a book"."""
    if not _MODALS.isdisjoint(before):
        return False
    for at in range(len(before) - 1, max(len(before) - _NEAR, 0) - 1, -1):
        word = before[at]
        if word in _WOULD:
            return False
        # "The skater sitting on the bench", or "a boy is sitting".
        is_posed = word in _POSES and at > 1 and before[at - 2] in _DEFINITE
        is_doing = is_posed or (at > 0 and before[at - 1] in BE)
        if (word in _HELD and (is_doing or at in (len(before) - 2, len(before) - 3))) or (is_doing and _is_doing(word)):
            return True
    return False


def _is_tied(said: tuple[str, ...], mention: Mention, there: Set[str]) -> bool:
    """Whether the clause ties it to what is there ("a vase decorates the table"), and is not general."""
    if not _GENERAL.isdisjoint(said) or said[0].endswith("ing"):
        return False
    return any(
        word in _DEFINITE and not mention.start <= at + 1 < mention.end and not there.isdisjoint(said[at + 1 : at + 3])
        for at, word in enumerate(said)
    )


def _is_doing(word: str) -> bool:
    return word.endswith("ing") and word not in _NO_DOING
