"""Read JSON arrays and JSON Lines record by record, each with the line it starts on."""

from __future__ import annotations

import codecs
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SPACE = re.compile(r"[ \t\r\n]*")
_HEAD_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a file."""

    line: int
    value: Any


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A place of a file that cannot be read."""

    line: int
    problem: str


def read_records(path: Path) -> Iterator[Record | BadRecord]:
    """The records of a file: one JSON array if its first character is `[`, otherwise one JSON value a line."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES).removeprefix(codecs.BOM_UTF8).lstrip()
    return _array(path) if head.startswith(b"[") else _lines(path)


def _lines(path: Path) -> Iterator[Record | BadRecord]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            line = (raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw).strip()
            if line:
                yield _parsed(number, line)


def _parsed(number: int, line: bytes) -> Record | BadRecord:
    try:
        return Record(number, json.loads(line.decode("utf-8")))
    except UnicodeDecodeError as error:
        return BadRecord(number, f"byte {error.start} of the line is not UTF-8; save the file as UTF-8")
    except ValueError as error:
        return BadRecord(number, f"not valid JSON ({error}); every line must hold one whole record")
    except RecursionError:
        return BadRecord(number, "JSON nested too deeply to read; repair or remove the record")


def _array(path: Path) -> Iterator[Record | BadRecord]:
    content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        yield BadRecord(line, f"byte {error.start} of the file is not UTF-8; save the file as UTF-8")
        return
    del content  # the text of a large corpus need not be in memory twice
    yield from _elements(text)


def _elements(text: str) -> Iterator[Record | BadRecord]:
    """The elements of an array; after a syntax error there is no telling where the next one starts."""
    decoder = json.JSONDecoder()
    lines = _LineCounter(text)
    at = _skip(text, _skip(text, 0) + 1)
    if text[at : at + 1] == "]":
        yield from _after_array(text, at, lines)
        return
    while True:
        line = lines.line_of(at)
        try:
            value, end = decoder.raw_decode(text, at)
        except RecursionError:
            yield BadRecord(line, "JSON nested too deeply to read; the rest of the file is not read")
            return
        except json.JSONDecodeError as error:
            yield BadRecord(error.lineno, f"not valid JSON ({error.msg}); the rest of the file is not read")
            return
        except ValueError as error:
            yield BadRecord(line, f"not valid JSON ({error}); the rest of the file is not read")
            return
        yield Record(line, value)
        at = _skip(text, end)
        if text[at : at + 1] != ",":
            yield from _after_array(text, at, lines)
            return
        at = _skip(text, at + 1)


def _after_array(text: str, at: int, lines: _LineCounter) -> Iterator[BadRecord]:
    if text[at : at + 1] != "]":
        found = repr(text[at : at + 1]) if at < len(text) else "the end of the file"
        yield BadRecord(lines.line_of(at), f"expected ',' or ']' after a record, found {found}; is the file cut short?")
    elif (end := _skip(text, at + 1)) < len(text):
        yield BadRecord(lines.line_of(end), f"{len(text) - end} characters after the closing ']'; remove them")


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


class _LineCounter:
    """Line numbers of growing positions, each stretch of the text counted once."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line = 1

    def line_of(self, at: int) -> int:
        self._line += self._text.count("\n", self._at, at)
        self._at = at
        return self._line
