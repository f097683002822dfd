"""Read JSON arrays and JSON Lines record by record, each with the line it starts on, in bounded memory."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from opsin.data.file_state import FileState, read_part, readable
from opsin.data.first_bytes import no_json
from opsin.data.record_file import Address, BadRecord, Counts, Reader, Record, RecordFile

MAX_RECORD_BYTES = 64_000_000
CHUNK_BYTES = 1 << 20
_SPACE = re.compile(r"[ \t\r\n]*")
_HEAD_BYTES = 4096
_TOKEN = 16
"""Characters within which an unfinished token (a number, `true`, an escape) can stand at the end of a buffer."""


class JsonFile(RecordFile):
    """Records in a JSON array or in JSON Lines; an address has the offset and the length of a record in bytes."""

    def reader(self) -> Reader:
        """Reads the bytes of one record."""
        return _JsonReader(self)

    def _records(self, counts: Counts) -> Iterator[Record | BadRecord]:
        del counts
        return read_records(self.path)


class _JsonReader(Reader):
    def _record(self, path: Path, state: FileState, address: Address) -> Record | BadRecord:
        return _record(path, read_part(path, state, address.start, address.length), address)


class JsonError(Exception):
    """(line, column, what is wrong there), both counted from 1, a column in characters."""


def json_value(raw: bytes, advice: str) -> Any:
    """A whole JSON text; `advice` is what to do if it is not one.

    Raises:
        JsonError: it is not one.
    """
    try:
        return json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        line, column = _moved(1, 1, good := raw[: error.start].decode("utf-8"), 0, len(good))
        problem = f"byte 0x{raw[error.start]:02x} is not UTF-8; save the file as UTF-8"
        raise JsonError(line, column, problem) from None
    except json.JSONDecodeError as error:
        raise JsonError(error.lineno, error.colno, f"not valid JSON ({error.msg}); {advice}") from None
    except ValueError as error:
        raise JsonError(1, 1, f"not valid JSON ({error}); {advice}") from None
    except RecursionError:
        raise JsonError(1, 1, "JSON nested too deeply to read; repair or remove the record") from None


def read_records(path: Path) -> Iterator[Record | BadRecord]:
    """The records of a file: one JSON array if its first character is `[`, otherwise one JSON value a line.

    Raises:
        DataError: the file cannot be opened.
    """
    with readable(path):
        file = path.open("rb")
    with file:
        head = file.read(_HEAD_BYTES)
        file.seek(0)
        if problem := no_json(head):
            yield BadRecord(str(path), problem, rest=True)
            return
        if not head.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
            yield from _lines(path, file)
            return
        try:
            for address, value in _elements(_Window(file)):
                yield Record(f"{path}:{address.line}", f"line {address.line}", value, address)
        except JsonError as error:
            line, column, problem = error.args
            yield BadRecord(f"{path}:{line}:{column}", problem, rest=True)


def _lines(path: Path, file: BinaryIO) -> Iterator[Record | BadRecord]:
    number = offset = 0
    while raw := file.readline(MAX_RECORD_BYTES + 1):
        number += 1
        mark = len(codecs.BOM_UTF8) if number == 1 and raw.startswith(codecs.BOM_UTF8) else 0
        indent = len(raw) - mark - len(raw[mark:].lstrip())
        if len(raw) > MAX_RECORD_BYTES:
            yield BadRecord(f"{path}:{number}:1", _too_large())
            while raw and not raw.endswith(b"\n"):
                offset += len(raw)
                raw = file.readline(CHUNK_BYTES)
        elif line := raw[mark:].strip():
            yield _record(path, line, Address(0, number, offset + mark + indent, len(line)), indent)
        offset += len(raw)


def _record(path: Path, text: bytes, address: Address, indent: int = 0) -> Record | BadRecord:
    """A record of its own, in front of which its line has `indent` spaces."""
    where = f"{path}:{address.line}"
    try:
        value = json_value(text, "every line must hold one whole record")
    except JsonError as error:
        _, column, problem = error.args
        return BadRecord(f"{where}:{indent + column}", problem)
    return Record(where, f"line {address.line}", value, address)


def _too_large() -> str:
    return f"the record is larger than {MAX_RECORD_BYTES:,} bytes, which is the limit; split or remove it"


def _elements(window: _Window) -> Iterator[tuple[Address, Any]]:
    """The elements of an array; after a syntax error there is no telling where the next one starts."""
    window.peek()
    window.skip(1)
    more = window.peek() != "]"
    while more:
        line, start = window.line, window.offset()
        value = window.value()
        yield Address(0, line, start, window.offset() - start), value
        more = window.peek() == ","
        if more:
            window.skip(1)
            window.peek()
    if (found := window.peek()) != "]":
        shown = repr(found) if found else "the end of the file"
        raise window.damaged(f"expected ',' or ']' after a record, found {shown}; is the file cut short?")
    window.skip(1)
    if window.peek():
        line, column = window.line, window.column  # before the rest is passed
        raise JsonError(line, column, f"{window.drain()} characters after the closing ']'; remove them")


def _moved(line: int, column: int, text: str, start: int, end: int) -> tuple[int, int]:
    """Line and column behind a part of a text."""
    if newlines := text.count("\n", start, end):
        return line + newlines, end - text.rindex("\n", start, end)
    return line, column + end - start


class _Window:
    """The part of a long text that is being read; `line` and `column` are where.

    It grows until the value it is to read is whole.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.line = self.column = 1
        self._file = file
        self._json = json.JSONDecoder()
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._not_utf8: JsonError | None = None
        self._text = ""
        self._at = 0
        self._measured = 0
        """Characters of the text whose bytes are counted in `_bytes`."""
        self._bytes = len(codecs.BOM_UTF8)
        if file.read(self._bytes) != codecs.BOM_UTF8:
            file.seek(0)
            self._bytes = 0

    def offset(self) -> int:
        """Where the window is, in bytes of the file. Every part of the text is encoded once."""
        self._bytes += len(self._text[self._measured : self._at].encode("utf-8"))
        self._measured = self._at
        return self._bytes

    def peek(self) -> str:
        """Go to the next character that is no space, and return it; empty at the end of the file."""
        while True:
            match = _SPACE.match(self._text, self._at)
            self.skip(match.end() - self._at if match else 0)
            if self._at < len(self._text) or not self._grow():
                return self._text[self._at : self._at + 1]

    def skip(self, characters: int) -> None:
        """Pass characters."""
        end = self._at + characters
        self.line, self.column = _moved(self.line, self.column, self._text, self._at, end)
        self._at = end

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
                raise self.damaged("JSON nested too deeply to read; the rest of the file is not read") from None
            except json.JSONDecodeError as error:
                passed = error.pos - self._at
                cut = error.msg.startswith("Unterminated") or error.pos > len(self._text) - _TOKEN
                if cut and self._grow():
                    continue
                self.skip(passed)
                raise self.damaged(f"not valid JSON ({error.msg}); the rest of the file is not read") from None
            except ValueError as error:
                raise self.damaged(f"not valid JSON ({error}); the rest of the file is not read") from None
            passed = end - self._at
            if end > len(self._text) - _TOKEN and self._grow():
                continue  # half of `1.5` is a value as well
            self.skip(passed)
            return value

    def damaged(self, problem: str) -> JsonError:
        """A problem at the place where the window is."""
        return JsonError(self.line, self.column, problem)

    def _grow(self) -> bool:
        """Forget what is passed and read on; False at the end of the file."""
        self.offset()
        self._text = self._text[self._at :]
        self._at = self._measured = 0
        if self._not_utf8 is not None:
            raise self._not_utf8
        if len(self._text) >= MAX_RECORD_BYTES:
            raise self.damaged(_too_large())
        # Twice as much every time, so that a long value is not parsed from its start for every chunk.
        chunk = self._file.read(min(max(CHUNK_BYTES, len(self._text)), MAX_RECORD_BYTES - len(self._text)))
        try:
            self._text += self._decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            self._text += error.object[: error.start].decode("utf-8")
            line, column = _moved(self.line, self.column, self._text, 0, len(self._text))
            problem = f"byte 0x{error.object[error.start]:02x} is not UTF-8; save the file as UTF-8"
            self._not_utf8 = JsonError(line, column, problem)
            return True
        return bool(chunk)
