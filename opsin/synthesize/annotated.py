"""The offline teacher for photographs of which only the things of listed categories, or only some things, are known.

Like `opsin.synthesize.rules`, which is for pictures of which everything is known, it states only what the context makes
true. Where all things of the known categories are annotated, a category can be counted and called absent (unless it
has a crowd); where only some things are, they are never called the only ones. Groups of categories are never denied:
a picture without any annotated vehicle may show a tractor.
"""

from __future__ import annotations

import re
from collections import Counter
from itertools import combinations, pairwise, permutations
from typing import TYPE_CHECKING

from opsin.synthesize.checks.concepts import concepts, noun
from opsin.synthesize.checks.numbers import is_several, number_at
from opsin.synthesize.checks.words import spoken, word_set, words
from opsin.synthesize.context import UNCERTAIN, Vocabulary
from opsin.synthesize.english import (
    bare,
    capitalised,
    definite,
    is_plural,
    listing,
    number,
    plural,
    sentence,
    verb,
)
from opsin.synthesize.rules import CLEARLY_APART, YES_NO, centre, region
from opsin.synthesize.subject import Exchange

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Sequence

    from opsin.synthesize.context import Box, Context, Thing

MOST_QUESTIONS = 5
"""Of one conversation."""
MOST_DESCRIBED = 12
"""Different things that a description names."""
CLEARLY_LARGER = 1.5
"""One area over the other, before a thing is called larger."""

_QUANTIFIED = 3
"""Words before a noun among which its number is looked for: "two large brown dogs"."""
_MANY = word_set("several group bunch pile stack row rows trio")
_LEAST_MANY = 3
_PAIR = word_set("couple pair")
"""Two of what is named right behind; of other words they are a single thing, or a person."""
_UNCOUNTED = word_set(
    "many numerous lots crowd herd flock school swarm dozen dozens hundreds hundred another other others more"
)
"""With these a caption tells that boxes may lack some: annotators do not box a whole herd."""

_NO_OTHERS = Vocabulary(())
"""Things are known by the table of the checks."""

BRIEF_QUESTION = "What does this picture show?"


def conversation(context: Context, vocabulary: Vocabulary, rng: random.Random) -> tuple[Exchange, ...]:
    """Several questions and answers: what there is, how many, where, and what is not there."""
    opening = [Exchange(BRIEF_QUESTION, sentence(rng.choice(context.captions)))] if context.captions else []
    makers = (_enumeration, _presence, _count, _place, _order)
    exchanges = [exchange for make in makers for exchange in make(context, vocabulary, rng)]
    rng.shuffle(exchanges)
    return tuple([*opening, *exchanges][:MOST_QUESTIONS])


def description(context: Context, rng: random.Random) -> str:
    """What there is, how many of it, and where; empty if nothing is annotated."""
    if not context.things:
        return ""
    opening = [sentence(rng.choice(context.captions))] if context.captions else []
    by_name: dict[str, list[Thing]] = {}
    for thing in sorted(context.things, key=_area, reverse=True):
        if thing.name:
            by_name.setdefault(thing.name, []).append(thing)
    known = counts(context)
    told = [_described(things, known.get(name, 1)) for name, things in list(by_name.items())[:MOST_DESCRIBED]]
    pairs = [_order_told(a, b) for a, b in _apart(context)]
    return " ".join([*opening, *told, *rng.sample(pairs, min(2, len(pairs)))])


def reasoning(context: Context, vocabulary: Vocabulary, rng: random.Random) -> tuple[Exchange, ...]:
    """One question whose answer combines facts, with the reason in the answer; empty if the context allows none."""
    kinds = [_membership(context, vocabulary), _comparisons(context, rng), _sizes(context), _extremes(context)]
    kinds = [exchanges for exchanges in kinds if exchanges]
    return (rng.choice(rng.choice(kinds)),) if kinds else ()


