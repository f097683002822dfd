"""A data file is shown as it is: turns, media in their places, problems, counts."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from opsin.core.errors import OpsinError
from opsin.data.check import source_of
from opsin.report.file_page import page
from opsin.report.file_view import look_at
from opsin.report.inspect_json import file_value
from opsin.report.inspect_terminal import file_lines
from tests.support.models import draw_picture
from tests.support.videos import write_video
from tests.support.views import EVIL, Page

if TYPE_CHECKING:
    from pathlib import Path


def record(identity: str, question: str, answer: str, **media: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": identity, "conversations": turns, **media}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    draw_picture(tmp_path / "a.png", 1, (60, 40))
    write_video(tmp_path / "v.mkv", range(30))
    records = [
        record("one", "Before <image> after", "A cat.", image="a.png"),
        record("clip", "<video>\nWhat?", "It jumps.", video="v.mkv"),
        record("gone", "<image>", "x", image="missing.png"),
        record("evil", EVIL.replace("<image", "<picture"), "answer"),
        record("empty", "Nothing?", "  "),
        record("one", "Twice?", "Yes."),
    ]
    path = tmp_path / "data.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def test_the_page_of_a_file(file: Path) -> None:
    html = page(look_at(source_of(file), 10))
    found = Page(html)
    assert found.open == []
    assert found.handlers == []
    assert all(address.startswith("data:image/jpeg;base64,") for address in found.addresses)
    assert not {"script", "link", "iframe", "object"} & found.tags
    assert "\x1b" not in html
    assert html.count("<article") == 5
    assert "40×60 pixels (height × width)" in html
    assert re.search(r"30 frames, 10 a second: 3\.00 s; [\d,]+ bytes", html)
    assert len(re.findall(r"<figcaption>frame \d+, \d\.\d\d s<", html)) == 4
    assert html.index("Before ") < html.index("a.png</h4>") < html.index(" after")
    assert html.count("(gone)") == 1
    assert html.count("nothing to learn") == 2  # in the list, and at its sample
    assert "Problems: 2" in html
    assert "1 id is repeated" in html


def test_what_is_counted(file: Path) -> None:
    view = look_at(source_of(file), 2)
    assert view.kinds == {"text": 3, "image": 1, "video": 1}
    assert list(view.turns) == [2] * 5
    assert list(view.answers) == [6, 9, 6, 2, 4]
    assert list(view.sizes) == [(40, 60)]
    assert view.repeated == 1
    assert [one.id for one in view.chosen] == ["one", "evil"]


def test_samples_by_id(file: Path) -> None:
    assert [one.id for one in look_at(source_of(file), 1, ["one", "evil"]).chosen] == ["one", "evil", "one"]
    with pytest.raises(OpsinError, match=r"no sample has the id 'evi'; did you mean 'evil'\?"):
        look_at(source_of(file), 1, ["evi"])


def test_as_json(file: Path) -> None:
    value = json.loads(json.dumps(file_value(look_at(source_of(file), 2))))
    assert value["counts"]["conversations"] == 4
    assert {problem["kind"] for problem in value["problems"]} == {"record", "turns"}
    first = value["chosen"][0]["turns"][0]
    assert first["role"] == "user"
    assert [part["kind"] for part in first["parts"]] == ["text", "image", "text"]
    assert (first["parts"][1]["height"], first["parts"][1]["width"]) == (40, 60)


def test_in_the_terminal(file: Path) -> None:
    told = "\n".join(line.plain for line in file_lines(look_at(source_of(file), 10)))
    assert "samples: 3 text, 1 image, 1 video" in told
    assert "a.png: 40×60 pixels (height × width)" in told
    assert "problem: " in told
    assert "\x1b" not in told


def test_a_medium_that_is_damaged_is_said_in_its_place(file: Path) -> None:
    (file.parent / "a.png").write_bytes(b"no picture")
    html = page(look_at(source_of(file), 10))
    assert '<p class="problem">' in html
    assert "not a readable image" in html
