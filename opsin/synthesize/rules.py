"""The offline teacher: instructions made by rules, which state only what the context makes true.

Three kinds, as in LLaVA: `conversation` (short questions and answers), `detail` (a description) and `reasoning` (a
question that needs facts to be combined). Each is a pure function of the context, the vocabulary and the generator.
"""

from __future__ import annotations

from itertools import combinations, permutations
from typing import TYPE_CHECKING

from opsin.synthesize.english import capitalised, definite, is_plural, listing, number, sentence, verb
from opsin.synthesize.subject import Exchange

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from opsin.synthesize.context import Box, Context, Group, Thing, Vocabulary

GROUP_QUESTION = "Which group does this belong to?"
TOTAL_QUESTION = "How many things are there?"
BRIEF_QUESTION = "What is in this picture? Be brief."
NAME_QUESTIONS = ("What is this?", "What do you see?", "Name this thing.")

BRIEF_INSTRUCTIONS = (
    BRIEF_QUESTION,
    "Describe this briefly.",
    "Caption this picture.",
    "Say in a few words what this shows.",
    "Give a short caption.",
    "Sum up the picture.",
)
DETAIL_INSTRUCTIONS = (
    "Describe this picture in detail.",
    "Tell me everything you see.",
    "Walk me through the picture.",
    "Give a full description of the picture.",
    "What does the picture show, and where?",
    "Describe what is here as exactly as you can.",
)

GROUP_CHECKS = 3
"""Groups that one checking conversation asks about: a further question costs less than a further picture."""

YES_NO = {True: "Yes", False: "No"}

CLEARLY_APART = 0.12
"""Centres nearer than this fraction of the picture are not called left, right, above or below each other."""


def group_check(label: str) -> str:
    """The yes/no question about a group."""
    return f"Is this in the group {label}?"


def group_count(many: str) -> str:
    """The question for the number of members of a group."""
    return f"How many {many} are there?"


def conversation(context: Context, vocabulary: Vocabulary, rng: random.Random) -> tuple[Exchange, ...]:
    """Several short questions and answers."""
    _require_things(context)
    if len(context.things) > 1:
        return counting(context, vocabulary, rng)
    return naming(context, rng) if rng.random() < 0.5 else checking(context, vocabulary, rng)


def naming(context: Context, rng: random.Random) -> tuple[Exchange, ...]:
    """The group of the one thing of the picture, and its name or caption."""
    thing = _only_thing(context)
    exchanges = [Exchange(GROUP_QUESTION, thing.group)]
    ways = [Exchange(BRIEF_QUESTION, sentence(caption)) for caption in context.captions[:1]]
    if thing.name:
        ways.extend(Exchange(question, sentence(thing.name)) for question in NAME_QUESTIONS)
    if ways:
        exchanges.append(rng.choice(ways))
    # The group first, as a rule: after the name it could be told without the picture.
    return tuple(exchanges if rng.random() < 0.75 else exchanges[::-1])


def grouping(context: Context) -> tuple[Exchange, ...]:
    """The group of the one thing of the picture, and no more."""
    return (Exchange(GROUP_QUESTION, _only_thing(context).group),)


def checking(context: Context, vocabulary: Vocabulary, rng: random.Random) -> tuple[Exchange, ...]:
    """Yes/no questions about the one thing of the picture; each is true half of the time, whatever the others are."""
    thing = _only_thing(context)
    checks: dict[str, bool] = {}
    for _ in range(GROUP_CHECKS):
        asked, true = _present_or_absent(thing, context, vocabulary, rng)
        question = group_check(asked.group)
        # The thing's own group is drawn half of the time: asked again, it is asked in other words.
        checks[question if question not in checks else _noun_check(asked, vocabulary, rng)] = true
    asked, true = _present_or_absent(thing, context, vocabulary, rng)
    checks[_noun_check(asked, vocabulary, rng)] = true
    return tuple(Exchange(question, YES_NO[true]) for question, true in checks.items() if question)


def totalling(context: Context) -> tuple[Exchange, ...]:
    """How many things there are, and no more."""
    return (Exchange(TOTAL_QUESTION, str(len(context.things))),)


def counting(context: Context, vocabulary: Vocabulary, rng: random.Random) -> tuple[Exchange, ...]:
    """How many, whether, and where: questions about a picture of several things, in random order."""
    exchanges = [Exchange(TOTAL_QUESTION, str(len(context.things)))]
    exchanges.extend(_group_count(context, vocabulary, rng))
    # A third of the pictures ask for more than numbers: every further question takes the place of another picture.
    if rng.random() < 1 / 3:
        exchanges.extend(rng.choice([_presence(context, vocabulary, rng), _position(context, rng)]))
    rng.shuffle(exchanges)
    return tuple(exchanges)


