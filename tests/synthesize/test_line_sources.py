"""Pictures and videos in files of one JSON object a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from opsin.core.errors import DataError
from opsin.synthesize.context import Thing
from opsin.synthesize.sources import lines
from opsin.synthesize.sources.jsonl import Jsonl
from opsin.synthesize.sources.videos import Videos


@pytest.fixture
def media(tmp_path: Path) -> Path:
    folder = tmp_path / "media"
    (folder / "sub").mkdir(parents=True)
    Image.new("RGB", (8, 6)).save(folder / "a.png")
    Image.new("RGB", (8, 6)).save(folder / "sub" / "b.png")
    (folder / "clip.mp4").write_bytes(b"video")
    return folder


def written(tmp_path: Path, *rows: Any) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_pictures(media: Path, tmp_path: Path) -> None:
    objects = [
        {"name": "dog", "box": [0, 0, 4, 3], "category": "animal"},
        {"name": "two flowers", "category": ["plants", "flowers"]},
        {"name": "orange"},
    ]
    path = written(
        tmp_path,
        {"image": "sub/b.png", "captions": ["A dog."], "objects": objects, "size": [8, 6]},
        "",
        {"id": "x", "image": "a.png", "text": "EXIT\nonly"},
    )
    found = Jsonl(path=path, image_root=media).read(tmp_path)
    assert found.problems == ()
    first, second = found.subjects
    assert (first.id, first.images, first.where) == ("sub/b", ("sub/b.png",), f"{path}:1")
    assert first.context.things == (
        Thing("a dog", ("animal",), (0, 0, 0.5, 0.5)),
        Thing("two flowers", ("plants", "flowers")),
        Thing("an orange", ("orange",)),
    )
    assert first.context.exhaustive == "nothing"
    assert (second.id, second.context.text) == ("x", "EXIT\nonly")
    assert {thing.name for thing in found.vocabulary.catalogue} == {"a dog", "two flowers", "an orange"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{", "not JSON (EOF while parsing an object at character 1); write one object, {...}, on each line"),
        ("a.png: A dog.", "not JSON (expected value at character 1); write one object, {...}, on each line"),
        ('{"image": "a.png",}', "not JSON (trailing comma at character 19); write one object, {...}, on each line"),
        ("[1]", "expected a mapping, got a list of 1"),
        ({"captions": ["A."]}, "image: missing; this key is required"),
        ({"imgae": "a.png"}, "imgae: unknown key; did you mean 'image'? (and 1 more)"),
        ({"image": "a.png", "boxes": []}, "boxes: unknown key; known: captions, id, image, objects, size, text"),
        (
            {"image": "a.png", "objects": [{"name": "dog", "bbox": []}]},
            "objects.0.bbox: unknown key; did you mean 'box'?",
        ),
        ({"image": "a.png", "captions": "A dog."}, "captions: expected a list, got 'A dog.'"),
        ({"image": "a.png", "captions": [3]}, "captions.0: expected a text, got 3"),
        ({"image": "a.png", "captions": ["a\x00b"]}, "caption 1 is empty or has control characters"),
        ({"image": "a.png", "captions": [" "]}, "caption 1 is empty"),
        ({"image": "none.png"}, "no such file"),
        ({"image": ""}, "is empty"),
        ({"image": "../media/a.png"}, "'..' in the path"),
        ({"image": "http://example.org/a.png"}, "a URL"),
        ({"image": "a.png", "objects": [{"name": "dog", "box": [0, 0, 4, 3]}]}, "not within 0..1"),
        ({"image": "a.png", "objects": [{"name": "dog", "box": [0.5, 0, 0.4, 1]}]}, "has no area"),
        (
            {"image": "a.png", "objects": [{"name": "dog", "box": [0, 0, 1]}]},
            "objects.0.box: expected [x1, y1, x2, y2], got a list of 3",
        ),
        ({"image": "a.png", "objects": [{"name": "d" * 81}]}, "1 to 80 characters"),
        ({"image": "a.png", "size": [0, 4]}, "is no width and height"),
        ({"image": "a.png", "size": [8]}, "size: expected [width, height], got a list of 1"),
        ({"image": "a.png", "size": "8x6"}, "size: expected a list, got '8x6'"),
        ({"image": "a.png", "text": "a\x1bb"}, "the text has control characters"),
        ({"image": "a.png", "captions": ["A dog."] * 101}, "captions: expected at most 100 items, got a list of 101"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(row: Any, said: str, media: Path, tmp_path: Path) -> None:
    path = written(tmp_path, {"image": "sub/b.png"}, row)
    found = Jsonl(path=path, image_root=media).read(tmp_path)
    assert len(found.subjects) == 1
    (problem,) = found.problems
    assert problem.startswith(f"{path}:2: ")
    assert said in problem


def test_a_line_without_an_end_does_not_fill_the_memory(
    media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "MOST_LINE_BYTES", 100)
    path = written(tmp_path, "x" * 950, {"image": "a.png"})
    found = Jsonl(path=path, image_root=media).read(tmp_path)
    assert [subject.where for subject in found.subjects] == [f"{path}:2"]
    assert found.problems == (f"{path}:1: more than 100 bytes in one line",)


def test_a_file_that_is_gone(media: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        Jsonl(path=tmp_path / "none.jsonl", image_root=media).read(tmp_path)


def test_videos(media: Path, tmp_path: Path) -> None:
    frames = [{"time": 0, "captions": ["A man."]}, {"time": 2.5, "captions": ["A dog."], "objects": [{"name": "dog"}]}]
    path = written(tmp_path, {"video": "clip.mp4", "frames": frames})
    found = Videos(path=path, video_root=media).read(tmp_path)
    assert found.problems == ()
    (subject,) = found.subjects
    assert (subject.id, subject.video, subject.images, subject.times) == ("clip", "clip.mp4", (), (0.0, 2.5))
    assert subject.contexts[1].captions == ("A dog.",)
    assert subject.contexts[1].exhaustive == "nothing"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"video": "clip.mp4", "frames": []}, "frames: an empty list; it needs at least one item"),
        (
            {"video": "clip.mp4", "frames": [{"tiem": 1, "captions": ["A."]}]},
            "frames.0.tiem: unknown key; did you mean 'time'?",
        ),
        ({"video": "clip.mp4", "frames": [{"time": -1, "captions": ["A."]}]}, "greater than or equal to 0"),
        ({"video": "clip.mp4", "frames": [{"time": 1}]}, "nothing is known of the frame at 1 seconds"),
        ({"video": "clip.mp4", "frames": [{"time": 1, "captions": ["A."]}] * 2}, "not in the order of their times"),
        ({"video": "none.mp4", "frames": [{"time": 1, "captions": ["A."]}]}, "no such file"),
        ({"video": "clip.mp4", "frames": [{"time": 1, "captions": [""]}]}, "caption 1 is empty"),
    ],
)
def test_a_video_that_cannot_be_used_is_named(row: Any, said: str, media: Path, tmp_path: Path) -> None:
    path = written(tmp_path, row)
    found = Videos(path=path, video_root=media).read(tmp_path)
    assert found.subjects == ()
    assert said in found.problems[0]
    assert found.problems[0].startswith(f"{path}:1: ")
