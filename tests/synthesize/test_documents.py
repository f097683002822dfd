"""Texts and tables drawn as pictures: what is known to be written there is what was drawn."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFont

from opsin.core.errors import DataError
from opsin.synthesize.sources import drawing
from opsin.synthesize.sources.base import Collected
from opsin.synthesize.sources.documents import Documents

TABLE = [["City", "People"], ["Aachen", 249070], ["Bonn", 331885]]


def read(folder: Path, *rows: Any, **options: Any) -> Collected:
    path = folder / "documents.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return Documents(path=path, **options).read(folder / "out")


def spy(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is drawn, line by line."""
    drawn: list[str] = []
    original = drawing.ImageDraw.ImageDraw.text

    def text(self: Any, place: Any, line: str, *more: Any) -> None:
        drawn.append(line)
        original(self, place, line, *more)

    monkeypatch.setattr(drawing.ImageDraw.ImageDraw, "text", text)
    return drawn


def test_a_text_is_drawn_as_it_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = spy(monkeypatch)
    body = "The  quick brown fox jumps over the lazy dog. " * 12 + "\n\nThe end."
    found = read(tmp_path, {"id": "a/b", "title": "A fox", "text": body})
    (subject,) = found.subjects
    assert found.problems == ()
    assert subject.root == tmp_path / "out"
    with Image.open(subject.root / subject.images[0]) as image:
        assert image.width == 800
        assert image.height <= 1200
        pixels = np.asarray(image.convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 2
    paper = pixels[0, 0]
    assert (pixels[:, -30:] == paper).all(), "something is drawn in the margin"
    assert (pixels[-30:] == paper).all()
    assert " ".join(drawn).split() == subject.context.text.split()
    assert subject.context.text.startswith("A fox\nThe quick brown")
    assert len(drawn) > 5


def test_a_table_is_drawn_cell_by_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = spy(monkeypatch)
    (subject,) = read(tmp_path, {"id": "t", "title": "Cities", "table": TABLE}).subjects
    assert drawn == ["Cities", "City", "People", "Aachen", "249070", "Bonn", "331885"]
    assert subject.context.text == "Cities\nCity | People\nAachen | 249070\nBonn | 331885"
    assert subject.context.table == (("City", "People"), ("Aachen", "249070"), ("Bonn", "331885"))


def test_the_same_document_has_the_same_bytes_and_is_written_once(tmp_path: Path) -> None:
    def once() -> tuple[bytes, int]:
        (subject,) = read(tmp_path, {"id": "a", "text": "Some words."}).subjects
        path = subject.root / subject.images[0]
        return path.read_bytes(), path.stat().st_mtime_ns

    assert once() == once()


def test_letters_that_a_font_lacks_are_refused_by_name(tmp_path: Path) -> None:
    found = read(tmp_path, {"id": "a", "text": "Exit 出口"}, {"id": "b", "text": "Exit"})
    assert [subject.id for subject in found.subjects] == ["b"]
    assert (
        "documents.jsonl:1: a: '出' (U+51FA), '口' (U+53E3)" in found.problems[0]
        or "'口' (U+53E3)" in found.problems[0]
    )
    assert "Pillow's own font" in found.problems[0]
    assert "`fonts`" in found.problems[0]


@pytest.mark.parametrize("text", ["שלום", "مرحبا", "q\u0301"])
def test_scripts_that_need_shaping_are_refused(text: str, tmp_path: Path) -> None:
    found = read(tmp_path, {"id": "a", "text": text})
    assert found.subjects == ()
    assert "from right to left or with combining marks" in found.problems[0]


def test_a_font_that_has_all_letters_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One font has everything (it stands for a font of Chinese), the other little more than ASCII."""
    own = ImageFont.load_default(20)
    assert isinstance(own, ImageFont.FreeTypeFont)
    stream = own.font_bytes
    paths = []
    for name in ("one.ttf", "two.ttf"):
        (tmp_path / name).write_bytes(stream)
        paths.append(tmp_path / name)
    monkeypatch.setattr(drawing, "_has", lambda path, letter: path == paths[1] or letter.isascii())
    used: list[Path | None] = []
    original = drawing.draw_text

    def draw_text(title: str, text: str, path: Path | None, *more: Any) -> bytes | None:
        used.append(path)
        return original(title, text, path, *more)

    monkeypatch.setattr(drawing, "draw_text", draw_text)
    rows: Sequence[Any] = [{"id": str(number), "text": "出口"} for number in range(5)]
    assert len(read(tmp_path, *rows, fonts=paths).subjects) == 5
    assert used == [paths[1]] * 5
    used.clear()
    read(tmp_path, *({"id": str(number), "text": "Exit"} for number in range(20)), fonts=paths)
    assert set(used) == set(paths)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"id": "a"}, "expected either a text or a table"),
        ({"id": "a", "text": "x", "table": TABLE}, "expected either a text or a table"),
        ({"id": "a", "table": [["A", "B"], ["1"]]}, "rows of as many cells"),
        ({"id": "a", "table": [["A", "B"]] * 300}, "600 cells; the limit is 400"),
        ({"id": "", "text": "x"}, "id: "),
        ({"id": "a", "text": "word " * 3900}, "do not fit a page of 800x1200 pixels"),
        ({"id": "a", "text": "w" * 300}, "do not fit a page"),
        ({"id": "a", "table": [["word " * 60] * 2] * 2}, "the table does not fit a page"),
        ({"id": "a", "text": "a\x07b"}, "control characters"),
    ],
)
def test_a_document_that_cannot_be_drawn_is_named(row: Any, said: str, tmp_path: Path) -> None:
    found = read(tmp_path, row)
    assert found.subjects == ()
    assert said in found.problems[0]
    assert not (tmp_path / "out" / "images").exists()


def test_chinese_is_broken_into_lines_anywhere() -> None:
    font = drawing.font_of(None, 20)
    page = drawing.Page(200, 400)
    lines = drawing._wrapped("出口" * 40, font, page)
    assert len(lines) > 1
    assert "".join(lines) == "出口" * 40
    assert max(font.getlength(line) for line in lines) <= 136


def test_a_file_that_is_no_font_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.ttf").write_bytes(b"no font")
    with pytest.raises(DataError, match=r"x\.ttf: not a font that can be used"):
        read(tmp_path, {"id": "a", "text": "x"}, fonts=[tmp_path / "x.ttf"])
