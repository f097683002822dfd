"""Every kind: what it makes samples of, what a teacher is told, and what the rules say in its place."""

from __future__ import annotations

import io
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from opsin.core.errors import OpsinError, PictureError
from opsin.synthesize.context import Context, Exhaustive, Group, Thing, Vocabulary
from opsin.synthesize.kinds import Kind
from opsin.synthesize.kinds.base import KindBase, MalformedAnswerError
from opsin.synthesize.kinds.document import Document
from opsin.synthesize.subject import Exchange, Subject, Task, seed_of

NAMES = {
    "a dog": ("animal", "dog"),
    "a cat": ("animal", "cat"),
    "a bus": ("vehicle", "bus"),
    "a person": ("person", "person"),
}
VOCABULARY = Vocabulary(
    (Group("animal", "an animal", "animals"), Group("vehicle"), Group("person")),
    tuple(Thing(name, category) for name, category in NAMES.items()),
)
BLOCKS = "Question:\nWhat?\n===\nAnswer:\nA dog.\n===\n"


def kind_of(kind: str, **options: Any) -> Any:
    return TypeAdapter(Kind).validate_python({"kind": kind, **options})


def thing(name: str, x: float = 0.1, y: float = 0.1) -> Thing:
    return Thing(name, NAMES[name], (x, y, x + 0.1, y + 0.1))


def subject(identity: str, *things: Thing, captions: tuple[str, ...] = ("A dog.",), **more: Any) -> Subject:
    exhaustive: Exhaustive = more.pop("exhaustive", "categories")
    return Subject(
        identity, (f"{identity}.jpg",), (Context(captions, things, exhaustive, **more),), Path("/data"), "a.json"
    )


def task_of(kind: KindBase, one: Subject, draw: int = 0) -> Task:
    identity = f"{one.id}#{kind.name}.{draw}"
    return Task(identity, kind.name, one, seed_of(0, identity), draw)


def video(*moments: tuple[float, Context]) -> Subject:
    times, contexts = tuple(time for time, _ in moments), tuple(context for _, context in moments)
    return Subject("clip", (), contexts, Path("/data"), "v.jsonl:1", "clip.mp4", times)


VIDEO = video(
    (0, Context(("A dog sits.",), (thing("a dog"),), "nothing")),
    (1, Context(("A bus comes.",), (thing("a bus"), thing("a dog")), "nothing")),
    (2.5, Context((), (thing("a bus"),), "nothing")),
)
PHOTOGRAPH = subject("1", thing("a dog"), thing("a bus", 0.7), captions=("A dog.", "A bus."))
TEXT = subject("2", captions=(), text="EXIT\nat the end of the hall", title="EXIT")


def test_the_symbolic_forms_of_the_paper() -> None:
    captions = "A dog.\nA bus."
    boxes = "dog: [0.100, 0.100, 0.200, 0.200]\nbus: [0.700, 0.100, 0.800, 0.200]"
    for kind, query in (
        ("conversation", captions),
        ("detail", f"{captions}\n\n{boxes}"),
        ("reasoning", f"{captions}\n\n{boxes}"),
        ("brief", captions),
        ("recaption", captions),
    ):
        assert kind_of(kind).query(task_of(kind_of(kind), PHOTOGRAPH)) == query
    crowd = Thing("a person", NAMES["a person"], (0, 0, 1, 0.5), crowd=True)
    kind = kind_of("detail")
    assert kind.query(task_of(kind, subject("3", crowd, captions=()))) == "people: [0.000, 0.000, 1.000, 0.500]"


def test_several_pictures_and_videos_are_told_one_by_one() -> None:
    kind = kind_of("differences")
    one, two = PHOTOGRAPH, subject("2", thing("a dog"), thing("a dog"), captions=("Dogs.",))
    (group,) = kind.subjects([one, two], 0)
    told = {"1": "A dog.\nA bus.\nIn it: dog, bus", "2": "Dogs.\nIn it: dog (2)"}
    first, second = group.id.split("+")
    assert kind.query(task_of(kind, group)) == f"Picture 1\n{told[first]}\n\nPicture 2\n{told[second]}"
    kind = kind_of("video")
    assert kind.query(task_of(kind, VIDEO)).startswith(
        "At 0 seconds\nA dog sits.\nIn it: dog\n\nAt 1 second\nA bus comes."
    )


