"""Read JSON arrays and JSON Lines record by record, each with the line it starts on, in bounded memory."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

from opsin.core.types import Picture

if TYPE_CHECKING:
    from pathlib import Path

MAX_RECORD_BYTES = 64_000_000
CHUNK_BYTES = 1 << 20
_SPACE = re.compile(r"[ \t\r\n]*")
_HEAD_BYTES = 4096
_TOKEN = 16
"""Characters within which an unfinished token (a number, `true`, an escape) can stand at the end of a buffer."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record: `where` it stands (file:line), and the `name` of that place, for a record without an id.

    `pictures` are those that lie beside the value, by their names.
    """

    where: str
    name: str
    value: Any
    pictures: Mapping[str, Picture] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A place that cannot be read."""

    where: str
    problem: str


class _DamagedError(Exception):
    """(line, what is wrong there); the rest of the file cannot be read."""


def read_records(path: Path) -> Iterator[Record | BadRecord]:
    """The records of a file: one JSON array if its first character is `[`, otherwise one JSON value a line."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES).removeprefix(codecs.BOM_UTF8).lstrip()
        file.seek(0)
        if not head.startswith(b"["):
            yield from _lines(path, file)
            return
        try:
            for line, value in _elements(_Window(file)):
                yield Record(f"{path}:{line}", f"line {line}", value)
        except _DamagedError as error:
            line, problem = error.args
            yield BadRecord(f"{path}:{line}", problem)


def _lines(path: Path, file: BinaryIO) -> Iterator[Record | BadRecord]:
    number = 0
    while raw := file.readline(MAX_RECORD_BYTES + 1):
        number += 1
        if len(raw) > MAX_RECORD_BYTES:
            yield BadRecord(f"{path}:{number}", _too_large())
            while raw and not raw.endswith(b"\n"):
                raw = file.readline(CHUNK_BYTES)
        elif line := (raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw).strip():
            yield _parsed(f"{path}:{number}", f"line {number}", line)


def _parsed(where: str, name: str, line: bytes) -> Record | BadRecord:
    try:
        return Record(where, name, json.loads(line.decode("utf-8")))
    except UnicodeDecodeError as error:
        return BadRecord(where, f"byte {error.start} of the line is not UTF-8; save the file as UTF-8")
    except ValueError as error:
        return BadRecord(where, f"not valid JSON ({error}); every line must hold one whole record")
    except RecursionError:
        return BadRecord(where, "JSON nested too deeply to read; repair or remove the record")


def _too_large() -> str:
    return f"the record is larger than {MAX_RECORD_BYTES:,} bytes, which is the limit; split or remove it"


def _elements(window: _Window) -> Iterator[tuple[int, Any]]:
    """(line, value) of the elements of an array; after a syntax error there is no telling where the next one starts."""
    window.peek()
    window.skip(1)
    more = window.peek() != "]"
    while more:
        yield window.line, window.value()
        more = window.peek() == ","
        if more:
            window.skip(1)
            window.peek()
    if (found := window.peek()) != "]":
        shown = repr(found) if found else "the end of the file"
        raise _DamagedError(window.line, f"expected ',' or ']' after a record, found {shown}; is the file cut short?")
    window.skip(1)
    if window.peek():
        line = window.line
        raise _DamagedError(line, f"{window.drain()} characters after the closing ']'; remove them")


class _Window:
    """The part of a long text that is being read; `line` is where. It grows until the value it is to read is whole."""

    def __init__(self, file: BinaryIO) -> None:
        if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            file.seek(0)
        self.line = 1
        self._file = file
        self._json = json.JSONDecoder()
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._not_utf8: _DamagedError | None = None
        self._text = ""
        self._at = 0
        self._bytes = 0

    def peek(self) -> str:
        """Go to the next character that is no space, and return it; empty at the end of the file."""
        while True:
            match = _SPACE.match(self._text, self._at)
            self.skip(match.end() - self._at if match else 0)
            if self._at < len(self._text) or not self._grow():
                return self._text[self._at : self._at + 1]

    def skip(self, characters: int) -> None:
        """Pass characters."""
        self.line += self._text.count("\n", self._at, self._at + characters)
        self._at += characters

    def drain(self) -> int:
        """How many characters are left; they are passed."""
        count = 0
        while self._at < len(self._text) or self._grow():
            count += len(self._text) - self._at
            self._at = len(self._text)
        return count

    def value(self) -> Any:
        """Read and pass the JSON value that starts here."""
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._at)
            except RecursionError:
                raise self._damaged("JSON nested too deeply to read") from None
            except json.JSONDecodeError as error:
                passed = error.pos - self._at
                cut = error.msg.startswith("Unterminated") or error.pos > len(self._text) - _TOKEN
                if cut and self._grow():
                    continue
                self.skip(passed)
                raise self._damaged(f"not valid JSON ({error.msg})") from None
            except ValueError as error:
                raise self._damaged(f"not valid JSON ({error})") from None
            passed = end - self._at
            if end > len(self._text) - _TOKEN and self._grow():
                continue  # half of `1.5` is a value as well
            self.skip(passed)
            return value

    def _damaged(self, problem: str) -> _DamagedError:
        return _DamagedError(self.line, f"{problem}; the rest of the file is not read")

    def _grow(self) -> bool:
        """Forget what is passed and read on; False at the end of the file."""
        self._text = self._text[self._at :]
        self._at = 0
        if self._not_utf8 is not None:
            raise self._not_utf8
        if len(self._text) >= MAX_RECORD_BYTES:
            raise _DamagedError(self.line, _too_large())
        # Twice as much every time, so that a long value is not parsed from its start for every chunk.
        chunk = self._file.read(min(max(CHUNK_BYTES, len(self._text)), MAX_RECORD_BYTES - len(self._text)))
        pending = len(self._decoder.getstate()[0])
        try:
            self._text += self._decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            self._text += error.object[: error.start].decode("utf-8")
            at = self._bytes - pending + error.start
            line = self.line + self._text.count("\n")
            self._not_utf8 = _DamagedError(line, f"byte {at} of the file is not UTF-8; save the file as UTF-8")
            return True
        self._bytes += len(chunk)
        return bool(chunk)
