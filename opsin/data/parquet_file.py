"""Rows of a Parquet file as records: conversations as structs or as JSON text, pictures as bytes in the row."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

from opsin.core.errors import DataError, MissingExtraError
from opsin.core.types import Picture, Turn
from opsin.data.fields import RecordError
from opsin.data.record_file import Counts, RecordFile
from opsin.data.records import BadRecord, Record
from opsin.data.turns import IMAGES, VIDEOS, record_turns

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TURNS = ("conversations", "messages")
COLUMNS = ("id", "sample_id", *TURNS, *IMAGES, *VIDEOS)
"""Only these columns are read."""

ROWS = 32
"""Rows in memory at a time."""


class ParquetFile(RecordFile):
    """A Parquet file with a column `conversations` (LLaVA's) or `messages`: lists of structs, or JSON text.

    `image` or `images` is one of, or a list of: the bytes of a picture, a struct `{bytes, path}` as Hugging Face data
    sets have it, or a path below `image_root`. `video` or `videos` are paths.

    A few rows are read at a time, but a conversation holds its pictures' bytes for as long as it is kept. For more
    pictures than memory takes there are tar shards, whose pictures stay where they are.
    """

    kind: Literal["parquet"] = "parquet"

    def _records(self, counts: Counts) -> Iterator[Record | BadRecord]:
        del counts
        number = 0
        try:
            for row in _rows(self.path):
                number += 1
                yield Record(f"{self.path}:row {number}", f"row {number}", row)
        except _DamagedError as error:
            yield BadRecord(f"{self.path}:row {number + 1}", str(error))

    def _turns(self, record: Record, counts: Counts) -> tuple[Turn, ...]:
        values = dict(record.value)
        for key in TURNS:
            values[key] = _structure(values.get(key), key)
        for key in IMAGES:
            values[key] = _pictures(values.get(key))
        return record_turns(values, self._media, counts)


class _DamagedError(Exception):
    """The rest of the file cannot be read."""


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of the columns that are used, a few at a time, one row group after the other."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise MissingExtraError("pyarrow", "data") from None
    # What Arrow raises for damaged files; its own text says nothing that a user can act on.
    errors = (pa.ArrowException, OSError, ValueError, TypeError, OverflowError, MemoryError)
    try:
        # Without buffering ahead, a page is read when its rows are asked for, however large its row group is.
        file = parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
        names = set(file.schema_arrow.names)
    except errors:
        raise _DamagedError("not a readable Parquet file; was it cut short? fetch it again") from None
    with file:
        if not names & set(TURNS):
            raise DataError([f"{path}: no column 'conversations' or 'messages'; the columns are {_listed(names)}"])
        columns = [name for name in COLUMNS if name in names]
        for group in range(file.num_row_groups):
            batches = file.iter_batches(ROWS, row_groups=[group], columns=columns, use_threads=False)
            while True:
                try:
                    rows = next(batches).to_pylist()
                except StopIteration:
                    break
                except errors:
                    raise _DamagedError(
                        f"row group {group + 1} of {file.num_row_groups} is damaged; the rest of the file is not read"
                    ) from None
                yield from rows


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
