"""Every statement of the rule-based teacher, checked against the context by an independent reader."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from opsin.synthesize import rules
from opsin.synthesize.context import Context, Group, Thing, Vocabulary
from opsin.synthesize.english import article, definite, is_plural, listing, with_right_article

GROUPS = (
    Group("animals", "an animal", "animals"),
    Group("food", "a food item", "food items"),
    Group("vehicles", "a vehicle", "vehicles"),
    Group("seasonal"),
    Group("plants"),
)
NAMES = {
    "animals": ["a cow", "an owl", "a red fox", "two wild boars"],
    "food": ["an apple", "some cherries", "a pear", "a bunch of grapes"],
    "vehicles": ["a truck", "a bus", "an airplane", "a race car"],
    "seasonal": ["a bunny", "a candle", "a ghost"],
    "plants": ["a rose", "an iris", "a palm tree"],
}
CATALOGUE = tuple(Thing(name, (label, f"sub{label}")) for label, names in NAMES.items() for name in names)
GROUP_OF = {thing.name: thing.group for thing in CATALOGUE}
CLOSE = frozenset({frozenset({"seasonal", "animals"}), frozenset({"plants", "food"})})
VOCABULARY = Vocabulary(GROUPS, CATALOGUE, CLOSE)
NOUNS = {group.one: group.label for group in GROUPS if group.one}
PLURALS = {group.many: group.label for group in GROUPS if group.many}
COUNTED = {**{noun.split(" ", 1)[1]: label for noun, label in NOUNS.items()}, **PLURALS}


def random_context(rng: random.Random, num_things: int) -> Context:
    things = []
    for thing in rng.sample(CATALOGUE, num_things):
        x, y = rng.uniform(0, 0.8), rng.uniform(0, 0.8)
        things.append(Thing(thing.name, thing.category, (x, y, x + rng.uniform(0.05, 0.2), y + rng.uniform(0.05, 0.2))))
    return Context((f"{listing([thing.name for thing in things]).capitalize()}.",), tuple(things))


def contexts(count: int, lowest: int, highest: int) -> list[tuple[Context, random.Random]]:
    generators = [random.Random(seed) for seed in range(count)]
    return [(random_context(rng, rng.randint(lowest, highest)), rng) for rng in generators]


def by_definite_name(context: Context, phrase: str) -> Thing:
    found = [thing for thing in context.things if definite(thing.name) == phrase[:1].lower() + phrase[1:]]
    assert len(found) == 1, (phrase, context)
    return found[0]


def middle(thing: Thing) -> tuple[float, float]:
    assert thing.box is not None
    x1, y1, x2, y2 = thing.box
    return x1 + (x2 - x1) / 2, y1 + (y2 - y1) / 2


def present(context: Context, phrase: str) -> bool:
    """Whether the picture has this name or something of this group noun."""
    if phrase in NOUNS:
        return any(thing.group == NOUNS[phrase] for thing in context.things)
    return any(thing.name == phrase for thing in context.things)


def assert_certain(context: Context, phrase: str) -> None:
    """What is denied must not overlap with anything present."""
    label = NOUNS.get(phrase) or GROUP_OF.get(phrase) or phrase
    for thing in context.things:
        assert label != thing.group
        assert frozenset({label, thing.group}) not in CLOSE


def said_region(where: str, thing: Thing) -> bool:
    x, y = middle(thing)
    rows = {"top": y <= 1 / 3, "bottom": y >= 2 / 3}
    columns = {"left": x <= 1 / 3, "right": x >= 2 / 3}
    told = {**rows, **columns}
    return all(told[word] == (word in where) for word in told) and (any(told.values()) or "middle" in where)


def check_yes_no(context: Context, question: str, answer: str) -> bool:
    if match := re.fullmatch(r"(?:Is|Are) there (.+)\?|Is this ((?!in the group).+)\?", question):
        phrase = match.group(1) or match.group(2)
        truth = present(context, phrase)
    elif match := re.fullmatch(r"Is this in the group (.+)\?", question):
        phrase = match.group(1)
        truth = any(thing.group == phrase for thing in context.things)
    elif match := re.fullmatch(r"(?:Is|Are) (the .+) left of (the .+)\?", question):
        a, b = (middle(by_definite_name(context, name))[0] for name in match.groups())
        assert answer == ("Yes" if a < b else "No")
        return True
    else:
        return False
    assert answer == ("Yes" if truth else "No"), (question, answer, context)
    if not truth:
        assert_certain(context, phrase)
    return True


def check_statement(context: Context, question: str, answer: str) -> None:
    counts = Counter(thing.group for thing in context.things)
    if check_yes_no(context, question, answer):
        return
    if question == rules.TOTAL_QUESTION:
        assert answer == str(len(context.things))
    elif match := re.fullmatch(r"How many (?!more)(.+) are there\?", question):
        assert answer == str(counts[PLURALS[match.group(1)]])
    elif match := re.fullmatch(r"Where (is|are) (the .+)\?", question):
        thing = by_definite_name(context, match.group(2))
        assert (match.group(1) == "are") == is_plural(thing.name)
        assert said_region(answer, thing), (answer, thing)
    elif question == rules.GROUP_QUESTION:
        assert answer == context.things[0].group
    elif question == rules.BRIEF_QUESTION:
        assert answer == context.captions[0]
    elif question in rules.NAME_QUESTIONS:
        assert answer[:1].lower() + answer[1:] == f"{context.things[0].name}."
    else:
        raise AssertionError(f"the checker does not know the question {question!r}")


def tallies(text: str) -> list[tuple[int, str]]:
    return [(int(count), COUNTED[noun]) for count, noun in re.findall(r"(\d+) ([a-z ]+?)(?= and|\.)", text)]


def check_reasoning(context: Context, question: str, answer: str) -> None:
    counts = Counter(thing.group for thing in context.things)
    if match := re.fullmatch(r"(Are there|How many) more (.+) than (.+?)(?: are there)?\?", question):
        a, b = (counts[PLURALS[noun]] for noun in match.groups()[1:])
        head, reason = answer.split(". ", 1)
        assert head == (str(a - b) if match.group(1) == "How many" else "Yes" if a > b else "No")
        assert tallies(reason) == [(counts[label], label) for _, label in tallies(reason)]
        assert len(tallies(reason)) == 2
    elif question == "Which one is the odd one out?":
        name, reason = answer.split(". ", 1)
        thing = by_definite_name(context, name)
        groups = re.fullmatch(r"It is in the group (.+), the others are in (.+)\.", reason)
        assert groups is not None
        assert counts == {groups.group(1): 1, groups.group(2): len(context.things) - 1}
        assert thing.group == groups.group(1)
    elif match := re.fullmatch(r"Which thing is nearest to the (left|right|top|bottom)\?", question):
        axis, sign = {"left": (0, 1), "right": (0, -1), "top": (1, 1), "bottom": (1, -1)}[match.group(1)]
        ordered = sorted(context.things, key=lambda thing: sign * middle(thing)[axis])
        names = re.fullmatch(r"(The .+)\. The next one from there is (the .+)\.", answer)
        assert names is not None
        assert [by_definite_name(context, name) for name in names.groups()] == ordered[:2]
    elif match := re.fullmatch(r"Does this belong with (.+)\?", question):
        other, own = GROUP_OF[match.group(1)], context.things[0].group
        assert answer.startswith("Yes. " if other == own else "No. ")
        assert f"group {own}" in answer
        assert f"group {other}" in answer
        if other != own:
            assert_certain(context, match.group(1))
    else:
        raise AssertionError(f"the checker does not know the question {question!r}")


@pytest.mark.parametrize(("lowest", "highest"), [(1, 1), (2, 6)])
def test_every_answer_of_a_conversation_is_true(lowest: int, highest: int) -> None:
    kinds = Counter()
    for context, rng in contexts(600, lowest, highest):
        for exchange in rules.conversation(context, VOCABULARY, rng):
            check_statement(context, exchange.question, exchange.answer)
            kinds[exchange.question.split(" ")[0]] += 1
    assert len(kinds) >= 3


def test_every_reasoning_answer_is_true_and_every_kind_occurs() -> None:
    openings = Counter()
    for context, rng in contexts(1500, 1, 6):
        for exchange in rules.reasoning(context, VOCABULARY, rng):
            check_reasoning(context, exchange.question, exchange.answer)
            openings[" ".join(exchange.question.split(" ")[:2])] += 1
    assert set(openings) == {"Are there", "How many", "Which one", "Which thing", "Does this"}


def test_things_of_one_name_are_never_spoken_of_as_the_only_one() -> None:
    for seed in range(600):
        rng = random.Random(seed)
        context = random_context(rng, rng.randint(2, 4))
        context = Context(context.captions, (*context.things, *rng.choices(context.things, k=2)))
        for exchange in rules.conversation(context, VOCABULARY, rng):
            check_statement(context, exchange.question, exchange.answer)
        for exchange in rules.reasoning(context, VOCABULARY, rng):
            check_reasoning(context, exchange.question, exchange.answer)


def test_descriptions_state_true_counts_places_and_groups() -> None:
    words = ["no", "one", "two", "three", "four", "five", "six"]
    for context, rng in contexts(400, 2, 6):
        (exchange,) = rules.detail(context, VOCABULARY, rng)
        assert exchange.question in rules.DETAIL_INSTRUCTIONS
        opening, places, *rest = exchange.answer.split(". ")
        assert opening == f"There are {words[len(context.things)]} things in this picture"
        for thing in context.things:
            told = re.search(
                rf"{re.escape(thing.name)} (is|are) ((?:at the|in the) [a-z ]+?)(?=,| and |$|\.)", places, re.I
            )
            assert told is not None, (thing, places)
            assert said_region(told.group(2), thing)
        counts = Counter(thing.group for thing in context.things)
        for statement in rest:
            match = re.fullmatch(r"(\w+) of them are (.+?)\.?", statement)
            assert match is not None
            count = counts[PLURALS[match.group(2)]]
            everything = "both" if count == 2 else "all"
            assert match.group(1).lower() == (everything if count == len(context.things) else words[count])


def test_description_of_one_thing_names_it_and_its_categories() -> None:
    context = Context(("A cow.",), (Thing("a cow", ("animals", "mammals"), (0.05, 0.05, 0.95, 0.9)),))
    (exchange,) = rules.detail(context, VOCABULARY, random.Random(0))
    assert exchange.answer == (
        "The picture shows a cow. It belongs to the group animals, under mammals. "
        "It is in the middle and fills the picture."
    )


def test_yes_and_no_are_about_equally_frequent() -> None:
    answers = Counter()
    for context, rng in [*contexts(800, 1, 1), *contexts(800, 2, 5)]:
        speak = rules.checking if len(context.things) == 1 else rules.counting
        answers.update(
            exchange.answer for exchange in speak(context, VOCABULARY, rng) if exchange.answer in ("Yes", "No")
        )
    assert 0.46 < answers["Yes"] / answers.total() < 0.54


def test_same_seed_same_words() -> None:
    for make in (rules.conversation, rules.detail, rules.reasoning):
        context = random_context(random.Random(1), 4)
        assert make(context, VOCABULARY, random.Random(7)) == make(context, VOCABULARY, random.Random(7))


def test_a_thing_without_a_name_is_called_nothing() -> None:
    context = Context(("Eat your greens.",), (Thing("", ("food",), (0.1, 0.1, 0.9, 0.9)),))
    for seed in range(50):
        rng = random.Random(seed)
        spoken = [*rules.conversation(context, VOCABULARY, rng), *rules.detail(context, VOCABULARY, rng)]
        for exchange in [*spoken, *rules.reasoning(context, VOCABULARY, rng)]:
            assert "  " not in exchange.question + exchange.answer
            assert " ?" not in exchange.question
            assert exchange.answer


def test_without_boxes_no_place_is_stated() -> None:
    things = tuple(Thing(thing.name, thing.category) for thing in CATALOGUE[:4])
    for seed in range(50):
        rng = random.Random(seed)
        spoken = [
            *rules.counting(Context((), things), VOCABULARY, rng),
            *rules.detail(Context((), things), VOCABULARY, rng),
        ]
        assert not any(re.search(r"\b(left|right|top|bottom|middle)\b", exchange.answer) for exchange in spoken)


def test_contexts_that_rules_cannot_use_are_refused() -> None:
    with pytest.raises(ValueError, match="no things"):
        rules.conversation(Context(("A.",), ()), VOCABULARY, random.Random(0))
    with pytest.raises(ValueError, match="expected a context of one thing, got 2"):
        rules.naming(Context((), CATALOGUE[:2]), random.Random(0))
    with pytest.raises(ValueError, match="no noun to count with"):
        Group("seasonal").counted(2)


ARTICLES = {
    "an": ("owl", "F-22 Raptor", "hour", "unusual hat", "Adelaide Rosella", "urn"),
    "a": ("cow", "UK post box", "university", "european bear", "VW Beetle"),
}


@pytest.mark.parametrize(
    ("phrase", "expected"), [(word, article) for article in ARTICLES for word in ARTICLES[article]]
)
def test_article(phrase: str, expected: str) -> None:
    assert article(phrase) == expected


def test_a_wrong_article_is_corrected() -> None:
    assert with_right_article("An hippopotamus.") == "A hippopotamus."
    assert with_right_article("a apple") == "an apple"
    assert with_right_article("Two flowers.") == "Two flowers."
