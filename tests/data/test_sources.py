from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import TypeAdapter

from opsin.core.errors import DataError
from opsin.core.types import Clip, Conversation, Picture, Turn
from opsin.data.sources import LlavaFile, MessagesFile, Source

if TYPE_CHECKING:
    from pathlib import Path

    from opsin.data.records import JsonFile


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "images" / name).write_bytes(b"x")
    (tmp_path / "secret.jpg").write_bytes(b"x")
    (tmp_path / "images" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    return tmp_path


def llava(*turns: str, **fields: Any) -> dict[str, Any]:
    said = [{"from": "gpt" if i % 2 else "human", "value": text} for i, text in enumerate(turns)]
    return {"id": "s1", "conversations": said, **fields}


def written(folder: Path, records: list[Any], *, array: bool = False) -> Path:
    path = folder / "data.json"
    lines = [json.dumps(record) for record in records]
    path.write_text("[\n" + ",\n".join(lines) + "\n]" if array else "\n".join(lines), encoding="utf-8")
    return path


def read_llava(path: Path) -> list[Conversation]:
    return list(LlavaFile(path=path, image_root=path.parent / "images").conversations(Counter()))


def read_messages(path: Path) -> list[Conversation]:
    return list(MessagesFile(path=path, image_root=path.parent / "images").conversations(Counter()))


def problems_of(path: Path, read: Any = read_llava) -> list[str]:
    with pytest.raises(DataError) as caught:
        read(path)
    return [problem.removeprefix(f"{path}:") for problem in caught.value.problems]


@pytest.mark.parametrize("array", [True, False])
def test_marks_become_parts_and_text_stays_as_written(folder: Path, array: bool) -> None:
    path = written(
        folder,
        [
            llava("<image>\nWhat?", "A cat.", image="a.jpg"),
            llava("Compare <image> and <image>.", "Same.", "Why?\n<image>", "No.", image=["a.jpg", "b.jpg", "a.jpg"]),
            llava("Hi", "Yo", id=7, image=None),
        ],
        array=array,
    )
    a, b = (Picture(path=folder / "images" / name) for name in ("a.jpg", "b.jpg"))
    first, second, third = read_llava(path)
    assert first == Conversation(
        id="s1", turns=(Turn("user", (a, "\nWhat?")), Turn("assistant", ("A cat.",))), where=f"{path}:{1 + array}"
    )
    assert second.turns[0].parts == ("Compare ", a, " and ", b, ".")
    assert second.turns[2].parts == ("Why?\n", a)
    assert (third.id, third.media, third.where) == ("7", (), f"{path}:{3 + array}")


def test_counts_and_the_dropped_first_gpt_turn(folder: Path) -> None:
    record = llava("Hi", "Yo", "<image>", "ok", image="a.jpg")
    record["conversations"] = record["conversations"][1:]
    source = LlavaFile(path=written(folder, [record]), image_root=folder / "images")
    counts: Counter[str] = Counter()
    conversations = [*source.conversations(counts), *source.conversations(counts)]
    assert [turn.role for turn in conversations[0].turns] == ["user", "assistant"]
    assert counts == {"conversations": 2, "turns": 4, "pictures": 2, "leading gpt turns dropped": 2}


def test_every_problem_of_the_file_is_reported_at_once(folder: Path) -> None:
    path = written(
        folder,
        [
            llava("<image> <image>", "A", image="a.jpg"),
            llava("Q", "A", image="a.jpg"),
            llava("<image>", "A"),
            llava("Q", "A <image>", image="a.jpg", id="s4"),
            llava("<image><image>", "A", image=["gone.jpg", "../secret.jpg"]),
            llava("<image>", "A", image=str(folder / "secret.jpg")),
            llava("<image>", "A", image="link.jpg"),
            {"id": "s8", "conversations": "no"},
            {"conversations": [{"from": "robot", "value": "x"}]},
            {"id": "s10", "conversations": [{"from": "human", "value": 3}]},
            {"id": [1], "conversations": [{"from": "human", "value": "x"}]},
            {"id": "s12", "conversations": []},
            ["no record"],
            llava("cut \ud83d", "A", id="s14"),
            llava("<image>", "A", image={"path": "a.jpg"}),
            llava("<image>", "A", image="a\0.jpg"),
            llava("fine", "A"),
        ],
    )
    images = folder / "images"
    marks = "every mark needs one image and every image one mark"
    assert problems_of(path) == [
        f"1: (s1) the text has 2 <image> and 'image' has 1 path(s); {marks}",
        f"2: (s1) the text has 0 <image> and 'image' has 1 path(s); {marks}",
        f"3: (s1) the text has 1 <image> and 'image' has 0 path(s); {marks}",
        "4: (s4) turn 2 is an answer with 1 <image>; media belong to human turns",
        f"5: (s1) image 'gone.jpg': no such file under {images}; correct the path or image_root",
        "5: (s1) image '../secret.jpg': '..' in the path; make it relative to image_root, or set allow_outside",
        f"6: (s1) image '{folder / 'secret.jpg'}': absolute path out of {images}; "
        "make it relative to image_root, or set allow_outside",
        f"7: (s1) image 'link.jpg': a link out of {images}; copy the file in, or set allow_outside",
        "8: (s8) 'conversations' must be a list of turns, got str 'no'",
        "9: (line 9) turn 1: 'from' must be 'human' or 'gpt' or 'user' or 'assistant' or 'system', got str 'robot'",
        "10: (s10) turn 1: 'value' must be a text, got int 3",
        "11: (line 11) 'id' must be a text or a number, got list [1]",
        "12: (s12) has 0 turns; remove the record",
        "13: (line 13) the record must be a JSON object, got list ['no record']",
        "14: (s14) turn 1: half a character (lone surrogate U+D83D) at character 4; was the text cut? remove it",
        "15: (s1) 'image' must be a path or a list of paths, got dict {'path': 'a.jpg'}",
        "16: (s1) image path 'a\\x00.jpg' is empty or has a null character; correct it",
    ]


def test_good_records_come_before_the_error(folder: Path) -> None:
    reader = LlavaFile(path=written(folder, [llava("a", "b"), 3])).conversations(Counter())
    assert next(reader).turns[0].parts == ("a",)
    with pytest.raises(DataError):
        next(reader)


def test_paths_outside_can_be_allowed(folder: Path) -> None:
    names = [str(folder / "secret.jpg"), "../secret.jpg", "link.jpg"]
    path = written(folder, [llava("<image>" * 3, "A", image=names)])
    (found,) = LlavaFile(path=path, image_root=folder / "images", allow_outside=True).conversations(Counter())
    assert len(found.media) == 3


def test_images_are_beside_the_file_by_default(folder: Path) -> None:
    path = written(folder / "images", [llava("<image>", "A", image="a.jpg")])
    (found,) = LlavaFile(path=path).conversations(Counter())
    assert found.media[0].path == folder / "images" / "a.jpg"


def test_bom_blank_lines_and_windows_line_ends(folder: Path) -> None:
    path = folder / "data.jsonl"
    record = json.dumps(llava("Hi\r\nthere", "Yo"))
    path.write_bytes(b"\xef\xbb\xbf" + f"{record}\r\n\r\n   \r\n{record}\r\n".encode())
    assert [c.where for c in read_llava(path)] == [f"{path}:1", f"{path}:4"]
    path.write_bytes(b"\xef\xbb\xbf" + f"\r\n[\r\n{record}\r\n,\r\n{record}]\r\n".encode())
    assert [c.where for c in read_llava(path)] == [f"{path}:3", f"{path}:5"]
    assert read_llava(path)[0].turns[0].parts == ("Hi\r\nthere",)


RECORD = json.dumps(llava("Hi", "Yo")).encode()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (RECORD + b'\n{"id": \n', "2:7: not valid JSON (Expecting value); "
         "every line must hold one whole record"),
        (RECORD + b"\n\xff\n", "2:1: byte 0xff is not UTF-8; save the file as UTF-8"),
        (b"\n" + b'{"a":' * 100_000, "2:1: JSON nested too deeply to read; repair or remove the record"),
        (b"[\n" + RECORD + b",\n]", "3:1: not valid JSON (Expecting value); the rest of the file is not read"),
        (b"[\n" + RECORD + b"\n", "3:1: expected ',' or ']' after a record, found the end of the file; "
         "is the file cut short?"),
        (b"[\n" + RECORD + b"\n" + RECORD + b"]", "3:1: expected ',' or ']' after a record, found '{'; "
         "is the file cut short?"),
        (b"[]\nxx", "2:1: 2 characters after the closing ']'; remove them"),
        (b"[\n\xff]", "2:1: byte 0xff is not UTF-8; save the file as UTF-8"),
        (b"[\n" + b"[" * 200_000, "2:1: JSON nested too deeply to read; the rest of the file is not read"),
    ],
)  # fmt: skip
def test_damaged_files(folder: Path, content: bytes, problem: str) -> None:
    path = folder / "data.jsonl"
    path.write_bytes(content)
    assert problems_of(path) == [problem]