@pytest.mark.parametrize(
    ("kind", "options", "usable"),
    [
        ("conversation", {}, ["photo", "things"]),
        ("detail", {}, ["photo", "things"]),
        ("reasoning", {}, ["photo", "things"]),
        ("brief", {}, ["photo"]),
        ("recaption", {}, ["photo", "things", "text"]),
        ("document", {}, ["text"]),
        ("multilingual", {"language": "zh"}, ["photo", "things"]),
        ("video", {}, ["clip"]),
    ],
)
def test_kinds_take_what_they_can_use(kind: str, options: dict[str, str], usable: list[str]) -> None:
    everything = [
        subject("photo"),
        subject("things", thing("a dog"), captions=()),
        subject("text", captions=(), text="EXIT"),
        VIDEO,
    ]
    assert [one.id for one in kind_of(kind, **options).subjects(everything, 0)] == usable


def test_a_share_is_drawn_by_seed_and_does_not_depend_on_the_other_pictures() -> None:
    pictures = [subject(str(number)) for number in range(2000)]
    kind = kind_of("conversation", share=0.3)
    chosen = [one.id for one in kind.subjects(pictures, 0)]
    assert 540 < len(chosen) < 660
    assert [one.id for one in kind.subjects(pictures[::2], 0)] == [
        identity for identity in chosen if int(identity) % 2 == 0
    ]
    assert [one.id for one in kind.subjects(pictures, 1)] != chosen
    assert [one.id for one in kind_of("detail", share=0.3).subjects(pictures, 0)] != chosen


@pytest.mark.parametrize("size", [2, 3, 8])
def test_groups_have_their_size_and_share_no_picture(size: int) -> None:
    pictures = [*(subject(str(number)) for number in range(21)), subject("x", captions=())]
    kind = kind_of("story", pictures_each=size)
    groups = list(kind.subjects(pictures, 0))
    assert len(groups) == 21 // size
    assert groups == list(kind.subjects(pictures, 0))
    assert groups != list(kind.subjects(pictures, 1))
    images = [image for group in groups for image in group.images]
    assert len(images) == len(set(images)) == len(groups) * size
    assert "x.jpg" not in images
    for group in groups:
        assert group.id == "+".join(image.removesuffix(".jpg") for image in group.images)
        assert len(group.contexts) == size


def test_ids_of_groups_stay_short() -> None:
    pictures = [subject("x" * 60 + str(number)) for number in range(16)]
    identities = {group.id for group in kind_of("story", pictures_each=8).subjects(pictures, 0)}
    assert len(identities) == 2
    assert max(map(len, identities)) <= 120


def test_answers_that_are_texts_get_an_instruction_of_their_prompt() -> None:
    for kind in (kind_of("detail"), kind_of("recaption"), kind_of("multilingual", language="fr", form="detail")):
        asked = {kind.parse("Un chien.", task_of(kind, PHOTOGRAPH, draw))[0].question for draw in range(60)}
        assert asked == set(kind.load_prompt().instructions)
        with pytest.raises(MalformedAnswerError):
            kind.parse(BLOCKS, task_of(kind, PHOTOGRAPH))


@pytest.mark.parametrize("kind", ["conversation", "reasoning", "differences", "video"])
def test_answers_in_blocks(kind: str) -> None:
    made = kind_of(kind)
    assert made.parse(BLOCKS, task_of(made, PHOTOGRAPH)) == (Exchange("What?", "A dog."),)
    with pytest.raises(MalformedAnswerError):
        made.parse("A dog.", task_of(made, PHOTOGRAPH))


def test_a_document_is_always_read_first() -> None:
    kind = kind_of("document")
    reading, question = kind.parse(BLOCKS, task_of(kind, TEXT))
    assert reading.answer == TEXT.context.text
    assert question == Exchange("What?", "A dog.")


def test_briefs_go_through_all_captions() -> None:
    kind = kind_of("brief", draws=3)
    one = subject("1", captions=("a dog", "A cat!", "a dog", "A bus."))
    said = {kind.by_rules(task_of(kind, one, draw), VOCABULARY)[0].answer for draw in range(3)}
    assert said == {"A dog.", "A cat!", "A bus."}


