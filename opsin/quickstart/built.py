"""Folders that are built once, committed by a rename, and checked against a record of sizes and checksums later."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

from opsin.core.files import fsync_directory, fsync_file, sha256_file, write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from rich.console import Console

RECORD_FILE = "opsin-record.json"


def build_once(folder: Path, *, source: str, build: Callable[[Path], None], console: Console) -> Path:
    """Return `folder`, building it first unless it is there, undamaged and made from the same `source`.

    `build` fills an empty folder beside it, which takes the place of `folder` when it is complete.
    """
    if folder.exists():
        if (problem := find_damage(folder, source)) is None:
            return folder
        console.print(f"{folder}: {problem}; building it again", style="yellow", markup=False, soft_wrap=True)
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        build(temporary)
        _record(temporary, source)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
        fsync_directory(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def find_damage(folder: Path, source: str) -> str | None:
    """What is wrong with a built folder, or None. Files that are not in its record do not matter."""
    try:
        record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
        recorded_source, files = record["source"], record["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"its record {RECORD_FILE} is missing or unreadable"
    if recorded_source != source:
        return f"made from {recorded_source}, wanted {source}"
    return next((problem for name, facts in files.items() if (problem := _file_damage(folder / name, facts))), None)


def _file_damage(path: Path, facts: dict[str, Any]) -> str | None:
    if not path.is_file():
        return f"{path.name} is missing"
    if (size := path.stat().st_size) != facts["bytes"]:
        return f"{path.name} has {size:,} bytes, expected {facts['bytes']:,}"
    if (digest := sha256_file(path)) != facts["sha256"]:
        return f"{path.name} has the sha256 {digest}, expected {facts['sha256']}"
    return None


def _record(folder: Path, source: str) -> None:
    """Make the files durable, then write their sizes and checksums."""
    files: dict[str, dict[str, Any]] = {}
    for path in _files(folder):
        fsync_file(path)
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    write_json(folder / RECORD_FILE, {"source": source, "files": files})


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())
