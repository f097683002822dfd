"""Atomic files, hashes and the cache folder."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from opsin.core.errors import OpsinError

CHUNK_BYTES = 1 << 20
PRIVATE = 0o600
WRITE_BYTES = 1 << 26
"""At most so much is written at once: the system takes less than 2 GiB in one call."""


def home() -> Path:
    """The cache folder, absolute: `$OPSIN_HOME`, by default `~/.cache/opsin`.

    Raises:
        OpsinError: it starts with `~` and there is no such home folder.
    """
    return expanded(Path(os.environ.get("OPSIN_HOME") or "~/.cache/opsin")).absolute()


def expanded(path: Path) -> Path:
    """The path with a leading `~` or `~user` replaced by that home folder.

    Raises:
        OpsinError: there is no such user, or no home folder.
    """
    try:
        return path.expanduser()
    except RuntimeError:
        raise OpsinError(f"{path}: no home folder is known for {path.parts[0]}; write the path without it") from None


def sha256_bytes(data: bytes) -> str:
    """Hex digest of bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex digest of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def fsync_directory(path: Path) -> None:
    """Make the entries of a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: Path) -> None:
    """Make a finished file durable, with the permissions that new files have (safetensors makes its own private)."""
    if stat.S_IMODE(path.stat().st_mode) == PRIVATE:
        path.chmod(0o666 & ~_umask())
    with path.open("rb") as file:
        os.fsync(file.fileno())


def make_directory(path: Path) -> None:
    """Make a directory, and those above it that are missing; all of them are durable."""
    if not path.is_dir():
        make_directory(path.parent)
        path.mkdir(exist_ok=True)
        fsync_directory(path.parent)


def write_parts(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write a file part by part, in place of the one that is there; it is durable only after `fsync_file`."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        for part in parts:
            left = memoryview(part)
            while left:
                left = left[os.write(descriptor, left[:WRITE_BYTES]) :]
    finally:
        os.close(descriptor)


def _umask() -> int:
    """The process's mask of permissions, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed and takes its place, else it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        fsync_file(temporary)
        temporary.replace(path)
        fsync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with replacing(path) as temporary:
        write_parts(temporary, [content])


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically (UTF-8)."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically, keys in the order given."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