def test_numbers_too_long_to_read(folder: Path) -> None:
    path = folder / "data.jsonl"
    path.write_bytes(b'{"id": ' + b"9" * 5000 + b"}")
    assert problems_of(path)[0].startswith("1:1: not valid JSON (Exceeds the limit")


@pytest.mark.parametrize("content", [b"", b"\n \n", b"[]", b" [ ] "])
def test_empty_files_have_no_conversations(folder: Path, content: bytes) -> None:
    (folder / "data.json").write_bytes(content)
    assert read_llava(folder / "data.json") == []


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_llava(tmp_path / "gone.json")
    assert str(caught.value) == f"1 problem in the data\n{tmp_path}/gone.json: no such file; correct the path"


def test_messages(folder: Path) -> None:
    content = [{"type": "text", "text": "See "}, {"type": "image", "image": "a.jpg"}]
    messages = [
        {"role": "system", "content": ""},
        {"role": "user", "content": content},
        {"role": "assistant", "content": "literal <image> and <|im_end|>"},
    ]
    (found,) = read_messages(written(folder, [{"messages": messages}]))
    assert found == Conversation(
        id="line 1",
        where=f"{folder}/data.json:1",
        turns=(
            Turn("system", ()),
            Turn("user", ("See ", Picture(path=folder / "images" / "a.jpg"))),
            Turn("assistant", ("literal <image> and <|im_end|>",)),
        ),
    )


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ({"role": "tool", "content": "x"}, "turn 1: 'role' must be 'system' or 'user' or 'assistant', got str 'tool'"),
        ({"role": "user"}, "message 1: 'content' must be a text or a list of items, got nothing"),
        ({"role": "user", "content": [3]}, "message 1, item 1 must be a JSON object, got int 3"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": "x"}]},
            "message 1, item 1: 'image_url' must be a JSON object, got str 'x'",
        ),
        (
            {"role": "user", "content": [{"type": "audio", "audio": "x"}]},
            "message 1, item 1: 'type' must be 'text', 'image', 'image_url' or 'video', got str 'audio'",
        ),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://a.b/c.png"}}]},
            "image 'https://a.b/c.png': a URL; opsin opens local files only: fetch it, and give its path",
        ),
        (
            {"role": "user", "content": [{"type": "image", "image": "data:image/png;base64,%%%"}]},
            "message 1, item 1: not valid base64",
        ),
        (
            {"role": "user", "content": [{"type": "video", "video": []}]},
            "message 1, item 1: 'video' is an empty list; it needs at least one frame",
        ),
        (
            {"role": "user", "content": [{"type": "image", "image": "a.jpg", "max_pixels": 9}]},
            "message 1, item 1: unknown key 'max_pixels'; an item of type 'image' has 'type' and 'image' only; sizes "
            "are the model's: set them in model.resolution and model.video",
        ),
        ({"role": "user", "content": [{"type": "text"}]}, "message 1, item 1: 'text' must be a text, got nothing"),
        ("x", "message 1 must be a JSON object, got str 'x'"),
    ],
)
def test_messages_that_cannot_be_used(folder: Path, message: Any, problem: str) -> None:
    path = written(folder, [{"id": "m", "messages": [message]}])
    assert problems_of(path, read_messages) == [f"1: (m) {problem}"]


