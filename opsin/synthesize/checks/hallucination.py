"""Whether a sample speaks of things that are not in the picture, or denies what is there.

Only what is claimed counts: what is denied, supposed or compared with is no claim. Sentences are read by words alone,
so it errs; how often is measured on a set written by hand (`tests/golden/hallucination.json`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from opsin.synthesize.checks.claims import is_aboard, is_compared, is_denied, is_supposed
from opsin.synthesize.checks.concepts import noun
from opsin.synthesize.checks.numbers import numbers
from opsin.synthesize.checks.placed import is_placed
from opsin.synthesize.checks.words import spoken, words
from opsin.synthesize.context import UNCERTAIN
from opsin.synthesize.english import noun_phrase, plural
from opsin.synthesize.outcome import Finding

if TYPE_CHECKING:
    from opsin.synthesize.checks.concepts import Concepts, Mention
    from opsin.synthesize.context import Context
    from opsin.synthesize.subject import Exchange

HALLUCINATION = "hallucination"

CLAUSE = re.compile(
    r"(?<![.!?;:\n])[.!?;:\n]+(?=\s|$)|(?<=\w)\s+[-–—]\s+|—|,?\s+\b(?:but|while|whereas|although|though|however|instead)\b"
    r"|,\s*(?:and|so|yet)\s+(?=(?:there|it|they|he|she|the|an?|two|three|four)\b)|,\s*(?=with\b)|^\W*(?:yes|no|nope|yeah)\b\s*,",
    re.IGNORECASE,
)
ASKS_WHETHER = re.compile(r"(?i)^\W*(?:is|are|was|were|do|does|did|can|has|have|had)(?:n't)?\b")
NOUN = r"(\w+(?:[ '-]\w+){0,5}?)"
_PICTURE = r"(?:the|this) (?:picture|image|photo|photograph|scene)"
_IN_ALL = (
    rf"(?: (?:in|on|at) (?:{_PICTURE}|(?:the|this) (?:kitchen|bathroom|bedroom|living room|room|office|street|road|park"
    r"|field|yard|garden|restaurant|station|shop|beach)))?(?:\W*$|,\s+(?=and\b))"
)
_ANYWHERE = rf"(?: (?:visible|present|shown|seen|there|here|anywhere|to be seen|in sight|in it))?{_IN_ALL}"
_AT_ALL = rf"(?: (?:visible|present|shown|seen|anywhere|to be seen|in sight|in it))?{_IN_ALL}"
"""Behind a thing: where it is looked for in the whole picture, not beside another thing or in a part of it.

