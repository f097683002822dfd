"""Where the members of a tar file lie: read once, and kept in the cache folder for as long as the file stays as it is.

Only plain tar is read, and only plain files in it. The headers are walked here rather than by `tarfile`, which takes
damage in the middle of a file for its end.
"""

from __future__ import annotations

import json
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from opsin.core.errors import DataError
from opsin.core.files import home, sha256_bytes, write_text
from opsin.data.file_state import FileState, check_unchanged, readable
from opsin.data.first_bytes import shown_bytes

MAX_MEMBERS = 2_000_000
MAX_HEADER_BYTES = 1 << 16
"""Of the names and records that stand before a member."""

FORMAT = 1
BLOCK = tarfile.BLOCKSIZE
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
PLAIN = frozenset({tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE})
LINKS = frozenset({tarfile.LNKTYPE, tarfile.SYMTYPE})
SPECIAL = frozenset({tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE})
PAX = frozenset({tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE})

Place = tuple[str, int, int]
"""(name, offset, length) of a member."""


@dataclass(frozen=True)
class TarIndex:
    """The members of a tar file, in its order, and (offset, what is wrong there); `damaged`: the last one ends it."""

    path: Path
    state: FileState
    places: tuple[Place, ...]
    problems: tuple[tuple[int, str], ...] = ()
    damaged: bool = False


def tar_index(path: Path, state: FileState) -> TarIndex:
    """The index of a tar file in this state, from the cache if there is one.

    Raises:
        DataError: the file has changed or cannot be read, or the cache cannot be written.
    """
    cached = home() / "tar" / f"{sha256_bytes(str(path.absolute()).encode('utf-8', 'surrogateescape'))[:32]}.json"
    if places := _load(cached, state):
        return TarIndex(path, state, places)
    walk = _walk(path, state, 0, state.bytes + 1)  # the end mark is looked for as well
    index = TarIndex(path, state, tuple(walk.places), tuple(walk.problems), walk.damaged)
    if not index.problems:
        _save(cached, index)
    return index


def places_between(path: Path, state: FileState, start: int, end: int) -> list[Place]:
    """The members between two offsets of a tar file in this state, the first of which is that of a header.

    Raises:
        DataError: the file has changed or cannot be read.
    """
    return _walk(path, state, start, end).places


def _walk(path: Path, state: FileState, start: int, end: int) -> _Walk:
    with readable(path), path.open("rb") as file:
        walk = _Walk(file, state.bytes)
        walk.run(start, end)
    check_unchanged(path, state)
    return walk