def test_sources_are_configuration_values(tmp_path: Path) -> None:
    adapter: TypeAdapter[Source] = TypeAdapter(Source)
    source = adapter.validate_python({"kind": "messages", "path": tmp_path / "x.jsonl"})
    assert source == MessagesFile(path=tmp_path / "x.jsonl")


def with_videos(folder: Path) -> Path:
    for name in ("a.mp4", "b.mkv"):
        (folder / "images" / name).write_bytes(b"x")
    return folder / "images"


def test_videos_take_their_marks_or_llavas_image_marks(folder: Path) -> None:
    media = with_videos(folder)
    picture, clips = Picture(path=media / "a.jpg"), [Clip(path=media / "a.mp4"), Clip(path=media / "b.mkv")]
    path = written(
        folder,
        [
            llava("<image>\nWhat happens?", "It moves.", video="a.mp4"),
            llava("<video> then <video>?", "No.", videos=["a.mp4", "b.mkv"]),
            llava("<video> and <image>", "Yes.", images=["a.jpg"], video="b.mkv"),
        ],
    )
    first, second, third = read_llava(path)
    assert first.turns[0].parts == (clips[0], "\nWhat happens?")
    assert second.turns[0].parts == (clips[0], " then ", clips[1], "?")
    assert third.turns[0].parts == (clips[1], " and ", picture)


