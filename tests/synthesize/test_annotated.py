"""Every statement of the rules for photographs, verified against the context by an independent reader."""

from __future__ import annotations

import random
import re
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsin.synthesize import annotated
from opsin.synthesize.context import Context, Exhaustive, Group, Thing, Vocabulary

PLURALS = {
    "a person": "people",
    "a dog": "dogs",
    "a mouse": "mice",
    "an orange": "oranges",
    "a wine glass": "wine glasses",
    "a pair of skis": "pairs of skis",
    "a piece of broccoli": "pieces of broccoli",
    "a bus": "buses",
}
GROUPS = {
    "a person": "person",
    "a dog": "animal",
    "a mouse": "electronic",
    "an orange": "food",
    "a wine glass": "kitchen",
    "a pair of skis": "sports",
    "a piece of broccoli": "food",
    "a bus": "vehicle",
}
SINGULARS = {many: one for one, many in PLURALS.items()}
NOUNS = {"an animal": "animal", "a vehicle": "vehicle"}
CATALOGUE = tuple(Thing(name, (group, name.split(" ", 1)[1])) for name, group in GROUPS.items())
VOCABULARY = Vocabulary(
    tuple(
        Group(label, next((noun for noun, of in NOUNS.items() if of == label), None)) for label in set(GROUPS.values())
    ),
    CATALOGUE,
)
WORDS = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
CAPTIONS = ("a street with a dog on it.", "Dogs, everywhere", "It is a mouse!", "Nothing much.")
PLACE = r"(?:at the (?:top|bottom|left|right)(?: left| right)?|in the middle)"


def bare(name: str) -> str:
    return name.split(" ", 1)[1]


@st.composite
def things(draw: st.DrawFn) -> Thing:
    name = draw(st.sampled_from([*GROUPS, ""]))
    box = None
    if draw(st.integers(0, 5)):
        x, y = draw(st.floats(0, 0.9)), draw(st.floats(0, 0.9))
        box = (x, y, draw(st.floats(x + 0.01, 1)), draw(st.floats(y + 0.01, 1)))
    group = GROUPS.get(name, "food")
    return Thing(
        name, (group, bare(name) if name else "unnamed"), box, crowd=bool(name) and not draw(st.integers(0, 5))
    )


contexts = st.builds(
    Context,
    captions=st.lists(st.sampled_from(CAPTIONS), max_size=3).map(tuple),
    things=st.lists(things(), max_size=9).map(tuple),
    exhaustive=st.sampled_from(["everything", "categories", "nothing"]),
)