In an answer, "there" is the place that was asked for."""
_ASKS_IF_THERE = re.compile(
    rf"(?i)^\W*(?:(?:(?:is|are) there|(?:can|do|could) (?:you|one|we) see) (?:an?|any|some) {NOUN}{_ANYWHERE}"
    rf"|does {_PICTURE} (?:show|have|contain|include) (?:an?|any|some) {NOUN}\W*$"
    rf"|(?:is|are) (?:an?|any|some) {NOUN}(?= (?:visible|present|shown|there|in (?:the|this) )){_ANYWHERE}"
    rf"|how many {NOUN} (?:are|can be|can|do)(?: there| visible| shown| present| seen| you see)?{_ANYWHERE})"
)
_DO_NOT_SEE = r"(?:i|we|you|one) (?:do not|don['’]t|cannot|can['’]t|could not|couldn['’]t) see"
_SAYS_NO = re.compile(
    r"(?i)^\W*(?:no|nope|none|zero|0)\b"
    rf"|^\W*(?:there (?:are|is) none|there (?:are|is)(?:n['’]t| not) (?:any|one)|{_DO_NOT_SEE} (?:any|one)){_AT_ALL}"
)
_SAYS_NONE_THERE = re.compile(
    rf"(?i)^\W*(?:there(?: is|['’]s| are)(?: no| zero|(?:n['’]t| not) (?:any|an?))|{_PICTURE} has no) {NOUN}{_AT_ALL}"
    rf"|^\W*(?:no|not (?:an?(?: single)?|one|any)) {NOUN} (?:is|are|can be)(?= (?:visible|present|shown|seen|to be))"
    rf"{_AT_ALL}"
    rf"|^\W*{_DO_NOT_SEE} (?:an?|any) {NOUN}{_AT_ALL}"
)
_NEGATES = re.compile(r"(?i)\b(?:no|not|none|never|neither|nor|without|cannot|zero)\b|n['’]t\b")
DENIES = re.compile(
    r"(?i)^\W*(?:no\b|none\b|not\b|zero\b|0\b|nobody\b|nothing\b|nowhere\b|neither\b"
    r"|(?:there|it|they|he|she|i|you|we)\b[^.!?]{0,20}?(?:\bno\b|\bnot\b|n['’]t\b|\bnone\b|\bcannot\b)"
    r"(?! (?:\w+ly )?(?:clear|certain|sure|known|obvious|possible|easy|tell|say)\b))"
)
_SEVERAL = re.compile(r"^(?:some|two|three|four|five|six|\d+|several|many)\b|\b(?:bunch|group|pair|crowd|set|row) of\b")


@dataclass(frozen=True)
class Known:
    """What is known of the pictures of a sample, in words and in the things of the table."""

    contexts: Sequence[Context]
    table: Concepts

    @cached_property
    def words(self) -> frozenset[str]:
        """All words of the contexts."""
        return frozenset(word for text in self._texts() for word in words(text))

    @cached_property
    def things(self) -> frozenset[str]:
        """Everything that may be said to be there."""
        mentions = [mention for text in self._texts() for mention in self.table.mentions(spoken(text), strict=False)]
        return frozenset().union(*(self.table.sayable[thing] for mention in mentions for thing in mention.things))

    @cached_property
    def boxed(self) -> frozenset[tuple[str, ...]]:
        """What things with boxes may be called, one and several, in the only picture: `dog`, `dogs`, `animal`.

        Not what only some of them are: where a man has a box, there may be no child.
        """
        if len(self.contexts) != 1:
            return frozenset()
        names = {thing.name for thing in self.contexts[0].things if thing.name}
        wider = {wide for name in names for thing in self.named(noun(name)) for wide in self.table.sayable[thing]}
        names |= {noun_phrase(name) for name in wider}
        return frozenset(noun(form) for name in names for form in (name, plural(name)) if form)

    def named(self, said: tuple[str, ...]) -> tuple[str, ...]:
        """The thing that all the words together name."""
        mentions = list(self.table.mentions(said, strict=False))
        return mentions[0].things if len(mentions) == 1 and mentions[0].end - mentions[0].start == len(said) else ()

    def has(self, mention: Mention, said: tuple[str, ...]) -> bool:
        """Whether the mentioned thing is there, perhaps in other words: a ball where there is a basketball."""
        if any(thing in self.things for thing in mention.things):
            return True
        head = said[mention.end - 1]
        if is_aboard(said, mention) and "vehicle" in self.things:  # a parked car has its driver, whom nobody sees
            return True
        return len(head) > 3 and any(word.endswith(head) and word != head for word in self.words)

    @cached_property
    def counts(self) -> Counter[str]:
        """How many there are of a thing, where that is certain."""
        if len(self.contexts) != 1 or self.contexts[0].exhaustive == "nothing":
            return Counter()
        counts: Counter[str] = Counter()
        uncertain: set[str] = set()
        for thing in self.contexts[0].things:
            named = list(self.table.mentions(noun(thing.name), strict=False))
            names = named[-1].things if named else ()
            counts.update(names)
            if thing.crowd or len(names) > 1 or _SEVERAL.search(thing.name):
                uncertain.update(names)
        # Of two dogs and an animal, there may be three dogs, and there are three animals.
        for name in counts:
            if wider := (self.table.sayable[name] - {name}) & counts.keys():
                uncertain |= {name, *wider}
        return Counter({name: n for name, n in counts.items() if name not in uncertain and n < UNCERTAIN})

    def told(self, name: str) -> set[int]:
        """The numbers of a thing that captions tell."""
        said = map(spoken, self.captions)
        return {count for text in said for count, of in numbers(text, self.table) if name in of.things}

    @property
    def captions(self) -> Iterator[str]:
        """Of all pictures."""
        return (caption for context in self.contexts for caption in context.captions)

    def _texts(self) -> Iterator[str]:
        yield from self.captions
        for context in self.contexts:
            yield context.text
            for thing in context.things:
                yield thing.name
                yield from thing.category


def hallucination(exchanges: Sequence[Exchange], known: Known, *, reasoned: bool = False) -> Iterator[Finding]:
    """Things that are claimed or presupposed, and are not there; `reasoned` answers may speak of others as well."""
    if not known.words:
        return
    for number, exchange in enumerate(exchanges, 1):
        asked = _Claims(exchange.question, known, asked=True)
        answered = _Claims(exchange.answer, known, asked=False, reasoned=reasoned)
        denied = DENIES.search(exchange.answer) is not None
        offered = ASKS_WHETHER.search(exchange.question) is not None and " or " in exchange.question
        if asked.lost and not denied and not offered:
            yield Finding(HALLUCINATION, f"question {number} speaks of {_named(asked.lost)}, which the picture has not")
        # What a question only compares with, its answer may speak of.
        lost = {word: things for word, things in answered.lost.items() if not things & (asked.aside | asked.all_lost)}
        for name in sorted(_denied(exchange, known) & known.boxed):
            yield Finding(HALLUCINATION, f"answer {number} denies {' '.join(name)!r}, which the picture has")
        if lost:
            yield Finding(HALLUCINATION, f"answer {number} speaks of {_named(lost)}, which the picture has not")


def _denied(exchange: Exchange, known: Known) -> set[tuple[str, ...]]:
    """What is said not to be anywhere in the picture, in its own words: of a dog, a red dog may be denied.

    But for what the answer speaks of all the same: "No, the dog lies on the porch."
    """
    clauses = [clause for clause in CLAUSE.split(exchange.answer) if clause]
    found = [_SAYS_NONE_THERE.search(clause) for clause in clauses]
    if _SAYS_NO.search(exchange.answer):
        found.append(_ASKS_IF_THERE.search(exchange.question))
    denied = {spoken(next(filter(None, one.groups()))) for one in found if one is not None}
    denied = {name[1:] if name[:1] == ("separate",) else name for name in denied}
    rest = [spoken(clause) for clause in clauses if not _NEGATES.search(clause)]
    said = {word for words_ in rest for word in words_}
    things = {thing for words_ in rest for one in known.table.mentions(words_, strict=False) for thing in one.things}
    return {name for name in denied if name[-1] not in said and things.isdisjoint(known.named(name))}


def _named(lost: dict[str, set[str]]) -> str:
    return ", ".join(map(repr, lost))


class _Claims:
    """The things of a text that are not there: `lost` are claimed, `aside` only compared with (and all they are)."""

    def __init__(self, text: str, known: Known, *, asked: bool, reasoned: bool = False) -> None:
        self.lost: dict[str, set[str]] = {}
        self.aside: set[str] = set()
        for clause in CLAUSE.split(text):
            if not clause:
                continue
            said = spoken(clause)
            for mention in known.table.mentions(said, strict=True):
                if known.has(mention, said) or is_denied(said, mention, clause):
                    continue
                if reasoned and not is_placed(said, mention, known.words):
                    continue
                if is_compared(said, mention):
                    self.aside.update(*(known.table.sayable[thing] for thing in mention.things))
                elif not is_supposed(said, mention, asked=asked):
                    self.lost.setdefault(" ".join(said[mention.start : mention.end]), set()).update(mention.things)

    @property
    def all_lost(self) -> set[str]:
        return set().union(*self.lost.values())