def test_typed_items_of_qwen_and_openai(folder: Path) -> None:
    media = with_videos(folder)
    content = [
        {"type": "image_url", "image_url": {"url": "a.jpg"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}},
        {"type": "video", "video": "a.mp4"},
        {"type": "video", "video": ["a.jpg", "b.jpg"]},
        {"type": "text", "text": "<image> stays text"},
    ]
    said = [{"role": "user", "content": content}, {"role": "assistant", "content": "Yes."}]
    (found,) = read_messages(written(folder, [{"messages": said}]))
    pictures = [Picture(path=media / name) for name in ("a.jpg", "b.jpg")]
    assert found.turns[0].parts == (
        pictures[0],
        Picture(data=b"ABC"),
        Clip(path=media / "a.mp4"),
        Clip(frames=tuple(pictures)),
        "<image> stays text",
    )


def test_messages_with_media_beside_them_use_marks(folder: Path) -> None:
    said = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "A cat."}]
    (found,) = read_messages(written(folder, [{"messages": said, "images": ["a.jpg"]}]))
    assert found.turns[0].parts == (Picture(path=folder / "images" / "a.jpg"), "What?")


def test_marks_and_videos_that_do_not_match_are_named(folder: Path) -> None:
    with_videos(folder)
    path = written(
        folder,
        [
            llava("<image>", "A", video=["a.mp4", "b.mkv"]),
            llava("<video>", "A"),
            llava("<image>", "A", image="a.jpg", images=["b.jpg"]),
            llava("<video>", "A", video="gone.mp4"),
        ],
    )
    assert problems_of(path) == [
        "1: (s1) the text has 1 <image> and 'video' has 2 path(s); every mark needs one video and every video one mark",
        "2: (s1) the text has 1 <video> and 'video' has 0 path(s); every mark needs one video and every video one mark",
        "3: (s1) has both 'image' and 'images'; keep one of them",
        f"4: (s1) video 'gone.mp4': no such file under {folder / 'images'}; correct the path or image_root",
    ]


def test_an_absolute_path_below_image_root_is_one_of_its_paths(folder: Path) -> None:
    path = written(folder, [llava("<image>", "A", image=str(folder / "images" / "a.jpg"))])
    (conversation,) = LlavaFile(path=path, image_root=folder / "images").conversations(Counter())
    assert [medium.path for medium in conversation.media] == [folder / "images" / "a.jpg"]
    linked = written(folder, [llava("<image>", "A", image=str(folder / "images" / "link.jpg"))])
    with pytest.raises(DataError, match="absolute path out of"):
        list(LlavaFile(path=linked, image_root=folder / "images").conversations(Counter()))


@pytest.mark.parametrize(
    ("source", "record", "problem"),
    [
        (LlavaFile, {"messages": []}, "has no 'conversations', but 'messages': the kind of its source is messages"),
        (
            MessagesFile,
            {"conversations": []},
            "has no 'messages', but 'conversations': the kind of its source is llava",
        ),
        (LlavaFile, {"image": "a.jpg", "caption": "A"}, "has no 'conversations'; its keys are 'image', 'caption'"),
    ],
)
def test_a_record_of_another_format_is_told_by_its_keys(
    folder: Path, source: type[JsonFile], record: dict[str, Any], problem: str
) -> None:
    path = written(folder, [record])
    with pytest.raises(DataError) as caught:
        list(source(path=path).conversations(Counter()))
    assert caught.value.problems == (f"{path}:1: (line 1) {problem}",)
