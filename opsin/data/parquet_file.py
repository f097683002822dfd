"""Rows of a Parquet file as records: conversations as structs or as JSON text, pictures as bytes in the row."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from opsin.core.errors import DataError, MissingExtraError
from opsin.core.files import sha256_bytes
from opsin.core.types import Picture, Turn
from opsin.data.fields import RecordError
from opsin.data.file_state import FileState, check_unchanged, read_part, readable
from opsin.data.first_bytes import PARQUET, shown_bytes
from opsin.data.record_file import Address, BadRecord, Counts, Reader, Record, RecordFile
from opsin.data.turns import IMAGES, VIDEOS, record_turns

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_Row = dict[str, Any]

TURNS = ("conversations", "messages")
COLUMNS = ("id", "sample_id", *TURNS, *IMAGES, *VIDEOS)
"""Only these columns are read."""

ROWS = 32
"""Rows in memory at a time."""

CACHE_BYTES = 64_000_000
"""Of the rows lately read that a reader keeps."""

TAIL_BYTES = 8
"""Behind the footer: its length, and the format's mark."""


class ParquetFile(RecordFile):
    """A Parquet file with a column `conversations` (LLaVA's) or `messages`: lists of structs, or JSON text.

    `image` or `images` is one of, or a list of: the bytes of a picture, a struct `{bytes, path}` as Hugging Face data
    sets have it, or a path below `image_root`. `video` or `videos` are paths.

    A few rows are read at a time, but a conversation holds its pictures' bytes for as long as it is kept.

    A row can only be reached through the rows of its row group before it. Rows lately read are kept, so that reading in
    order is quick, and shuffled reading too where row groups are small (100 rows, say, or as many as there are in a few
    megabytes); of large pictures tar shards are the better home.
    """

    unit: ClassVar[str] = "row "
    kind: Literal["parquet"] = "parquet"

    def reader(self) -> Reader:
        """Keeps the rows lately read; an address has the number of a row group, and of the row in it, from 0."""
        return _RowReader(self)

    def _records(self, counts: Counts) -> Iterator[Record | BadRecord]:
        del counts
        number = 0
        try:
            table = _Table(self.path)
            for group in range(table.num_groups):
                for index, row in enumerate(table.rows(group)):
                    number += 1
                    yield _record(self.path, row, Address(0, number, group, index))
        except _DamagedError as error:
            yield BadRecord(f"{self.path}:row {number + 1}", str(error), rest=True)

    def _content(self, path: Path, state: FileState) -> Any:
        tail = read_part(path, state, max(0, state.bytes - TAIL_BYTES), TAIL_BYTES)
        length = min(int.from_bytes(tail[:4], "little") + TAIL_BYTES, state.bytes)
        return *state, sha256_bytes(read_part(path, state, state.bytes - length, length))

    def _turns(self, record: Record, counts: Counts) -> tuple[Turn, ...]:
        values = dict(record.value)
        for key in TURNS:
            values[key] = _structure(values.get(key), key)
        for key in IMAGES:
            values[key] = _pictures(values.get(key))
        return record_turns(values, self.media, counts)


