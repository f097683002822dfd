"""A disk that fails: every call that changes files goes through here, and any one of them can be the last.

`hooked` sees the calls. `Fault` kills the process or lets a call fail. `Journal` writes the calls down, and `survivors`
tells what a power cut behind any one of them can leave: what was not synced is lost, as a whole or in part, and changes
of directories happen in any order (the least that POSIX promises).
"""

from __future__ import annotations

import errno
import io
import itertools
import os
import random
import signal
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HOOKED = ("open", "write", "fsync", "rename", "replace", "mkdir", "unlink", "rmdir")
GROWING = {"write", "rename", "replace", "mkdir"}
"""What a full disk refuses, beside the opening of new files."""


@contextmanager
def hooked(call: Callable[[str, Any, tuple[Any, ...], dict[str, Any]], Any]) -> Iterator[None]:
    """Send every call of `os` that changes files, and every opening of a file, to `call(name, original, args, kwargs)`.

    Files are written by `os.write` only: what is written in another way would not be seen, and is refused.
    """
    originals = {name: getattr(os, name) for name in HOOKED}
    opening = io.open

    def hook(name: str) -> Any:
        return lambda *args, **kwargs: call(name, originals[name], args, kwargs)

    def reading(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        assert not set(mode) & set("wax+"), f"{file} is written out of sight"
        return call("read", opening, (file, mode, *args), kwargs)

    try:
        for name in HOOKED:
            setattr(os, name, hook(name))
        io.open = reading  # type: ignore[assignment]
        yield
    finally:
        for name, original in originals.items():
            setattr(os, name, original)
        io.open = opening


@dataclass
class Fault:
    """The `at`-th call (from 1) goes wrong: `kill`, `ENOSPC` (also later ones: the disk stays full), `EIO`."""

    kind: str
    at: int
    calls: int = 0

    def __call__(self, name: str, original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.calls += 1
        if self.kind == "kill" and self.calls == self.at:
            if name == "write":  # in the middle of it
                original(args[0], bytes(args[1])[: len(args[1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        grows = name in GROWING or (name == "open" and bool(args[1] & os.O_CREAT))
        if (self.kind == "EIO" and self.calls == self.at) or (
            self.kind == "ENOSPC" and self.calls >= self.at and grows
        ):
            code = getattr(errno, self.kind)
            raise OSError(code, os.strerror(code))
        return original(*args, **kwargs)


@dataclass
class Journal:
    """Every change of the files below `root`, by numbers of files and directories of its own."""

    root: Path
    entries: dict[int, dict[str, int]] = field(default_factory=dict)
    """Directories as they were at the beginning."""
    contents: dict[int, bytes] = field(default_factory=dict)
    """Files as they were at the beginning."""
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    _ids: dict[int, int] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self._scan(self.root)

    def _scan(self, path: Path) -> int:
        number = self._new(path)
        if path.is_dir():
            self.entries[number] = {child.name: self._scan(child) for child in sorted(path.iterdir())}
        else:
            self.contents[number] = path.read_bytes()
        return number

    def _new(self, path: Any, directory: int | None = None) -> int:
        number = next(self._numbers)
        self._ids[os.stat(path, dir_fd=directory).st_ino] = number
        return number

    def _place(self, path: Any, directory: int | None = None) -> tuple[int, str]:
        above, name = os.path.split(os.fspath(path))
        found = os.fstat(directory) if directory is not None and not above else os.stat(above, dir_fd=directory)
        return self._ids[found.st_ino], name

    def __call__(self, name: str, original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        below = kwargs.get("dir_fd")
        if name == "open":
            known = os.path.lexists(args[0]) or below is not None
            result = original(*args, **kwargs)
            if not known:
                self._made(args[0], None, is_directory=False)
            elif args[1] & os.O_TRUNC:
                self.calls.append(("empty", self._ids[os.fstat(result).st_ino]))
            return result
        if name in {"write", "fsync"}:
            result = original(*args, **kwargs)
            number = self._ids[os.fstat(args[0]).st_ino]
            self.calls.append((name, number, bytes(args[1])[:result]) if name == "write" else (name, number))
            return result
        if name in {"unlink", "rmdir"}:
            place = self._place(args[0], below)
            original(*args, **kwargs)
            self.calls.append(("remove", *place))
        elif name in {"rename", "replace"}:
            places = (*self._place(args[0]), *self._place(args[1]))
            original(*args, **kwargs)
            self.calls.append(("rename", *places))
        elif name == "mkdir":
            original(*args, **kwargs)
            self._made(args[0], below, is_directory=True)
        else:
            return original(*args, **kwargs)
        return None

    def _made(self, path: Any, below: int | None, *, is_directory: bool) -> None:
        place, number = self._place(path, below), self._new(path, below)
        self.calls.append(("make", *place, number, is_directory))

    def survivors(self, cut: int, target: Path, lost: str) -> None:
        """Write what a power cut behind the first `cut` calls leaves, of what was not synced:

        - `all` is lost
        - `data` is lost: files are there, empty where they were not synced
        - `some` is lost: any part of what was written, and any of the changes of directories
        """
        calls, draw = self.calls[:cut], random.Random(f"{cut} {lost}")
        synced = {call[1]: n for n, call in enumerate(calls) if call[0] == "fsync"}  # when last
        entries = {number: dict(children) for number, children in self.entries.items()}
        contents = dict(self.contents)
        written: dict[int, bytes] = dict(self.contents)
        for n, (kind, number, *rest) in enumerate(calls):
            if kind in {"write", "empty"}:
                written[number] = written.get(number, b"") + rest[0] if kind == "write" else b""
                if n < synced.get(number, -1) or (lost == "some" and draw.random() < 0.5):
                    contents[number] = written[number]
            elif kind != "fsync":
                if kind == "make":
                    entries |= {rest[1]: {}} if rest[2] else {}
                touched = {number, rest[1]} if kind == "rename" else {number}
                is_safe = any(n < synced.get(directory, -1) for directory in touched)
                if is_safe or lost == "data" or (lost == "some" and draw.random() < 0.5):
                    _change(entries, kind, number, rest)
        _lay_out(entries, contents, 0, target)


def _change(entries: dict[int, dict[str, int]], kind: str, number: int, rest: list[Any]) -> None:
    if kind == "make":
        entries[number][rest[0]] = rest[1]
    elif rest[0] in entries[number]:  # else what would be moved or removed never got there
        moved = entries[number].pop(rest[0])
        if kind == "rename":
            entries[rest[1]][rest[2]] = moved


def _lay_out(entries: dict[int, dict[str, int]], contents: dict[int, bytes], number: int, path: Path) -> None:
    if number in entries:
        path.mkdir()
        for name, child in entries[number].items():
            _lay_out(entries, contents, child, path / name)
    else:
        path.write_bytes(contents.get(number, b""))
