"""The files of the feature cache: a folder of chunks, each named by the hash of its bytes.

A chunk is a safetensors file of features (P, C) by key, of about `CHUNK_BYTES`. It is written whole, once, and never
changed: what a killed process had finished stays, and processes that write at the same time do each other no harm. It
is memory-mapped, and checked against its name when something of it is needed for the first time.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from opsin.core.errors import OpsinError
from opsin.core.files import fsync_directory, fsync_file, sha256_file

CHUNK_BYTES = 256 << 20
"""Features of a chunk: large enough for few files, small enough to hold and to lose."""

CHUNK_SECONDS = 120.0
"""A chunk that takes longer to compute is written as it is, so that a killed run loses no more than this."""

OLD = 3600.0
"""Seconds after which a file that is being written has been left by a process that was killed."""

GB = 1e9


class FeatureCacheError(OpsinError):
    """Features that cannot be written, or are not where all processes find them."""


@dataclass
class Chunk:
    """A file whose header was read; `checked` once its bytes were."""

    path: Path
    file: Any
    seconds_per_patch: float
    checked: bool = False


class ChunkFolder:
    """Features by key in the chunks of a folder; only the index is in memory."""

    def __init__(self, path: Path, on_line: Callable[[str], None]) -> None:
        self.path = path
        self._on_line = on_line
        self._chunks: dict[str, Chunk] = {}
        self._index: dict[str, Chunk] = {}

    def open(self, keys: Iterable[str]) -> set[str]:
        """Those of some keys that the folder holds, in chunks that are whole.

        Chunks that are not are named and deleted.
        """
        keys = list(keys)
        self._read_index()
        for chunk in {id(chunk): chunk for key in keys if (chunk := self._index.get(key))}.values():
            if not chunk.checked and not self._check(chunk):
                return self.open(keys)  # another chunk may hold the same
        return {key for key in keys if key in self._index}

    def rows(self, key: str) -> Tensor:
        """Features (P, C), mapped from the file."""
        rows: Tensor = self._index[key].file.get_tensor(key)
        return rows

    def seconds_per_patch(self, key: str) -> float:
        """What the features of the key's chunk took to compute."""
        return self._index[key].seconds_per_patch

    def write(self, rows: Mapping[str, Tensor], seconds: float) -> None:
        """Make a chunk of features (P, C) that took so many seconds.

        Raises:
            FeatureCacheError: it cannot be written.
        """
        seconds_per_patch = seconds / sum(map(len, rows.values()))
        self.path.mkdir(parents=True, exist_ok=True)
        temporary = self.path / f".{next(iter(rows))}.{os.getpid()}.partial"
        try:
            save_file(dict(rows), temporary, metadata={"seconds_per_patch": repr(seconds_per_patch)})
            fsync_file(temporary)
            temporary.replace(self.path / f"{sha256_file(temporary)}.safetensors")
            fsync_directory(self.path)
        except (OSError, SafetensorError) as error:  # safetensors reports a full disk as its own error
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            raise FeatureCacheError(f"{self.path}: features cannot be written ({reason})") from None
        finally:
            temporary.unlink(missing_ok=True)

    def check_space(self, needed: int, limit_gb: float) -> str:
        """Why so many more bytes do not fit, or nothing if they do.

        `limit_gb` is for all that is beside this folder too.
        """
        root = self.path.parent
        root.mkdir(parents=True, exist_ok=True)
        used = _size(root)
        free = shutil.disk_usage(root).free
        told = f"{root}: features of {needed / GB:.2f} GB are to be computed"
        advice = f"delete folders there that are no longer used (this run's is {self.path.name})"
        if used + needed > limit_gb * GB:
            return (
                f"{told}, {used / GB:.2f} GB are there, and cache_limit_gb is {limit_gb:g}; {advice}, raise "
                "cache_limit_gb, or set cache_features: false"
            )
        if needed > free:
            return (
                f"{told}, and {free / GB:.2f} GB are free; {advice}, let OPSIN_HOME be on a larger disk, or set "
                "cache_features: false"
            )
        return ""

    def _read_index(self) -> None:
        """Read the headers of chunks that were written since."""
        for path in sorted(self.path.glob("*.safetensors")):
            if path.name in self._chunks:
                continue
            try:
                file: Any = safe_open(path, framework="pt")
                chunk = Chunk(path, file, float(file.metadata()["seconds_per_patch"]))
            except FileNotFoundError:  # another process found it damaged
                continue
            except (SafetensorError, OSError, KeyError, TypeError, ValueError):
                self._forget(path, "is damaged (not whole)")
                continue
            self._add(chunk)
        for partial in self.path.glob(".*.partial"):
            with suppress(FileNotFoundError):  # it can be finished meanwhile
                if time.time() - partial.stat().st_mtime > OLD:
                    partial.unlink()

    def _add(self, chunk: Chunk) -> None:
        self._chunks[chunk.path.name] = chunk
        for key in chunk.file.keys():  # noqa: SIM118 (not a mapping)
            self._index.setdefault(key, chunk)

    def _check(self, chunk: Chunk) -> bool:
        """Compare a chunk with its name."""
        try:
            chunk.checked = sha256_file(chunk.path) == chunk.path.stem
            reason = "is damaged (its checksum differs)"
        except OSError as error:
            reason = f"cannot be read ({error.strerror})"
        if not chunk.checked:
            self._forget(chunk.path, reason)
        return chunk.checked

    def _forget(self, path: Path, reason: str) -> None:
        self._on_line(f"{path}: this chunk of the feature cache {reason}; computing its features again")
        path.unlink(missing_ok=True)
        self._chunks.pop(path.name, None)
        self._index.clear()  # others can hold the same keys
        for chunk in self._chunks.values():
            self._add(chunk)


def _size(root: Path) -> int:
    """Bytes of all files in a folder."""
    size = 0
    for file in root.rglob("*"):
        with suppress(FileNotFoundError):  # one that another process finishes meanwhile
            size += file.stat().st_size if file.is_file() else 0
    return size
