"""Rows D1, D2 and D6 of the fault matrix: what is wrong with records is said with its place and sample, all at once.

What `check` lists is what training refuses, in the same words.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from functools import reduce
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from PIL import Image

from opsin.checkpoint.prepare import preparation
from opsin.core.errors import DataError, OpsinError
from opsin.data.check import check, source_of
from opsin.data.example import make_example
from opsin.data.sources import LlavaFile, MessagesFile
from opsin.model.config import ModelConfig
from opsin.text.tokenizer import Tokenizer
from tests.support.damage import CHANGES, mutated, read_through
from tests.support.models import draw_picture, model_value
from tests.support.tokenizers import chatml_tokenizer_dir
from tests.support.videos import write_video

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from opsin.data.sources import Source


def said(*texts: str, **fields: Any) -> dict[str, Any]:
    turns = [{"from": "gpt" if i % 2 else "human", "value": text} for i, text in enumerate(texts)]
    return {"id": "s", "conversations": turns, **fields}


def asked(content: Any, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "A."}]
    return {"id": "m", "messages": messages, **fields}


def joined(records: list[Any], array: bool) -> str:
    lines = [json.dumps(record) for record in records]
    return "[\n" + ",\n".join(lines) + "\n]" if array else "\n".join(lines)


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good and bad media, and a file out of their folder."""
    folder = tmp_path_factory.mktemp("data") / "media"
    folder.mkdir()
    draw_picture(folder / "a.png", 1)
    draw_picture(folder / "b.png", 2)
    Image.new("RGB", (50, 20)).save(folder / "wide.png")
    write_video(folder / "a.mp4", range(3))
    (folder / "page.png").write_text("<html>", encoding="utf-8")
    (folder / "empty.png").write_bytes(b"")
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    (folder / "pipe_link.png").symlink_to("pipe.png")
    draw_picture(folder.parent / "secret.png", 3)
    (folder / "out.png").symlink_to(folder.parent / "secret.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "nowhere.png").symlink_to("gone.png")
    return folder


def listed(source: Source) -> list[str]:
    return [problem.text for problem in check(source).problems]


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Source], list[str]]:
    """What training refuses: a source's problems, and every conversation that makes no example."""
    tokenizer_dir = chatml_tokenizer_dir(tmp_path_factory.mktemp("model"))
    config = ModelConfig.model_validate(model_value(tokenizer_dir)).resolved()
    prepare = preparation(config, Tokenizer.load(tokenizer_dir))

    def refused_of(source: Source) -> list[str]:
        conversations, problems = read_through(source)
        found = list(problems)
        for conversation in conversations:
            try:
                make_example(conversation, prepare)
            except OpsinError as error:
                found.append(str(error))
        return found

    return refused_of


BAD_TEXTS: list[tuple[bytes, str]] = [
    (b'  {"id": tru}', ":10: not valid JSON (Expecting value)"),
    ('{"é": "日本", oh}'.encode(), ":13: not valid JSON (Expecting property name"),
    (b"{'id': 1}", ":2: not valid JSON (Expecting property name"),
    (b'{"id": "x\tx"}', ":10: not valid JSON (Invalid control character"),
    (b'{"id": "\xe9"}', ":9: byte 0xe9 is not UTF-8"),
    (b'{"id": "\xed\xa0\xbd"}', ":9: byte 0xed is not UTF-8"),
    (b'{"a": 1} {"b": 2}', ":10: not valid JSON (Extra data)"),
    (b'{"id": "never closed', ":8: not valid JSON (Unterminated string"),
    (b'{"id"', ":6: not valid JSON (Expecting ':' delimiter)"),
]


@pytest.mark.parametrize(("text", "problem"), BAD_TEXTS)
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_line_that_is_no_json_is_named_with_its_column_and_the_others_are_read(
    tmp_path: Path, text: bytes, problem: str, end: bytes
) -> None:
    path = tmp_path / "data.jsonl"
    good = json.dumps(said("Hi", "Hello")).encode()
    path.write_bytes(b"\xef\xbb\xbf" + end.join([good, b"", text, b"  ", good, text]))
    checked = check(LlavaFile(path=path))
    assert checked.counts["conversations"] == 2
    for problem_found, line in zip(checked.problems, (3, 6), strict=True):
        assert problem_found.text.startswith(f"{path}:{line}{problem}")