def test_a_vision_teacher_is_shown_a_smaller_jpeg(tmp_path: Path) -> None:
    Image.effect_noise((300, 200), 50).save(tmp_path / "a.png")
    one = Subject("a", ("a.png",), (Context((), ()),), tmp_path, "x")
    kind = kind_of("recaption", picture_side=64)
    (shown,) = kind.pictures(task_of(kind, one))
    assert shown.mime == "image/jpeg"
    with Image.open(io.BytesIO(shown.data)) as image:
        assert (image.format, image.size) == ("JPEG", (64, 43))
    (larger,) = kind_of("recaption", picture_side=4096).pictures(task_of(kind, one))
    with Image.open(io.BytesIO(larger.data)) as image:
        assert image.size == (300, 200)
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(PictureError, match="not a readable image"):
        kind.pictures(task_of(kind, one))


@pytest.mark.parametrize(("kind", "options"), [("recaption", {}), ("multilingual", {"language": "ja"})])
def test_what_rules_cannot_make_is_refused(kind: str, options: dict[str, str]) -> None:
    made = kind_of(kind, **options)
    assert not made.by_rules_possible
    with pytest.raises(OpsinError, match="rules"):
        made.by_rules(task_of(made, PHOTOGRAPH), VOCABULARY)


def test_names_tell_entries_of_one_kind_apart() -> None:
    assert kind_of("multilingual", language="zh").name == "multilingual-zh"
    assert kind_of("multilingual", language="zh", form="detail").name == "multilingual-zh-detail"
    assert kind_of("video", form="detail").name == "video-detail"
    with pytest.raises(ValidationError):
        kind_of("multilingual", language="tlh")
    with pytest.raises(ValidationError):
        kind_of("conversation", temprature=1)


@pytest.mark.parametrize("exhaustive", ["everything", "categories", "nothing"])
@pytest.mark.parametrize("kind", ["conversation", "detail", "reasoning", "brief", "differences", "story"])
def test_rules_make_samples_as_the_kind_expects_them(kind: str, exhaustive: Exhaustive) -> None:
    rng = random.Random(0)
    made = kind_of(kind)
    pictures = []
    for number in range(80):
        things = [
            thing(rng.choice(list(NAMES)), rng.uniform(0, 0.9), rng.uniform(0, 0.9)) for _ in range(rng.randint(0, 5))
        ]
        pictures.append(subject(str(number), *things, exhaustive=exhaustive))
    samples = [made.by_rules(task_of(made, one), VOCABULARY) for one in made.subjects(pictures, 0)]
    assert sum(map(bool, samples)) >= len(samples) / 4
    least, most = made.expected.exchanges
    for exchanges in filter(None, samples):
        assert least <= len(exchanges) <= most
        for exchange in exchanges:
            assert exchange.question.strip() == exchange.question != ""
            assert exchange.answer.strip() == exchange.answer != ""
            assert 0 < len(exchange.answer.split()) <= made.expected.words[1]
    again = [made.by_rules(task_of(made, one), VOCABULARY) for one in made.subjects(pictures, 0)]
    assert again == samples


pairs = st.tuples(
    *[
        st.builds(
            lambda things, exhaustive, number: subject(
                str(number), *things, captions=("Here.",), exhaustive=exhaustive
            ),
            st.lists(st.builds(thing, st.sampled_from(list(NAMES))), max_size=6),
            st.sampled_from(["everything", "categories", "nothing"]),
            st.just(number),
        )
        for number in range(2)
    ]
)


@settings(deadline=None)
@given(pairs, st.integers(0, 1000))
def test_differences_that_rules_state_are_true(both: tuple[Subject, Subject], seed: int) -> None:
    kind = kind_of("differences")
    (group,) = kind.subjects(both, seed)
    contexts = dict(zip(("first", "second"), group.contexts, strict=True))
    counts = {which: Counter(one.name for one in context.things) for which, context in contexts.items()}
    for exchange in kind.by_rules(task_of(kind, group), VOCABULARY):
        names = set(re.findall(r"a (?:dog|cat|bus|person)\b", exchange.answer, re.IGNORECASE))
        names = {name.lower() for name in names}
        if exchange.question == "What can be seen in both pictures?":
            assert names == set(counts["first"]) & set(counts["second"]) != set()
        elif asked := re.fullmatch(r"What can be seen in the (\w+) picture, but not in the (\w+)\?", exchange.question):
            here, there = asked.groups()
            assert names
            assert names <= set(counts[here]) - set(counts[there])
            assert contexts[there].exhaustive != "nothing"
            assert contexts[there].things
        elif asked := re.fullmatch(r"Which picture has more (.+)\?", exchange.question):
            name = {"dogs": "a dog", "cats": "a cat", "buses": "a bus", "people": "a person"}[asked[1]]
            more = "first" if counts["first"][name] > counts["second"][name] else "second"
            assert counts["first"][name] != counts["second"][name]
            assert exchange.answer.startswith(f"The {more} one.")
            assert "nothing" not in {context.exhaustive for context in contexts.values()}
        else:
            assert exchange.answer == "The first picture: Here. The second picture: Here."