class Reader:
    """Knows what is true, and understands the sentences that the rules may say."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.names = Counter(thing.name for thing in context.things)
        self.crowds = {thing.name for thing in context.things if thing.crowd}

    def present(self, phrase: str) -> list[Thing]:
        if phrase.startswith("several "):
            name = SINGULARS[phrase.removeprefix("several ")]
            return [thing for thing in self.context.things if thing.name == name and thing.crowd]
        return [thing for thing in self.context.things if thing.name == phrase]

    def counted(self, name: str, count: int) -> None:
        assert self.context.exhaustive != "nothing"
        assert name not in self.crowds
        assert self.names[name] == count

    def only(self, definite: str) -> Thing:
        """What "the dog" means, which must be the one and only."""
        name = next(name for name in GROUPS if bare(name) == definite.removeprefix("the ").removeprefix("The "))
        self.counted(name, 1)
        return self.present(name)[0]

    def tally(self, text: str) -> None:
        words, noun = text.split(" ", 1)
        name = SINGULARS[noun] if noun in SINGULARS else next(name for name in GROUPS if bare(name) == noun)
        self.counted(name, WORDS.index(words))

    def absent(self, phrase: str) -> None:
        assert self.context.exhaustive != "nothing"
        assert self.context.things
        assert not self.present(phrase)
        spoken = " ".join(self.context.captions).lower()
        assert bare(phrase) not in spoken
        assert PLURALS[phrase] not in spoken

    def lies(self, things: list[Thing], place: str) -> None:
        assert any(thing.box and place_of(thing) == place for thing in things), (things, place)


def middle(thing: Thing) -> tuple[float, float]:
    assert thing.box is not None
    return (thing.box[0] + thing.box[2]) / 2, (thing.box[1] + thing.box[3]) / 2


def area(thing: Thing) -> float:
    assert thing.box is not None
    return (thing.box[2] - thing.box[0]) * (thing.box[3] - thing.box[1])


def place_of(thing: Thing) -> str:
    x, y = middle(thing)
    row = "top" if y < 1 / 3 else "bottom" if y >= 2 / 3 else ""
    column = "left" if x < 1 / 3 else "right" if x >= 2 / 3 else ""
    told = " ".join(part for part in (row, column) if part)
    return f"at the {told}" if told else "in the middle"


def check_conversation(reader: Reader, question: str, answer: str) -> str:
    context = reader.context
    if question == annotated.BRIEF_QUESTION:
        assert answer.lower().rstrip(".!") in {caption.lower().rstrip(".!") for caption in context.captions}
        return "caption"
    if question.startswith("Name some"):
        listed = re.fullmatch(r"There (?:is|are) (.+)\.", answer)
        assert listed is not None
        for phrase in re.split(r", | and ", listed[1]):
            assert reader.present(phrase)
        return "list"
    if asked := re.fullmatch(r"(?:Is|Are) there (.+) in the picture\?", question):
        if said := re.fullmatch(r"No, there is no (.+) in it\.", answer):
            assert said[1] == bare(asked[1])
            reader.absent(asked[1])
            return "no"
        said = re.fullmatch(rf"Yes, there (is|are) (.+?) ({PLACE}|in it)\.", answer)
        assert said is not None
        assert said[2] == asked[1]
        assert (said[1] == "are") == said[2].startswith("several ")
        assert reader.present(asked[1])
        if said[3] != "in it":
            reader.lies(reader.present(asked[1]), said[3])
        return "yes"
    if asked := re.fullmatch(r"How many (.+) are there in this picture\?", question):
        said = re.fullmatch(r"There (is|are) (\w+ .+)\.", answer)
        assert said is not None
        assert (said[1] == "is") == said[2].startswith("one ")
        assert said[2].endswith(asked[1]) or said[2] == f"one {bare(SINGULARS[asked[1]])}"
        reader.tally(said[2])
        return "count"
    if asked := re.fullmatch(r"Where can (.+) be seen\?", question):
        said = re.fullmatch(rf"There (?:is|are) (.+?) ({PLACE})\.", answer)
        assert said is not None
        assert said[1] == asked[1]
        reader.lies(reader.present(asked[1]), said[2])
        return "place"
    if asked := re.fullmatch(r"Where is (the .+)\?", question):
        said = re.fullmatch(rf"(The .+) is ({PLACE})\.", answer)
        assert said is not None
        reader.lies([reader.only(asked[1])], said[2])
        return "only place"
    asked = re.fullmatch(r"Is (the .+) to the left of (the .+)\?", question)
    assert asked is not None, question
    a, b = (middle(reader.only(name))[0] for name in asked.groups())
    said = re.fullmatch(r"(Yes|No), (the .+) is further to the (left|right)\.", answer)
    assert said is not None
    assert said[2] == asked[1]
    assert (said[1], said[3]) == (("Yes", "left") if a < b else ("No", "right"))
    assert abs(a - b) > 0.1
    return "order"


def check_description(reader: Reader, text: str) -> None:
    for caption in sorted(reader.context.captions, key=len, reverse=True):
        told = caption[:1].upper() + caption[1:]
        if text.startswith(told):
            text = text.removeprefix(told).removeprefix(".").strip()
            break
    for sentence in re.findall(r"[^.]+\.", text):
        sentence = sentence.strip().removesuffix(".")
        if said := re.fullmatch(r"(The .+) is to the left of (the .+)", sentence):
            assert middle(reader.only(said[1]))[0] < middle(reader.only(said[2]))[0]
        elif said := re.fullmatch(rf"There are ((?:{'|'.join(WORDS)}) .+?)(?:: (.+)| ({PLACE}))?", sentence):
            reader.tally(said[1])
            same = reader.present(SINGULARS[said[1].split(" ", 1)[1]])
            places = Counter(place_of(thing) for thing in same if thing.box)
            if said[3]:
                assert places == {said[3]: len(same)}
            elif said[2]:
                told = [part.split(" ", 1) for part in re.split(r", | and ", said[2])]
                assert {place: WORDS.index(count) for count, place in told} == places
        else:
            said = re.fullmatch(rf"There (is|are) (.+?)(?: ({PLACE}))?", sentence)
            assert said is not None, sentence
            assert (said[1] == "are") == said[2].startswith("several ")
            assert reader.present(said[2])
            if said[3]:
                reader.lies(reader.present(said[2]), said[3])


def check_reasoning(reader: Reader, question: str, answer: str) -> str:
    if asked := re.fullmatch(r"Does the picture show (.+)\?", question):
        said = re.fullmatch(r"Yes\. There is (.+), and \1 is (.+)\.", answer)
        assert said is not None
        assert said[2] == asked[1]
        assert reader.present(said[1])
        assert GROUPS[said[1]] == NOUNS[asked[1]]
        return "member"
    if asked := re.fullmatch(r"(Are there|How many) more (.+?) than (.+?)(?: are there)?\?", question):
        head, tally = answer.split(". ", 1)
        a, b = (reader.names[SINGULARS[noun]] for noun in asked.groups()[1:])
        assert head.lower() == (("yes" if a > b else "no") if asked[1] == "Are there" else WORDS[a - b])
        said = re.fullmatch(r"There (?:is|are) (.+) and (.+)\.", tally)
        assert said is not None
        for part in said.groups():
            reader.tally(part)
        return "more"
    if asked := re.fullmatch(r"Which of the two extends over more of the picture, (the .+) or (the .+)\?", question):
        said = re.fullmatch(
            r"(The .+?)\. It extends over (more than twice|clearly more than) the area of (the .+)\.", answer
        )
        assert said is not None
        assert {said[1].lower(), said[3].lower()} == {name.lower() for name in asked.groups()}
        assert area(reader.only(said[1])) > (2 if "twice" in said[2] else 1.4) * area(reader.only(said[3]))
        return "size"
    asked = re.fullmatch(r"Which of these is nearest to the (left|right|top|bottom) of the picture: (.+)\?", question)
    assert asked is not None, question
    axis, sign = {"left": (0, 1), "right": (0, -1), "top": (1, 1), "bottom": (1, -1)}[asked[1]]
    listed = [reader.only(name) for name in re.split(r", | and ", asked[2])]
    ordered = sorted(listed, key=lambda thing: sign * middle(thing)[axis])
    said = re.fullmatch(r"(The .+)\. The next one from there is (the .+)\.", answer)
    assert said is not None
    assert [reader.only(name) for name in said.groups()] == ordered[:2]
    assert all(abs(middle(a)[axis] - middle(b)[axis]) > 0.1 for a, b in pairwise(ordered[:3]))
    return "extreme"


@settings(max_examples=400, deadline=None)
@given(contexts, st.integers(0, 10_000))
def test_every_statement_is_true(context: Context, seed: int) -> None:
    reader = Reader(context)
    for exchange in annotated.conversation(context, VOCABULARY, random.Random(seed)):
        check_conversation(reader, exchange.question, exchange.answer)
    check_description(reader, annotated.description(context, random.Random(seed)))
    for exchange in annotated.reasoning(context, VOCABULARY, random.Random(seed)):
        check_reasoning(reader, exchange.question, exchange.answer)


def photograph(seed: int, exhaustive: Exhaustive) -> Context:
    """A plausible one: several things of some categories, one caption."""
    rng = random.Random(seed)
    drawn = []
    for thing in rng.choices(CATALOGUE, k=rng.randint(2, 6)):
        x, y = rng.uniform(0, 0.8), rng.uniform(0, 0.8)
        drawn.append(Thing(thing.name, thing.category, (x, y, x + rng.uniform(0.05, 0.2), y + rng.uniform(0.05, 0.2))))
    return Context(("Nothing much.",), tuple(drawn), exhaustive)


def test_every_form_of_statement_occurs_and_yes_is_as_frequent_as_no() -> None:
    said: Counter[str] = Counter()
    for seed in range(400):
        context, rng = photograph(seed, "categories"), random.Random(seed)
        reader = Reader(context)
        for exchange in annotated.conversation(context, VOCABULARY, rng):
            said[check_conversation(reader, exchange.question, exchange.answer)] += 1
        for exchange in annotated.reasoning(context, VOCABULARY, rng):
            said[check_reasoning(reader, exchange.question, exchange.answer)] += 1
    assert set(said) == {
        "caption",
        "list",
        "yes",
        "no",
        "count",
        "only place",
        "order",
        "member",
        "more",
        "size",
        "extreme",
    }
    assert 0.4 < said["yes"] / (said["yes"] + said["no"]) < 0.6


def test_where_only_some_things_are_known_nothing_is_counted_denied_or_the_only_one() -> None:
    text = []
    for seed in range(200):
        context = photograph(seed, "nothing")
        exchanges = annotated.conversation(context, VOCABULARY, random.Random(seed))
        text += [f"{exchange.question} {exchange.answer}" for exchange in exchanges]
        text.append(annotated.description(context, random.Random(seed)))
    said = " ".join(text)
    assert not re.search(r"How many|No,|[Tt]he (dog|bus|person|mouse)|\b(two|three) ", said)
    assert "Where can" in said


def test_a_picture_in_which_nothing_is_annotated_denies_nothing() -> None:
    context = Context(("A wall.",), (), "categories")
    assert annotated.absent(context, VOCABULARY) == []
    assert [one.answer for one in annotated.conversation(context, VOCABULARY, random.Random(0))] == ["A wall."]
    assert annotated.description(context, random.Random(0)) == ""
    assert annotated.reasoning(context, VOCABULARY, random.Random(0)) == ()


def test_a_crowd_is_several_and_is_never_counted() -> None:
    person = ("person", "person")
    things = (Thing("a person", person, (0.1, 0.1, 0.2, 0.4)), Thing("a person", person, (0, 0, 1, 0.5), crowd=True))
    context = Context((), things, "categories")
    assert annotated.counts(context) == {}
    assert annotated.description(context, random.Random(0)) == "There are several people at the top."


@pytest.mark.parametrize(
    ("caption", "countable"),
    [
        ("Two large dogs on a boat.", True),
        ("A couple of dogs.", True),
        ("A dog beside another one, and three people.", True),
        ("Three dogs run.", False),
        ("A group of dogs.", False),
        ("Several small dogs lie about.", False),
        ("Seen from above: ten dogs.", False),
    ],
)
def test_what_a_caption_counts_otherwise_is_not_counted(caption: str, countable: bool) -> None:
    """Of a herd, boxes may show two; of two friends, four people are boxed, since some walk in the background."""
    dog = ("animal", "dog")
    things = (Thing("a dog", dog, (0.1, 0.1, 0.2, 0.4)), Thing("a dog", dog, (0.5, 0.5, 1, 0.9)))
    context = Context(("A street.", caption), things, "categories")
    assert annotated.counts(context) == ({"a dog": 2} if countable else {})
    assert ("two dogs" in annotated.description(context, random.Random(0))) == countable


@pytest.mark.parametrize(
    ("caption", "name", "boxes", "countable"),
    [
        ("Three surfers on a beach.", "a person", 2, False),
        ("A man rides with two women.", "a person", 1, False),
        ("Two women and a man.", "a person", 3, True),
        ("A woman on a horse.", "a person", 1, True),
        ("A couple of dogs.", "a dog", 3, False),
        ("A pair of dogs.", "a dog", 2, True),
        ("A man on a pair of skis.", "a pair of skis", 1, True),
        ("About thirty sheep.", "a sheep", 8, False),
        ("Twenty-five people wait.", "a person", 5, False),
        ("Cars in traffic.", "a car", 1, False),
        ("Cars in traffic.", "a car", 4, True),
        ("3 dogs run.", "a dog", 2, False),
        ("Twelve people at a table.", "a person", 5, False),
        ("A dozen donuts in a box.", "a donut", 4, False),
        ("A herd of sheep.", "a sheep", 3, False),
        ("Three planes fly in formation.", "an airplane", 2, False),
        ("Two dogs and another dog.", "a dog", 2, False),
        ("A bus at a stop.", "a bus", 1, True),
        ("A man on skis.", "a pair of skis", 1, True),
        ("Three animals graze.", "a cow", 2, True),
    ],
)
def test_nor_in_other_words_for_the_same_things(caption: str, name: str, boxes: int, countable: bool) -> None:
    thing = Thing(name, ("thing", name), (0.1, 0.1, 0.2, 0.2))
    known = annotated.counts(Context((caption,), (thing,) * boxes, "categories"))
    assert known == ({name: boxes} if countable else {})


def test_ten_things_and_more_are_counted_only_where_nothing_is_overlooked() -> None:
    dogs = [Thing("a dog", ("animal", "dog"), (n / 20, 0.1, n / 20 + 0.05, 0.2)) for n in range(10)]
    assert annotated.counts(Context((), tuple(dogs[:9]), "categories")) == {"a dog": 9}
    assert annotated.counts(Context((), tuple(dogs), "categories")) == {}
    assert annotated.counts(Context((), tuple(dogs), "everything")) == {"a dog": 10}


def test_no_thing_is_the_only_one_if_a_caption_tells_of_several() -> None:
    meter, car = (
        Thing(f"a {name}", ("x", name), box)
        for name, box in (("parking meter", (0.0, 0.3, 0.1, 0.9)), ("car", (0.6, 0.1, 0.9, 0.3)))
    )
    context = Context(("A couple of parking meters on a street.",), (meter, car), "categories")
    talks = (annotated.conversation(context, Vocabulary(()), random.Random(seed)) for seed in range(60))
    said = " ".join(f"{one.question} {one.answer}" for talk in talks for one in talk)
    assert "There is a car and a parking meter." in said
    assert "the parking meter" not in said
    assert "one parking meter" not in said


def test_a_thing_on_a_wide_one_is_not_beside_it() -> None:
    """A table that reaches over the whole width is neither left nor right of the cup on it."""
    table, cup = (
        Thing(f"a {name}", ("x", name), box)
        for name, box in (("table", (0.0, 0.3, 0.9, 0.9)), ("cup", (0.6, 0.1, 0.7, 0.3)))
    )
    lamp = Thing("a lamp", ("x", "lamp"), (0.0, 0.1, 0.1, 0.3))

    def said(*things: Thing) -> str:
        context = Context(("It is a mouse!",), things, "categories")
        talks = (annotated.conversation(context, Vocabulary(()), random.Random(seed)) for seed in range(60))
        return " ".join(f"{one.question} {one.answer}" for talk in talks for one in talk)

    assert "to the left of the" in said(lamp, cup)
    assert "to the left of the" not in said(table, cup)
