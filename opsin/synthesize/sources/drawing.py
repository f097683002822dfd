"""Texts and tables drawn as pictures with real fonts: the same bytes for the same text, font and Pillow.

Letters are placed one after the other, as Pillow's basic layout does on every machine; scripts that need shaping
(right to left, combining marks) are refused, and so are letters that a font does not have.
"""

from __future__ import annotations

import io
import unicodedata
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    import random

SIZES = (40, 34, 29, 25, 22, 19, 17, 15, 13)
"""Heights of letters in pixels; the largest that fits is taken."""
COLOURS = (
    ((255, 255, 255), (0, 0, 0)),
    ((255, 255, 255), (40, 40, 60)),
    ((250, 246, 235), (50, 35, 20)),
    ((238, 242, 247), (15, 30, 70)),
    ((30, 33, 40), (235, 235, 235)),
)
"""Paper and ink."""
LINE_HEIGHT = 1.4
CELL_PADDING = 0.6
"""Of the letters' height, on each side of a cell."""

Font = ImageFont.FreeTypeFont
NO_LETTER = "\U0010ffff"
"""A code point that no font has a letter for: what is drawn for it, is drawn for all that are missing."""


@dataclass(frozen=True)
class Page:
    """Width, largest height and margin in pixels."""

    width: int
    height: int
    margin: int = 32


@cache
def font_of(path: Path | None, size: int) -> Font:
    """A font file, or Pillow's own font.

    Raises:
        OSError: it is no font.
    """
    if path is None:
        font = ImageFont.load_default(size)
        if not isinstance(font, ImageFont.FreeTypeFont):
            raise OSError("Pillow was built without FreeType, so it has no font of its own; name font files in `fonts`")
        return font
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


def unusable_letters(text: str, path: Path | None) -> str:
    """What of a text cannot be drawn with a font, and why; empty if all can."""
    letters = sorted(set(text) - {" ", "\n"})
    if shaped := [letter for letter in letters if _needs_shaping(letter)]:
        return f"{_names(shaped)}: scripts that are written from right to left or with combining marks are not drawn"
    missing = [letter for letter in letters if not _has(path, letter)]
    font = path.name if path is not None else "Pillow's own font, which has little more than ASCII"
    return f"{_names(missing)}: not in {font}; name a font that has them in `fonts`" if missing else ""


def draw_text(title: str, text: str, path: Path | None, page: Page, rng: random.Random) -> bytes | None:
    """A title and paragraphs as a PNG, wrapped at spaces (in scripts without spaces, anywhere); None if too long."""
    paper, ink = rng.choice(COLOURS)
    for size in _sizes(rng):
        font, heading = font_of(path, size), font_of(path, round(size * 1.4))
        lines = [(line, heading) for line in _wrapped(title, heading, page)] if title else []
        lines += [(line, font) for paragraph in text.split("\n") for line in _wrapped(paragraph, font, page)]
        heights = [round(LINE_HEIGHT * one.size) for _, one in lines]
        height = sum(heights) + 2 * page.margin
        if height > page.height or any(one.getlength(line) > page.width - 2 * page.margin for line, one in lines):
            continue
        image = Image.new("RGB", (page.width, height), paper)
        draw, top = ImageDraw.Draw(image), page.margin
        for (line, one), step in zip(lines, heights, strict=True):
            draw.text((page.margin, top), line, ink, one)
            top += step
        return _png(image)
    return None


def draw_table(
    title: str, rows: tuple[tuple[str, ...], ...], path: Path | None, page: Page, rng: random.Random
) -> bytes | None:
    """A title above a ruled table as a PNG; None if it does not fit."""
    paper, ink = rng.choice(COLOURS)
    for size in _sizes(rng):
        font = font_of(path, size)
        padding, step = round(CELL_PADDING * size), round(LINE_HEIGHT * size) + round(CELL_PADDING * size)
        widths = [
            round(max(font.getlength(cell) for cell in column)) + 2 * padding for column in zip(*rows, strict=True)
        ]
        lines = _wrapped(title, font, page) if title else []
        top = page.margin + len(lines) * step
        width, height = sum(widths) + 2 * page.margin, top + len(rows) * step + page.margin
        titles = max((font.getlength(line) for line in lines), default=0.0)
        if max(width, titles + 2 * page.margin) > page.width or height > page.height:
            continue
        image = Image.new("RGB", (page.width, height), paper)
        draw = ImageDraw.Draw(image)
        for number, line in enumerate(lines):
            draw.text((page.margin, page.margin + number * step), line, ink, font)
        for number, row in enumerate(rows):
            left, y = page.margin, top + number * step
            for cell, cell_width in zip(row, widths, strict=True):
                draw.rectangle((left, y, left + cell_width, y + step), outline=ink)
                draw.text((left + padding, y + padding // 2), cell, ink, font)
                left += cell_width
        return _png(image)
    return None


def _sizes(rng: random.Random) -> tuple[int, ...]:
    """From one of the larger sizes down, so that not all pages are set as large as they can be."""
    return SIZES[rng.randrange(4) :]


def _wrapped(paragraph: str, font: Font, page: Page) -> list[str]:
    """Lines of a paragraph, not wider than the page allows where it can be broken."""
    room = page.width - 2 * page.margin
    lines, line = [], ""
    for piece in _pieces(paragraph):
        if line and font.getlength((line + piece).rstrip()) > room:
            lines.append(line.rstrip())
            line = piece.lstrip()
        else:
            line += piece
    return [*lines, line.rstrip()]


def _pieces(paragraph: str) -> list[str]:
    """Where a line may be broken: behind a space, and on both sides of a letter as wide as it is high."""
    pieces, piece = [], ""
    for letter in paragraph:
        wide = unicodedata.east_asian_width(letter) in "WF"
        if wide and piece:
            pieces.append(piece)
            piece = ""
        piece += letter
        if wide or letter == " ":
            pieces.append(piece)
            piece = ""
    return [*pieces, piece] if piece else pieces


@cache
def _has(path: Path | None, letter: str) -> bool:
    font = font_of(path, SIZES[0])
    return _mask(font, letter) != _mask(font, NO_LETTER)


def _mask(font: Font, letter: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)


def _needs_shaping(letter: str) -> bool:
    return unicodedata.bidirectional(letter) in ("R", "AL", "AN") or unicodedata.category(letter) in (
        "Mn",
        "Mc",
        "Me",
        "Cf",
    )


def _names(letters: list[str]) -> str:
    shown = ", ".join(f"{letter!r} (U+{ord(letter):04X})" for letter in letters[:5])
    return shown + (f" and {len(letters) - 5} more" if len(letters) > 5 else "")


def _png(image: Image.Image) -> bytes:
    encoded = io.BytesIO()
    image.save(encoded, "PNG", optimize=False, compress_level=6)
    return encoded.getvalue()
