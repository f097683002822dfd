"""Differences: questions about two pictures, what they share and what tells them apart."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Literal

from opsin.synthesize import symbolic
from opsin.synthesize.annotated import absent, counts, some_of, told_count
from opsin.synthesize.english import listing, plural, sentence
from opsin.synthesize.kinds.answers import parse_blocks
from opsin.synthesize.kinds.base import Expected
from opsin.synthesize.kinds.groups import GroupKind
from opsin.synthesize.subject import Exchange

if TYPE_CHECKING:
    from opsin.synthesize.context import Context, Vocabulary
    from opsin.synthesize.subject import Task

ORDINALS = ("first", "second")


class Differences(GroupKind):
    """Questions and answers about two pictures."""

    kind: Literal["differences"] = "differences"

    @property
    def size(self) -> int:
        """Two."""
        return 2

    @property
    def expected(self) -> Expected:
        """Few exchanges."""
        return Expected(exchanges=(1, 10), words=(1, 400))

    def query(self, task: Task) -> str:
        """The captions of both, and what is in them."""
        return symbolic.several(task.subject)

    def parse(self, raw: str, task: Task) -> tuple[Exchange, ...]:
        """Blocks of questions and answers."""
        del task
        return parse_blocks(raw)

    def by_rules(self, task: Task, vocabulary: Vocabulary) -> tuple[Exchange, ...]:
        """What each shows, what only one has, and which has more."""
        rng = random.Random(task.seed)
        first, second = task.subject.contexts
        told = " ".join(
            f"The {ordinal} picture: {sentence(rng.choice(context.captions))}"
            for ordinal, context in zip(ORDINALS, task.subject.contexts, strict=True)
        )
        exchanges = [Exchange("What does each of the two pictures show?", told)]
        exchanges += _shared(first, second)
        exchanges += _only_in(first, second, vocabulary, *ORDINALS)
        exchanges += _only_in(second, first, vocabulary, *reversed(ORDINALS))
        more = _more(first, second)
        return (*exchanges, *rng.sample(more, min(1, len(more))))


def _names(context: Context) -> dict[str, str]:
    """What can be seen, by its name."""
    return {thing.name: some_of(thing) for thing in context.things if thing.name and plural(thing.name)}


def _shared(first: Context, second: Context) -> list[Exchange]:
    both = [name for name in _names(first) if name in _names(second)]
    return [Exchange("What can be seen in both pictures?", sentence(listing(both)))] if both else []


def _only_in(
    context: Context, other: Context, vocabulary: Vocabulary, ordinal: str, other_ordinal: str
) -> list[Exchange]:
    missing = {thing.name for thing in absent(other, vocabulary)}
    only = [told for name, told in _names(context).items() if name in missing]
    if not only:
        return []
    question = f"What can be seen in the {ordinal} picture, but not in the {other_ordinal}?"
    return [Exchange(question, sentence(listing(only)))]


def _more(first: Context, second: Context) -> list[Exchange]:
    exchanges = []
    known = counts(first), counts(second)
    for name in known[0]:
        num_first, num_second = known[0][name], known[1].get(name, 0)
        if num_second and num_first != num_second:
            which = ORDINALS[num_first < num_second]
            tally = f"The first picture has {told_count(name, num_first)}, the second {told_count(name, num_second)}."
            exchanges.append(Exchange(f"Which picture has more {plural(name)}?", f"The {which} one. {tally}"))
    return exchanges