def _load(cached: Path, state: FileState) -> tuple[Place, ...]:
    """The members, or none if there is no index of this very file."""
    try:
        value = json.loads(cached.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ()
    facts = {"format": FORMAT} | state._asdict()
    if not isinstance(value, dict) or any(value.get(key) != fact for key, fact in facts.items()):
        return ()
    listed = value.get("places")
    if not isinstance(listed, list) or not all(_is_place(place, state.bytes) for place in listed):
        return ()
    return tuple((name, offset, length) for name, offset, length in listed)


def _is_place(value: Any, size: int) -> bool:
    match value:
        case [str(), int(offset), int(length)]:
            return 0 <= offset <= offset + length <= size
    return False


def _save(cached: Path, index: TarIndex) -> None:
    value = {"format": FORMAT} | index.state._asdict() | {"places": index.places}
    try:
        write_text(cached, json.dumps(value))
    except OSError as error:
        raise DataError(
            [f"{cached}: the index of {index.path} cannot be kept ({error.strerror}); set OPSIN_HOME to another folder"]
        ) from None


class _DamagedError(Exception):
    """The walk cannot go on."""


class _Walk:
    """From header to header through a tar file."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.places: list[Place] = []
        self.problems: list[tuple[int, str]] = []
        self.damaged = False
        self._file = file
        self._size = size
        self._at = 0
        self._name: str | None = None
        self._length: int | None = None

    def run(self, start: int, end: int) -> None:
        """Find the members whose headers are between two offsets; damage ends the walk and is the last problem."""
        self._at = start
        try:
            while self._at < end and self._step():
                pass
        except _DamagedError as error:
            self.problems.append((self._at, f"{error}; the rest of the shard is not read"))
            self.damaged = True

    def _step(self) -> bool:
        self._file.seek(self._at)
        header = self._file.read(BLOCK)
        if self._at == 0 and (kind := next((k for magic, k in COMPRESSED.items() if header.startswith(magic)), None)):
            raise _DamagedError(f"a tar compressed with {kind} has no random access; unpack it to plain tar")
        none = f"not a tar file ({shown_bytes(header)}); correct the path or the source's kind"
        if len(header) < BLOCK:
            raise _DamagedError("the file ends without tar's end mark; was it cut short?" if self._at else none)
        if not any(header):
            return False
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError):
            raise _DamagedError("not a tar header; is the file damaged?" if self._at else none) from None
        length = self._length if self._length is not None and info.type in PLAIN else info.size
        if info.type in LINKS or info.type in SPECIAL:
            length = 0
        start = self._at + BLOCK
        if length < 0 or start + length > self._size:
            raise _DamagedError(
                f"a member of {length:,} bytes, but {self._size - start:,} are left; was the file cut short?"
            )
        self._take(info, start, length)
        self._at = start + -(-length // BLOCK) * BLOCK
        return True

    def _take(self, info: tarfile.TarInfo, start: int, length: int) -> None:
        if info.type in PAX:
            self._extended(self._header_text(length))
            return
        if info.type == tarfile.GNUTYPE_LONGNAME:
            self._name = self._header_text(length).split(b"\0")[0].decode("utf-8", "surrogateescape")
            return
        if info.type in (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK):
            return
        name = (self._name if self._name is not None else info.name).removeprefix("./")
        self._name = self._length = None
        if info.type == tarfile.DIRTYPE:
            return
        if problem := _refused(info.type, name):
            self.problems.append((self._at, problem))
        elif info.type not in PLAIN:
            raise _DamagedError(f"a member of type {info.type!r}, which is not read; pack plain files")
        elif len(self.places) == MAX_MEMBERS:
            raise _DamagedError(f"more than {MAX_MEMBERS:,} members; use smaller shards")
        else:
            self.places.append((name, start, length))

    def _header_text(self, length: int) -> bytes:
        if length > MAX_HEADER_BYTES:
            raise _DamagedError(f"an extended header of {length:,} bytes; the limit is {MAX_HEADER_BYTES:,}")
        return self._file.read(length)

    def _extended(self, text: bytes) -> None:
        """Pax records, each `length key=value` and a newline, of which a name and a size matter here."""
        at = 0
        while at < len(text) and text[at]:
            digits, _, _ = text[at : at + 10].partition(b" ")
            if not digits.isdigit() or int(digits) <= len(digits) + 1:
                raise _DamagedError("not a readable extended header")
            key, _, value = text[at + len(digits) + 1 : at + int(digits) - 1].partition(b"=")
            if key == b"path":
                self._name = value.decode("utf-8", "surrogateescape")
            elif key == b"size":
                if not value.isdigit() or len(value) > 20:
                    raise _DamagedError("not a readable extended header")
                self._length = int(value)
            elif key.startswith(b"GNU.sparse"):
                raise _DamagedError("a sparse file, which is not read; pack plain files")
            at += int(digits)


def _refused(kind: bytes, name: str) -> str | None:
    if kind in LINKS or kind in SPECIAL:
        return f"{name!a} is a link or a device; pack plain files"
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        return f"{name!a} is absolute or has '..'; pack files with relative names"
    if not name.isprintable() or not name:
        return f"{name!a} is not a printable UTF-8 name; rename the file"
    return None