def counts(context: Context) -> dict[str, int]:
    """How many there are of each name that can be counted: all are annotated, one by one, and no caption says else.

    Of ten and more things of a category, annotators box some and overlook others.
    """
    if context.exhaustive == "nothing":
        return {}
    crowds = {thing.name for thing in context.things if thing.crowd}
    found = Counter(thing.name for thing in context.things if thing.name and plural(thing.name))
    captions = [spoken(caption) for caption in context.captions]
    return {
        name: count
        for name, count in found.items()
        if name not in crowds
        and (count < UNCERTAIN or context.exhaustive == "everything")
        and not any(_tells_another(said, name, count) for said in captions)
    }


def absent(context: Context, vocabulary: Vocabulary) -> list[Thing]:
    """Things of the catalogue that are certainly not in the picture, and that no caption speaks of either.

    A picture in which nothing is annotated says nothing about what is absent: it may have been passed over.
    """
    if context.exhaustive == "nothing" or not context.things:
        return []
    if context.exhaustive == "everything":
        candidates: Sequence[Thing] = vocabulary.absent(context)
    else:
        present = {thing.category for thing in context.things}
        candidates = [thing for thing in vocabulary.catalogue if thing.category not in present]
    names = {thing.name for thing in context.things}
    spoken = set(re.findall(r"\w+", " ".join(context.captions).lower()))
    missing = (thing for thing in candidates if plural(thing.name) and thing.name not in names)
    return [thing for thing in missing if not _words(thing) & spoken]


def told_count(name: str, count: int) -> str:
    """`"one dog"`, `"two pairs of skis"`."""
    return f"one {bare(name)}" if count == 1 else f"{number(count)} {plural(name)}"


def some_of(thing: Thing) -> str:
    """`"a dog"`; of a crowd, `"several people"`."""
    return f"several {plural(thing.name) or bare(thing.name)}" if thing.crowd else thing.name


def _tells_another(said: tuple[str, ...], name: str, count: int) -> bool:
    """Whether a caption's words tell another number: where annotators disagree, one of them has overlooked some.

    Of what is narrower, only more: where there are three people, a caption may speak of two women.
    """
    for start, is_same, are_several in _spoken_of(said, name):
        for at in range(start - 1, max(0, start - _QUANTIFIED) - 1, -1):
            word = said[at]
            number = 2 if is_same and word in _PAIR else number_at(said, at)
            if word in _UNCOUNTED or (word in _MANY and count < _LEAST_MANY):
                return True
            if number:
                if number > count or (is_same and number != count):
                    return True
                break
        else:
            if are_several and count == 1:
                return True
    return False


def _spoken_of(said: tuple[str, ...], name: str) -> Iterator[tuple[int, bool, bool]]:
    """Where words name a thing: at which word, whether by its own noun, and whether several."""
    many = words(plural(name) or "")
    for at in range(len(said) - len(many) + 1):
        if said[at : at + len(many)] == many:
            yield at, True, True
    table = concepts(_NO_OTHERS, None)
    named = {thing for mention in table.mentions(noun(name), strict=False) for thing in mention.things}
    for mention in table.mentions(said, strict=False):
        if any(not named.isdisjoint(table.sayable[thing]) for thing in mention.things):
            yield mention.start, False, is_several(said[mention.end - 1]) and not name.startswith("a pair of ")


def _words(thing: Thing) -> set[str]:
    """Words by which a caption would speak of it."""
    many = plural(thing.name) or ""
    return {word for name in (bare(thing.name), many) for word in re.findall(r"\w+", name.lower())}


def _enumeration(context: Context, vocabulary: Vocabulary, rng: random.Random) -> list[Exchange]:
    del vocabulary
    names = list(dict.fromkeys(some_of(thing) for thing in context.things if thing.name))
    if len(names) < 2:
        return []
    shown = rng.sample(names, min(6, len(names)))
    return [Exchange("Name some of the things that can be seen.", sentence(f"there {_is(shown[0])} {listing(shown)}"))]