def detail(context: Context, vocabulary: Vocabulary, rng: random.Random) -> tuple[Exchange, ...]:
    """One instruction for a detailed description, and the description."""
    _require_things(context)
    sentences = _describe_one(context) if len(context.things) == 1 else _describe_many(context, vocabulary)
    return (Exchange(rng.choice(DETAIL_INSTRUCTIONS), " ".join(sentences)),)


def reasoning(context: Context, vocabulary: Vocabulary, rng: random.Random) -> tuple[Exchange, ...]:
    """One question whose answer combines facts, with the reason in the answer; empty if the context allows none."""
    _require_things(context)
    if len(context.things) == 1:
        kinds = [_kinship(context, vocabulary, rng)]
    else:
        kinds = [_comparisons(context, vocabulary, rng), _odd_one_out(context), _extremes(context)]
    kinds = [exchanges for exchanges in kinds if exchanges]
    return (rng.choice(rng.choice(kinds)),) if kinds else ()


def region(box: Box) -> str:
    """Where the centre of a box lies, on a grid of three by three: `"at the top left"`."""
    x, y = centre(box)
    row, column = ("top", "", "bottom")[min(int(3 * y), 2)], ("left", "", "right")[min(int(3 * x), 2)]
    if not row and not column:
        return "in the middle"
    return f"at the {row} {column}" if row and column else f"at the {row or column}"


def centre(box: Box) -> tuple[float, float]:
    """Centre of a box, x and y."""
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def _require_things(context: Context) -> None:
    if not context.things:
        raise ValueError(f"the context has no things, so no rule can state anything (captions: {context.captions})")


def _only_thing(context: Context) -> Thing:
    if len(context.things) != 1:
        raise ValueError(f"expected a context of one thing, got {len(context.things)}: use counting() for several")
    return context.things[0]


def _present_or_absent(
    present: Thing, context: Context, vocabulary: Vocabulary, rng: random.Random
) -> tuple[Thing, bool]:
    """A thing to ask about, and whether it is there: a fair coin, as long as something is known to be absent."""
    other = vocabulary.draw_absent(context, rng)
    return (present, True) if other is None or rng.random() < 0.5 else (other, False)


def _noun_check(asked: Thing, vocabulary: Vocabulary, rng: random.Random) -> str:
    """ "Is this an animal?"; empty if the thing cannot be asked about so."""
    name = _by_noun_or_name(asked, vocabulary, rng)
    return f"Is this {name}?" if name and not is_plural(name) else ""


def _by_noun_or_name(thing: Thing, vocabulary: Vocabulary, rng: random.Random) -> str:
    """ "an animal" or "a cow"; empty if the thing has neither."""
    noun = vocabulary.group(thing.group).one
    return noun if noun and (not thing.name or rng.random() < 0.5) else thing.name


def _group_count(context: Context, vocabulary: Vocabulary, rng: random.Random) -> list[Exchange]:
    """Number of members of a present group; drawing a thing, not a group, favours the counts above one."""
    countable = [thing for thing in context.things if vocabulary.group(thing.group).many]
    if not countable:
        return []
    label = rng.choice(countable).group
    return [Exchange(group_count(str(vocabulary.group(label).many)), str(context.counts()[label]))]


def _presence(context: Context, vocabulary: Vocabulary, rng: random.Random) -> list[Exchange]:
    asked, true = _present_or_absent(rng.choice(context.things), context, vocabulary, rng)
    name = _by_noun_or_name(asked, vocabulary, rng)
    if not name:
        return []
    return [Exchange(f"Are there {name}?" if is_plural(name) else f"Is there {name}?", YES_NO[true])]


def _position(context: Context, rng: random.Random) -> list[Exchange]:
    placed = _placed(context)
    if not placed:
        return []
    pairs = [(a, b) for a, b in permutations(placed, 2) if abs(_centre(a)[0] - _centre(b)[0]) > CLEARLY_APART]
    if pairs and rng.random() < 0.5:
        a, b = rng.choice(pairs)
        question = f"{capitalised(_be(a))} {definite(a.name)} left of {definite(b.name)}?"
        return [Exchange(question, YES_NO[_centre(a)[0] < _centre(b)[0]])]
    thing = rng.choice(placed)
    return [Exchange(f"Where {_be(thing)} {definite(thing.name)}?", sentence(region(_box(thing))))]


def _be(thing: Thing) -> str:
    return "are" if is_plural(thing.name) else "is"


def _placed(context: Context) -> list[Thing]:
    """Things with a box and a name that no other has: "the violin" must not be one of two."""
    names = [thing.name for thing in context.things]
    return [thing for thing in context.things if thing.box is not None and thing.name and names.count(thing.name) == 1]


def _box(thing: Thing) -> Box:
    if thing.box is None:
        raise ValueError(f"{thing.name!r} has no box")
    return thing.box


def _centre(thing: Thing) -> tuple[float, float]:
    return centre(_box(thing))


