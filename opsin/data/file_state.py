"""What a file was like when it was first seen: a place in it means the same only for as long as it stays so."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from opsin.core.errors import DataError


class FileState(NamedTuple):
    """Size in bytes and time of the last change."""

    bytes: int
    mtime_ns: int


def states_of(paths: tuple[Path, ...]) -> dict[Path, FileState]:
    """The state of every file.

    Raises:
        DataError: with every path that is not a file.
    """
    states: dict[Path, FileState] = {}
    problems: list[str] = []
    for path in paths:
        try:
            facts = path.stat()
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            problems.append(f"{path}: {'no such file' if missing else error.strerror}; correct the path")
            continue
        if stat.S_ISREG(facts.st_mode):  # a FIFO would block for ever
            states[path] = _state(facts)
        else:
            problems.append(f"{path}: not a regular file; correct the path")
    if problems:
        raise DataError(problems)
    return states


def check_unchanged(path: Path, state: FileState) -> None:
    """Hold a file against what it was.

    Raises:
        DataError: it has changed, or is gone.
    """
    with readable(path):
        _compare(path, state, path.stat())


def read_part(path: Path, state: FileState, start: int, length: int) -> bytes:
    """`length` bytes from `start`. Nothing is kept open, so that forked processes share no position in a file.

    Raises:
        DataError: the file has changed, is gone, or cannot be read.
    """
    with readable(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            _compare(path, state, os.fstat(descriptor))
            return os.pread(descriptor, length, start)
        finally:
            os.close(descriptor)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Say of a file that was there what keeps it from being read, as DataError."""
    try:
        yield
    except FileNotFoundError:
        raise DataError([f"{path}: gone while it was read; start again when it is back"]) from None
    except OSError as error:
        raise DataError([f"{path}: cannot be read ({error.strerror}); correct that, and start again"]) from None


def _compare(path: Path, state: FileState, facts: os.stat_result) -> None:
    if (now := _state(facts)) != state:
        how = f"{state.bytes:,} bytes, now {now.bytes:,}" if now.bytes != state.bytes else "it was written to"
        raise DataError([f"{path}: changed while it was read ({how}); start again when it is at rest"])


def _state(facts: os.stat_result) -> FileState:
    return FileState(facts.st_size, facts.st_mtime_ns)