def _presence(context: Context, vocabulary: Vocabulary, rng: random.Random) -> list[Exchange]:
    """Whether something is there: yes or no by a fair coin, as long as something is known to be absent."""
    missing = absent(context, vocabulary)
    named = [thing for thing in context.things if thing.name]
    if missing and (not named or rng.random() < 0.5):
        name = rng.choice(missing).name
        return [Exchange(_is_there(name), f"No, there is no {bare(name)} in it.")]
    if not named:
        return []
    thing = rng.choice(named)
    where = region(thing.box) if thing.box is not None else "in it"
    return [Exchange(_is_there(some_of(thing)), f"Yes, {_there_is(thing)} {where}.")]


def _count(context: Context, vocabulary: Vocabulary, rng: random.Random) -> list[Exchange]:
    del vocabulary
    known = counts(context)
    if not known:
        return []
    name = rng.choice(list(known))
    answer = f"There {verb(known[name])} {told_count(name, known[name])}."
    return [Exchange(f"How many {plural(name)} are there in this picture?", answer)]


def _place(context: Context, vocabulary: Vocabulary, rng: random.Random) -> list[Exchange]:
    del vocabulary
    if context.exhaustive == "nothing":
        placed = [thing for thing in context.things if thing.name and thing.box is not None]
        if not placed:
            return []
        thing = rng.choice(placed)
        question = f"Where can {some_of(thing)} be seen?"
        return [Exchange(question, sentence(f"{_there_is(thing)} {region(_box(thing))}"))]
    placed = _singled_out(context)
    if not placed:
        return []
    thing = rng.choice(placed)
    answer = f"{definite(thing.name)} {_is(thing.name)} {region(_box(thing))}"
    return [Exchange(f"Where {_is(thing.name)} {definite(thing.name)}?", sentence(answer))]


def _order(context: Context, vocabulary: Vocabulary, rng: random.Random) -> list[Exchange]:
    del vocabulary
    pairs = _apart(context)
    if not pairs:
        return []
    left, right = rng.choice(pairs)
    a, b = (left, right) if rng.random() < 0.5 else (right, left)
    question = f"{capitalised(_is(a.name))} {definite(a.name)} to the left of {definite(b.name)}?"
    if a is left:
        return [Exchange(question, f"Yes, {definite(a.name)} {_is(a.name)} further to the left.")]
    return [Exchange(question, f"No, {definite(a.name)} {_is(a.name)} further to the right.")]


def _described(things: Sequence[Thing], count: int) -> str:
    """Things of one name in one sentence: all of them, or only the largest, where one is all that is sure."""
    places = [region(thing.box) for thing in things if thing.box is not None]
    if count == 1:
        return sentence(" ".join([_there_is(things[0]), *places[:1]]))
    counted = f"there are {told_count(things[0].name, count)}"
    if len(places) < count:
        return sentence(counted)
    return sentence(f"{counted} {places[0]}" if len(set(places)) == 1 else f"{counted}: {_spread(places)}")


def _spread(places: Sequence[str]) -> str:
    """`"one at the left and two at the top"`."""
    return listing([f"{number(count)} {place}" for place, count in Counter(places).items()])


def _order_told(left: Thing, right: Thing) -> str:
    return sentence(f"{definite(left.name)} {_is(left.name)} to the left of {definite(right.name)}")


def _membership(context: Context, vocabulary: Vocabulary) -> list[Exchange]:
    """Whether there is something of a group, which follows from what a thing is."""
    exchanges = []
    for thing in context.things:
        noun = vocabulary.group(thing.group).one
        if noun and thing.name and noun != thing.name and not thing.crowd and not is_plural(thing.name):
            answer = f"Yes. There is {thing.name}, and {thing.name} is {noun}."
            exchanges.append(Exchange(f"Does the picture show {noun}?", answer))
    return exchanges