def _describe_one(context: Context) -> list[str]:
    thing = _only_thing(context)
    opening = [f"The picture shows {thing.name}"] if thing.name else list(context.captions[:1])
    kinds = f"the group {thing.group}" + (f", under {listing(thing.category[1:])}" if len(thing.category) > 1 else "")
    sentences = [*map(sentence, opening), f"It belongs to {kinds}."]
    if thing.box is not None:
        x1, y1, x2, y2 = thing.box
        extent = max(x2 - x1, y2 - y1)
        size = "fills the picture" if extent > 0.8 else "leaves space around it" if extent < 0.7 else "is large"
        sentences.append(f"It is {region(thing.box)} and {size}.")
    return sentences


def _describe_many(context: Context, vocabulary: Vocabulary) -> list[str]:
    counts = context.counts()
    sentences = [f"There are {number(len(context.things))} things in this picture."]
    placed = [thing for thing in context.things if thing.box is not None and thing.name]
    if placed:
        sentences.append(sentence(listing([f"{thing.name} {_be(thing)} {region(_box(thing))}" for thing in placed])))
    for label, count in counts.items():
        many = vocabulary.group(label).many
        if many and count > 1:
            everything = "Both" if count == 2 else "All"
            quantity = everything if count == len(context.things) else capitalised(number(count))
            sentences.append(f"{quantity} of them are {many}.")
    return sentences


def _kinship(context: Context, vocabulary: Vocabulary, rng: random.Random) -> list[Exchange]:
    """Whether the thing belongs with another one, which is only named."""
    thing = _only_thing(context)
    kin = [other for other in vocabulary.catalogue if other.group == thing.group and other.name not in ("", thing.name)]
    other = rng.choice(kin) if kin and rng.random() < 0.5 else vocabulary.draw_absent(context, rng)
    if other is None:
        return []
    question = f"Does this belong with {other.name}?"
    what = f"It is {thing.name}" if thing.name else "It is one more thing"
    if other.group == thing.group:
        return [Exchange(question, f"Yes. {what}, and both are in the group {thing.group}.")]
    reason = f"{definite(other.name)} {_be(other)} in the group {other.group}"
    return [Exchange(question, f"No. {what} in the group {thing.group}, while {reason}.")]


def _comparisons(context: Context, vocabulary: Vocabulary, rng: random.Random) -> list[Exchange]:
    counts = context.counts()
    groups = [vocabulary.group(label) for label in counts]
    groups = [group for group in groups if group.many]
    exchanges = []
    for a, b in combinations(groups, 2):
        more, fewer = (a, b) if rng.random() < 0.5 else (b, a)
        exchanges.append(_comparison(more, counts[more.label], fewer, counts[fewer.label]))
        if counts[a.label] != counts[b.label]:
            more, fewer = (a, b) if counts[a.label] > counts[b.label] else (b, a)
            exchanges.append(_difference(more, counts[more.label], fewer, counts[fewer.label]))
    return exchanges


def _tally(a: Group, num_a: int, b: Group, num_b: int) -> str:
    return f"There {verb(num_a)} {a.counted(num_a)} and {b.counted(num_b)}."


def _comparison(a: Group, num_a: int, b: Group, num_b: int) -> Exchange:
    question = f"Are there more {a.many} than {b.many}?"
    return Exchange(question, f"{YES_NO[num_a > num_b]}. {_tally(a, num_a, b, num_b)}")


def _difference(a: Group, num_a: int, b: Group, num_b: int) -> Exchange:
    question = f"How many more {a.many} than {b.many} are there?"
    return Exchange(question, f"{num_a - num_b}. {_tally(a, num_a, b, num_b)}")


def _odd_one_out(context: Context) -> list[Exchange]:
    counts = context.counts()
    if len(context.things) < 3 or sorted(counts.values()) != [1, len(context.things) - 1]:
        return []
    odd = next(thing for thing in context.things if counts[thing.group] == 1)
    if not odd.name:
        return []
    rest = next(label for label, count in counts.items() if count > 1)
    answer = f"{capitalised(definite(odd.name))}. It is in the group {odd.group}, the others are in {rest}."
    return [Exchange("Which one is the odd one out?", answer)]


def _extremes(context: Context) -> list[Exchange]:
    placed = _placed(context)
    if len(placed) < 2 or len(placed) < len(context.things):
        return []
    exchanges = []
    for side, axis, reverse in (("left", 0, False), ("right", 0, True), ("top", 1, False), ("bottom", 1, True)):
        first, second = _two_outermost(placed, axis, reverse=reverse)
        if abs(_centre(first)[axis] - _centre(second)[axis]) > CLEARLY_APART:
            answer = f"{capitalised(definite(first.name))}. The next one from there is {definite(second.name)}."
            exchanges.append(Exchange(f"Which thing is nearest to the {side}?", answer))
    return exchanges


def _two_outermost(things: Sequence[Thing], axis: int, *, reverse: bool) -> tuple[Thing, Thing]:
    ordered = sorted(things, key=lambda thing: _centre(thing)[axis], reverse=reverse)
    return ordered[0], ordered[1]
