"""Texts and tables that are drawn as pictures, so that what is written in them is known exactly."""

from __future__ import annotations

import random
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from opsin.core.errors import DataError
from opsin.core.files import sha256_bytes, write_bytes
from opsin.core.paths import ExistingFile, ExistingFiles
from opsin.synthesize.context import Context, Vocabulary
from opsin.synthesize.sources.base import Collected, SourceBase, is_clean, without_too_long
from opsin.synthesize.sources.lines import LineBase, read_lines
from opsin.synthesize.subject import Subject

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opsin.synthesize.sources.drawing import Page

FOLDER = "images"
MOST_CELLS = 400


class DocumentLine(LineBase):
    """One line: a text, or a table whose first row is its header."""

    id: str = Field(min_length=1, max_length=200)
    title: str = Field("", max_length=200)
    text: str = Field("", max_length=20_000)
    table: list[list[str | int | float]] | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> DocumentLine:
        if bool(self.text.strip()) == (self.table is not None):
            raise ValueError("expected either a text or a table")
        if self.table is not None:
            widths = {len(row) for row in self.table}
            if len(self.table) < 2 or len(widths) != 1 or max(widths) < 2:
                raise ValueError("a table has a header and rows of as many cells, at least two")
            if len(self.table) * max(widths) > MOST_CELLS:
                raise ValueError(f"{len(self.table) * max(widths)} cells; the limit is {MOST_CELLS}")
        return self


class Documents(SourceBase):
    """`{"id", "title", "text"}` or `{"id", "title", "table": [header, row, ...]}`, drawn with one of the fonts.

    Every document takes a font that has all of its letters, by the hash of its id; without `fonts` all are set in
    Pillow's own font, which has the letters of English.
    """

    kind: Literal["documents"] = "documents"
    path: ExistingFile
    fonts: ExistingFiles | None = None
    width: int = Field(800, ge=200, le=4096)
    """Of the pages, in pixels."""
    height: int = Field(1200, ge=200, le=4096)
    """Of the pages, at most."""

    @property
    def told(self) -> str:
        """The file."""
        return f"drawing {self.path}"

    def read(self, out: Path) -> Collected:
        """Draw every document into `out/images`; what is there already with the same bytes is left alone."""
        from opsin.synthesize.sources.drawing import Page, font_of

        root, page, fonts = out.absolute(), Page(self.width, self.height), self.fonts or (None,)
        for font in fonts:
            try:
                font_of(font, 20)
            except OSError as error:
                raise DataError([f"{font or self.path}: not a font that can be used: {error}"]) from error
        problems: list[str] = []
        subjects = []
        for where, line in read_lines(self.path, DocumentLine, problems):
            context = _context(line)
            data = _drawn(line.id, context, fonts, page)
            if isinstance(data, str):
                problems.append(f"{where}: {line.id}: {data}")
                continue
            image = f"{FOLDER}/{sha256_bytes(f'{self.id_prefix}{line.id}'.encode())[:20]}.png"
            if not (root / image).is_file() or (root / image).read_bytes() != data:
                write_bytes(root / image, data)
            subjects.append(Subject(line.id, (image,), (context,), root, where))
        return Collected(root, without_too_long(subjects, problems), Vocabulary(()), tuple(problems))


def _context(line: DocumentLine) -> Context:
    """What will be written, with the spaces that will be drawn, and letters with their accents in one piece."""
    title = _spaced(line.title)
    if line.table is None:
        paragraphs = [_spaced(paragraph) for paragraph in line.text.splitlines()]
        body = "\n".join(paragraph for paragraph in paragraphs if paragraph)
        return Context((), (), "nothing", "\n".join(part for part in (title, body) if part), title)
    table = tuple(tuple(_spaced(str(cell)) for cell in row) for row in line.table)
    body = "\n".join(" | ".join(row) for row in table)
    return Context((), (), "nothing", "\n".join(part for part in (title, body) if part), title, table)


def _spaced(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def _drawn(identity: str, context: Context, fonts: Sequence[Path | None], page: Page) -> bytes | str:
    """The picture of a document, or why there is none."""
    from opsin.synthesize.sources.drawing import draw_table, draw_text, unusable_letters

    if not is_clean(context.text):
        return "control characters cannot be drawn"
    rng = random.Random(sha256_bytes(identity.encode()))
    refusals = {font: unusable_letters(context.text, font) for font in fonts}
    usable = [font for font, refusal in refusals.items() if not refusal]
    if not usable:
        return min(refusals.values(), key=len)
    font = rng.choice(usable)
    if context.table:
        data = draw_table(context.title, context.table, font, page, rng)
    else:
        text = context.text.removeprefix(context.title).removeprefix("\n") if context.title else context.text
        data = draw_text(context.title, text, font, page, rng)
    if data is None:
        what = "the table does" if context.table else f"{len(context.text):,} characters do"
        return f"{what} not fit a page of {page.width}x{page.height} pixels (WxH); shorten it, or give larger pages"
    return data
