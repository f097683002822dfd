"""Files of the batch API: requests as JSONL to upload, and the answers that come back, into the ledger.

A batch takes up to a day and costs less (https://platform.openai.com/docs/guides/batch). Its lines are
`{"custom_id", "method", "url", "body"}`, the answers' `{"custom_id", "response": {"status_code", "body"}, "error"}`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opsin.core.errors import OpsinError
from opsin.core.files import fsync_directory, fsync_file, make_directory, write_parts
from opsin.synthesize.endpoint import body, printable, read_completion, read_refusal
from opsin.synthesize.ledger import Ledger
from opsin.synthesize.request import Answer, Request, Usage
from opsin.synthesize.retry import AttemptError
from opsin.synthesize.teacher_values import OpenAI

MOST_LINES = 50_000
MOST_BYTES = 190_000_000
"""Of one file; the API takes 200 MB."""
LINE_BYTES = 2_000_000
KEPT_AT_A_TIME = 500
PARTIAL = ".partial"
"""Ends the name of a file that is being written."""


@dataclass
class Imported:
    """What was in the files of a batch."""

    kept: int = 0
    known: int = 0
    """Answers that the ledger had already."""
    problems: list[str] = field(default_factory=list)
    """All other lines, each with its place."""
    came: set[str] = field(default_factory=set)
    """The keys of ours that have a line, with an answer or without."""


def export_batch(
    requests: Iterable[Request], folder: Path, teacher: OpenAI, ledger: Ledger, note: Callable[[list[Path]], None]
) -> list[Path]:
    """Write the requests that the ledger has no answer to, each once, as files to upload; returns them.

    The ledger does not count them as sent. The files are whole when they have their names; earlier ones in the folder
    are replaced. `note` is told of them when they are on disk, right before they have their names: there is no time
    when they could be uploaded and nobody knows of it.

    Raises:
        OpsinError: one request is larger than a file may be.
    """
    make_directory(folder)
    for pattern in ("batch-[0-9]*.jsonl", f".batch-[0-9]*.jsonl{PARTIAL}"):  # the latter of a process that was killed
        for old in folder.glob(pattern):
            old.unlink()
    files: list[Path] = []
    try:
        for lines in _shares(_lines(requests, teacher, ledger)):
            files.append(folder / f"batch-{len(files) + 1:03}.jsonl")
            write_parts(_partial(files[-1]), lines)
            fsync_file(_partial(files[-1]))
        note(files)
        for path in files:
            _partial(path).replace(path)
        fsync_directory(folder)
    finally:
        for path in files:
            _partial(path).unlink(missing_ok=True)
    return files


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}{PARTIAL}")


def _shares(lines: Iterable[bytes]) -> Iterator[list[bytes]]:
    """The lines of each file."""
    share: list[bytes] = []
    size = 0
    for line in lines:
        if share and (len(share) >= MOST_LINES or size + len(line) > MOST_BYTES):
            yield share
            share, size = [], 0
        share.append(line)
        size += len(line)
    if share:
        yield share


def _lines(requests: Iterable[Request], teacher: OpenAI, ledger: Ledger) -> Iterator[bytes]:
    seen: set[str] = set()
    for request in requests:
        key = request.key
        if key in seen or ledger.lookup(key):
            continue
        seen.add(key)
        fields = {"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": body(teacher, request)}
        line = json.dumps(fields, separators=(",", ":")).encode() + b"\n"
        if len(line) > MOST_BYTES:
            raise OpsinError(
                f"request {key[:12]}: {len(line):,} bytes, more than a batch file may hold; show less of it"
            )
        yield line


def import_batch(
    paths: Sequence[Path], ledger: Ledger, teacher: OpenAI, asked: Callable[[str], Usage | None]
) -> Imported:
    """Put the answers of a batch's output and error files into the ledger, each once.

    `asked` tells of a key what its request uses at most, and nothing if it is none of ours.
    A file may be imported again: nothing is kept twice.

    Raises:
        OpsinError: a file cannot be read, or is one of requests, or the ledger cannot be written.
    """
    imported = Imported()
    waiting: dict[str, Answer] = {}

    def keep() -> None:
        ledger.keep_all(waiting.items())
        imported.kept += len(waiting)
        waiting.clear()

    for path in paths:
        for number, line in _read(path):
            try:
                value = _line(line)
                if "body" in value and "response" not in value:
                    raise OpsinError(f"{path}:{number}: a request: this is a file to upload; import the batch's output")
                key = value["custom_id"]
                most = _most(key, asked)
                imported.came.add(key)
                answer = _answer(value, teacher, most)
            except (AttemptError, _LineError) as problem:
                imported.problems.append(f"{path}:{number}: {problem}")
            else:
                if key in waiting or ledger.lookup(key):
                    imported.known += 1
                else:
                    waiting[key] = answer
            if len(waiting) >= KEPT_AT_A_TIME:
                keep()
    keep()
    return imported


class _LineError(OpsinError):
    """A line without an answer."""


def _read(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """The lines of a file with their numbers; nothing in place of one that is too long."""
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(LINE_BYTES + 1):
                number += 1
                is_long = len(line) > LINE_BYTES
                while is_long and line and not line.endswith(b"\n"):
                    line = file.readline(LINE_BYTES)
                if is_long or line.strip():
                    yield number, None if is_long else line
    except OSError as error:
        raise OpsinError(f"{path}: cannot be read ({error.strerror}); correct the path") from None


def _line(line: bytes | None) -> dict[str, Any]:
    if line is None:
        raise _LineError(f"longer than {LINE_BYTES:,} bytes")
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise _LineError("not JSON; was the download cut off?") from None
    if not isinstance(value, dict) or not isinstance(value.get("custom_id"), str):
        raise _LineError("not a line of a batch's output: no custom_id")
    return value


def _most(key: str, asked: Callable[[str], Usage | None]) -> Usage:
    most = asked(key)
    if most is None:
        raise _LineError(f"an answer to {printable(key)[:40]!r}, which this recipe does not ask")
    return most


def _answer(value: dict[str, Any], teacher: OpenAI, most: Usage) -> Answer:
    response = value.get("response")
    content: Any = response.get("body") if isinstance(response, dict) else None
    status = response.get("status_code") if isinstance(response, dict) else None
    if status != 200 or not isinstance(content, dict) or not isinstance(content.get("choices"), list):
        said = json.dumps(value.get("error") or content or "no response")
        if status != 200 and (refusal := read_refusal(said.encode(), teacher, most, batch=True)):
            return refusal
        raise _LineError(f"no answer (status {status}: {printable(said)})")
    return read_completion(content, teacher, most, batch=True)