def test_what_rules_say_of_a_video_is_true() -> None:
    kind = kind_of("video")
    said = {one for draw in range(20) for one in kind.by_rules(task_of(kind, VIDEO, draw), VOCABULARY)}
    assert said == {
        Exchange("What can be seen at 0 seconds?", "A dog sits."),
        Exchange("What can be seen at 1 second?", "A bus comes."),
        Exchange("Say when a dog can be seen, at least once.", "A dog: at 0 seconds and at 1 second."),
        Exchange("Say when a bus can be seen, at least once.", "A bus: at 1 second and at 2.5 seconds."),
    }
    kind = kind_of("video", form="detail")
    (told,) = kind.by_rules(task_of(kind, VIDEO), VOCABULARY)
    assert told.answer == "At 0 seconds: A dog sits. At 1 second: A bus comes."


words = st.text(st.characters(categories=["Lu", "Ll", "Nd"], max_codepoint=0x24F), min_size=1, max_size=6)
cells = st.one_of(words, st.integers(-2000, 2000).map(str), st.sampled_from(["1,200", "3.50", "12:00", ""]))


@settings(deadline=None)
@given(
    st.integers(2, 4).flatmap(
        lambda width: st.lists(st.lists(cells, min_size=width, max_size=width).map(tuple), min_size=2, max_size=5)
    ),
    st.integers(0, 1000),
)
def test_what_rules_say_of_a_table_is_in_the_table(rows: list[tuple[str, ...]], draw: int) -> None:
    text = "\n".join(" | ".join(row) for row in rows)
    one = subject("t", captions=(), text=text, table=tuple(rows))
    header, *body = rows
    reading, *rest = Document().by_rules(task_of(Document(), one, draw), VOCABULARY)
    assert reading.answer == text
    for exchange in rest:
        question, answer = exchange.question, exchange.answer
        if asked := re.fullmatch(r"What does the table say for (.+) under (.+)\?", question):
            found = [row[header.index(asked[2])] for row in body if row[0] == asked[1]]
            assert found == [answer]
        elif asked := re.fullmatch(r"Which row has the (largest|smallest) number under (.+)\?", question):
            column = header.index(asked[2])
            numbers = [float(row[column].replace(",", "")) for row in body]
            best = (max if asked[1] == "largest" else min)(numbers)
            assert numbers.count(best) == 1
            row = body[numbers.index(best)]
            assert answer == f"{row[0]}, with {row[column]}."
            assert [other[0] for other in body].count(row[0]) == 1
        elif question == "What are the columns of the table?":
            assert answer == ", ".join(header)
        else:
            assert question == "How many rows does the table have below its header?"
            assert answer == ["No", "One", "Two", "Three", "Four"][len(body)]


@settings(deadline=None)
@given(st.lists(words, min_size=1, max_size=20), words | st.just(""), st.integers(0, 1000))
def test_what_rules_say_of_a_text_is_in_the_text(body: list[str], title: str, draw: int) -> None:
    text = "\n".join(part for part in (title, " ".join(body)) if part)
    one = subject("t", captions=(), text=text, title=title)
    reading, *rest = Document().by_rules(task_of(Document(), one, draw), VOCABULARY)
    assert reading.answer == text
    for exchange in rest:
        if asked := re.fullmatch(r'Which word comes directly after "(.+)" in the text\?', exchange.question):
            assert body.count(asked[1]) == 1
            assert body[body.index(asked[1]) + 1] == exchange.answer
        elif exchange.question == "What is the title?":
            assert exchange.answer == title
        elif "first three" in exchange.question:
            assert exchange.answer.split() == body[:3]
        else:
            assert exchange.answer.split() == body[-3:]