def _comparisons(context: Context, rng: random.Random) -> list[Exchange]:
    exchanges = []
    for pair in combinations(counts(context).items(), 2):
        (a, num_a), (b, num_b) = rng.sample(pair, 2)
        tally = f"There {verb(num_a)} {told_count(a, num_a)} and {told_count(b, num_b)}."
        exchanges.append(Exchange(f"Are there more {plural(a)} than {plural(b)}?", f"{YES_NO[num_a > num_b]}. {tally}"))
        if num_a > num_b:
            question = f"How many more {plural(a)} than {plural(b)} are there?"
            exchanges.append(Exchange(question, f"{capitalised(number(num_a - num_b))}. {tally}"))
    return exchanges


def _sizes(context: Context) -> list[Exchange]:
    """Which is larger from edge to edge: a box tells no more."""
    exchanges = []
    for large, small in permutations(_singled_out(context), 2):
        if _area(large) > CLEARLY_LARGER * _area(small):
            either = f"{definite(small.name)} or {definite(large.name)}"
            much = "more than twice" if _area(large) > 2 * _area(small) else "clearly more than"
            answer = f"{capitalised(definite(large.name))}. It extends over {much} the area of {definite(small.name)}."
            exchanges.append(Exchange(f"Which of the two extends over more of the picture, {either}?", answer))
    return exchanges


def _extremes(context: Context) -> list[Exchange]:
    """Which of three or more comes first from a side, and which one next."""
    placed = _singled_out(context)
    if len(placed) < 3:
        return []
    exchanges = []
    for side, axis, reverse in (("left", 0, False), ("right", 0, True), ("top", 1, False), ("bottom", 1, True)):
        ordered = _from_side(placed, axis, reverse=reverse)
        where = [centre(_box(thing))[axis] for thing in ordered[:3]]
        boxes = [_box(thing) for thing in (reversed(ordered) if reverse else ordered)]
        in_order = all(_is_before(a, b, axis) for a, b in pairwise(boxes))
        if in_order and min(abs(where[0] - where[1]), abs(where[1] - where[2])) > CLEARLY_APART:
            those = listing(sorted(definite(thing.name) for thing in ordered))
            question = f"Which of these is nearest to the {side} of the picture: {those}?"
            answer = (
                f"{capitalised(definite(ordered[0].name))}. The next one from there is {definite(ordered[1].name)}."
            )
            exchanges.append(Exchange(question, answer))
    return exchanges


def _from_side(things: Sequence[Thing], axis: int, *, reverse: bool) -> list[Thing]:
    return sorted(things, key=lambda thing: centre(_box(thing))[axis], reverse=reverse)


def _singled_out(context: Context) -> list[Thing]:
    """Things with a box that "the dog" means beyond doubt: nothing else in the picture is called so."""
    known = counts(context)
    return [thing for thing in context.things if thing.box is not None and known.get(thing.name) == 1]


def _apart(context: Context) -> list[tuple[Thing, Thing]]:
    """Pairs of which the first is clearly to the left of the second."""
    pairs = permutations(_singled_out(context), 2)
    return [(a, b) for a, b in pairs if _is_before(_box(a), _box(b), 0) and _reach(a, b) > CLEARLY_APART]


def _reach(a: Thing, b: Thing) -> float:
    return centre(_box(b))[0] - centre(_box(a))[0]


def _is_before(a: Box, b: Box, axis: int) -> bool:
    """Whether one box begins and ends before the other does: a cup on a wide table is not to the right of it."""
    return a[axis] < b[axis] and a[axis + 2] < b[axis + 2]


def _there_is(thing: Thing) -> str:
    return f"there {_is(some_of(thing))} {some_of(thing)}"


def _is_there(name: str) -> str:
    return f"{capitalised(_is(name))} there {name} in the picture?"


def _is(name: str) -> str:
    return "are" if is_plural(name) or name.startswith("several ") else "is"


def _box(thing: Thing) -> Box:
    if thing.box is None:
        raise ValueError(f"{thing.name!r} has no box")
    return thing.box


def _area(thing: Thing) -> float:
    if thing.box is None:
        return 0.0
    x1, y1, x2, y2 = thing.box
    return (x2 - x1) * (y2 - y1)