class _RowReader(Reader):
    """Goes on from the row read last where it can, and begins a row group again where it must."""

    def __init__(self, source: ParquetFile) -> None:
        super().__init__(source)
        self._process = 0
        self.close()

    def close(self) -> None:
        """Let go of the file and of the rows."""
        self._table: _Table | None = None
        self._rows: Iterator[_Row] = iter(())
        self._next = _Chunk(-1, 0)
        self._kept: OrderedDict[_Chunk, tuple[list[_Row], int]] = OrderedDict()
        self._kept_bytes = 0

    def _record(self, path: Path, state: FileState, address: Address) -> Record | BadRecord:
        check_unchanged(path, state)
        if self._process != os.getpid():  # an open file has one position, which a forked process must not share
            self.close()
            self._process = os.getpid()
        number, index = divmod(address.length, ROWS)
        try:
            rows = self._chunk(path, _Chunk(address.start, number))
        except _DamagedError as error:
            return BadRecord(f"{path}:row {address.line}", str(error))
        return _record(path, rows[index], address)

    def _chunk(self, path: Path, wanted: _Chunk) -> list[_Row]:
        if wanted in self._kept:
            self._kept.move_to_end(wanted)
            return self._kept[wanted][0]
        if self._table is None:
            self._table = _Table(path)
        if self._next.group != wanted.group or self._next.number > wanted.number:
            self._rows = self._table.rows(wanted.group)
            self._next = _Chunk(wanted.group, 0)
        while self._next.number <= wanted.number:
            rows = list(islice(self._rows, ROWS))
            self._keep(self._next, rows)
            self._next = _Chunk(wanted.group, self._next.number + 1)
        return rows

    def _keep(self, chunk: _Chunk, rows: list[_Row]) -> None:
        size = _size(rows)
        self._kept[chunk] = (rows, size)
        self._kept_bytes += size
        while self._kept_bytes > CACHE_BYTES and len(self._kept) > 1:
            _, (_, size) = self._kept.popitem(last=False)
            self._kept_bytes -= size


class _Chunk(NamedTuple):
    """`ROWS` rows of a row group, by their number from its start."""

    group: int
    number: int


def _size(value: Any) -> int:
    """About how many bytes of memory a value of a row takes."""
    if isinstance(value, str | bytes):
        return 64 + len(value)
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 64 + sum(map(_size, items))


def _record(path: Path, row: _Row, address: Address) -> Record:
    return Record(f"{path}:row {address.line}", f"row {address.line}", row, address)


class _DamagedError(Exception):
    """The rest of the file cannot be read."""


class _Table:
    """An open Parquet file, of which only the columns that are used are read, a few rows at a time."""

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow as pa
            from pyarrow import parquet
        except ModuleNotFoundError:
            raise MissingExtraError("pyarrow", "data") from None
        # What Arrow raises for damaged files; its own text says nothing that a user can act on.
        self._errors = (pa.ArrowException, OSError, ValueError, TypeError, OverflowError, MemoryError)
        try:
            # Without buffering ahead, a page is read when its rows are asked for, however large its row group is.
            self._file = parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
            names = set(self._file.schema_arrow.names)
        except self._errors:
            raise _DamagedError(_unreadable(path)) from None
        if not names & set(TURNS):
            raise DataError([f"{path}: no column 'conversations' or 'messages'; the columns are {_listed(names)}"])
        self._columns = [name for name in COLUMNS if name in names]
        self.num_groups: int = self._file.num_row_groups

    def rows(self, group: int) -> Iterator[_Row]:
        """The rows of a row group."""
        batches = self._file.iter_batches(ROWS, row_groups=[group], columns=self._columns, use_threads=False)
        while True:
            try:
                rows = next(batches).to_pylist()
            except StopIteration:
                return
            except self._errors:
                raise _DamagedError(
                    f"row group {group + 1} of {self.num_groups} is damaged; the rest of the file is not read"
                ) from None
            yield from rows


def _unreadable(path: Path) -> str:
    with readable(path), path.open("rb") as file:
        head = file.read(16)
    if head.startswith(PARQUET):
        return "not a readable Parquet file; was it cut short? fetch it again"
    return f"not a Parquet file ({shown_bytes(head)}); correct the path or the source's kind"


def _listed(names: set[str]) -> str:
    return ", ".join(map(ascii, sorted(names)[:20])) or "none"


def _structure(value: Any, key: str) -> Any:
    """A column of turns: JSON text is read; keys without a value, which all structs of a column share, are left out."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            raise RecordError(f"{key!r} is a text, but not valid JSON") from None
    return _without_nulls(value)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def _pictures(value: Any) -> Any:
    """A column of pictures: bytes become pictures; paths, and what is neither, are left for the reader of turns."""
    if isinstance(value, list):
        return [_pictures(item) for item in value]
    if isinstance(value, dict) and {"bytes", "path"} & set(value):
        value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
    return Picture(data=value) if isinstance(value, bytes) else value