@pytest.mark.parametrize("array", [True, False])
def test_wrong_types_and_half_characters_are_named_with_the_sample(tmp_path: Path, array: bool) -> None:
    path = tmp_path / "data.json"
    records: list[Any] = [
        said("a\ud800", "b", id="text"),
        said("a", "b", id="na\udfffme"),
        said("a", "b", id=["x"]),
        said("a", "b", id=True),
        said("<image>", "b", id="path", image="a\ud800.png"),
        {"id": "none", "conversations": None},
        {"id": "number", "conversations": 3},
        3,
        said("a", id="open", conversations=[{"from": "human"}]),
        said("a", "b", id="fine"),
    ]
    path.write_text(joined(records, array), encoding="utf-8")
    conversations, problems = read_through(LlavaFile(path=path))
    assert [conversation.id for conversation in conversations] == ["fine"]
    half = "half a character (lone surrogate"
    first = 1 + array
    starts = [
        f"(text) turn 1: {half} U+D800) at character 1",
        f"(line {1 + first}) 'id': {half} U+DFFF) at character 2",
        f"(line {2 + first}) 'id' must be a text or a number",
        f"(line {3 + first}) 'id' must be a text or a number",
        f"(path) a path of 'image': {half}",
        "(none) 'conversations' must be a list of turns",
        "(number) 'conversations' must be a list of turns",
        f"(line {7 + first}) the record must be a JSON object",
        "(open) turn 1: 'value' must be a text",
    ]
    for line, (problem, start) in enumerate(zip(problems, starts, strict=True), start=first):
        assert problem.startswith(f"{path}:{line}: {start}")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("gone.png", "no such file under"),
        ("a.png/x.png", "no such file under"),
        ("nowhere.png", "no such file under"),
        ("folder.png", "a folder or a device under"),
        ("pipe.png", "a folder or a device under"),
        ("pipe_link.png", "a folder or a device under"),
        ("../secret.png", "'..' in the path"),
        ("x/../a.png", "'..' in the path"),
        ("/etc/passwd", "absolute path"),
        ("out.png", "a link out of"),
        ("loop.png", "Too many levels of symbolic links"),
        ("a" * 300 + ".png", "File name too long"),
        ("http://localhost/a.png", "a URL"),
        ("", "is empty or has a null character"),
    ],
)
def test_a_path_that_cannot_be_used_is_named_with_its_sample_and_nothing_is_opened(
    tmp_path: Path, media: Path, name: str, problem: str
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(
        joined([said("<image>", "A", image=name), said("<video>", "A", video=name)], array=False), encoding="utf-8"
    )
    first, second = listed(LlavaFile(path=path, image_root=media))
    assert first.startswith(f"{path}:1: (s) image ")
    assert second.startswith(f"{path}:2: (s) video ")
    assert problem in first
    assert problem in second


def test_files_of_records_that_are_no_files_do_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    for name, problem in (
        ("pipe.jsonl", "not a regular file"),
        ("folder.jsonl", "not a regular file"),
        ("gone.jsonl", "no such file"),
    ):
        for use in (source_of, lambda path: list(LlavaFile(path=path).conversations(Counter()))):
            with pytest.raises(DataError) as caught:
                use(tmp_path / name)
            assert caught.value.problems == (f"{tmp_path / name}: {problem}; correct the path",)


@given(
    marks=st.lists(st.integers(0, 3), min_size=1, max_size=3),
    pictures=st.integers(0, 5),
    in_answer=st.booleans(),
    in_system=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_marks_must_be_as_many_as_pictures_and_stand_in_questions(
    media: Path,
    marks: list[int],
    pictures: int,
    in_answer: bool,
    in_system: bool,
) -> None:
    turns = [{"from": "system", "value": "<image>" * in_system + "Be brief."}]
    for number, count in enumerate(marks):
        answer = "<image>" * (in_answer and number == 0) + "A"
        turns += [{"from": "human", "value": "<image>" * count + "?"}, {"from": "gpt", "value": answer}]
    path = media.parent / "data.json"
    path.write_text(json.dumps([{"id": "s", "conversations": turns, "image": ["a.png"] * pictures}]), encoding="utf-8")
    problems = listed(LlavaFile(path=path, image_root=media))
    total = sum(marks) + in_system
    if in_answer:
        (problem,) = problems
        assert "(s) turn 3 is an answer with 1 <image>; media belong to human turns" in problem
    elif total != pictures:
        (problem,) = problems
        assert f"(s) the text has {total} <image> and 'image' has {pictures} path(s)" in problem
    elif in_system:
        (problem,) = problems
        assert "(s): turn 1, from the system, has 1 picture; only user turns can hold pictures" in problem
    else:
        assert problems == []


RECORDS: list[Any] = [
    said("<image>What?", "A cat.", "And <image>?", "A dog.", image=["a.png", "b.png"]),
    said("<video>What?", "It moves.", video="a.mp4"),
    said("Hi é", "Hello", id=3),
    asked([{"type": "image", "image": "a.png"}, {"type": "text", "text": "What?"}]),
    asked([{"type": "video", "video": ["a.png", "b.png"]}, {"type": "image_url", "image_url": {"url": "b.png"}}]),
    asked([{"type": "image"}, {"type": "text", "text": "é"}], images=["a.png"]),
]
ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.sampled_from(["", "<image>", "<video>", "\ud800", "a.png", "wide.png", "page.png", "empty.png", "pipe.png"]),
    st.sampled_from(["a.mp4", "folder.png", "../secret.png", "gpt", "human", "assistant", "system", "text", "video"]),
    st.lists(st.sampled_from(["a.png", "wide.png", {"from": "gpt", "value": "x"}, {"type": "image"}]), max_size=3),
    st.dictionaries(st.sampled_from(["type", "image", "from", "value"]), st.just("a.png"), max_size=2),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where values stand in a record."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(inner for key, item in items for inner in places(item, (*path, key)))]


def replaced(record: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copy = json.loads(json.dumps(record))
    reduce(lambda inner, key: inner[key], path[:-1], copy)[path[-1]] = value
    return copy


@given(st.sampled_from(RECORDS), st.lists(st.tuples(st.integers(0, 99), ANYTHING), max_size=2), st.booleans())
@settings(max_examples=200, deadline=None)
def test_a_record_with_any_value_replaced_is_read_or_refused_by_check_and_training_alike(
    media: Path,
    refused: Callable[[Source], list[str]],
    record: Any,
    changes: list[tuple[int, Any]],
    array: bool,
) -> None:
    for number, value in changes:
        known = places(record)
        record = replaced(record, known[number % len(known)], value)
    path = media.parent / "data.json"
    path.write_text(joined([record], array), encoding="utf-8")
    for source in (LlavaFile(path=path, image_root=media), MessagesFile(path=path, image_root=media)):
        found, training = listed(source), refused(source)
        event("refused" if training else "read")
        assert all(problem.startswith(f"{path}:{1 + array}: (") for problem in found)
        # Training stops at a sample's first problem that shows only when its turns and media are looked at.
        assert training == found[: len(training)]
        assert bool(training) == bool(found)


@given(st.booleans(), CHANGES, st.integers(0, 900))
@settings(max_examples=150, deadline=None)
def test_a_file_with_any_bytes_replaced_gives_conversations_or_problems_with_their_places(
    media: Path,
    refused: Callable[[Source], list[str]],
    array: bool,
    changes: list[tuple[int, bytes]],
    cut: int,
) -> None:
    path = media.parent / "data.json"
    path.write_bytes(mutated(joined(RECORDS, array).encode(), changes, max(0, cut - 500)))
    for source in (LlavaFile(path=path, image_root=media), MessagesFile(path=path, image_root=media)):
        found, training = listed(source), refused(source)
        assert all(re.match(rf"{path}(:\d+(:\d+)?)?: ", problem) for problem in found)  # or that it is no JSON at all
        assert set(training) <= set(found)
        assert bool(training) == bool(found)
