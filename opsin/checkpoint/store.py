"""The checkpoint protocol: a fresh directory, everything checksummed, the manifest last, and a rename to commit.

A directory is a checkpoint only if its `manifest.json` is there and every file has the size and sha256 it names.
Weights are safetensors and the rest is JSON; nothing is ever unpickled.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from opsin import __version__
from opsin.core.errors import CheckpointError
from opsin.core.files import fsync_directory, fsync_file, sha256_file, write_json

MANIFEST = "manifest.json"
FORMAT = 1
MAX_MANIFEST_BYTES = 10_000_000


def commit(path: Path, write: Callable[[Path], None], meta: dict[str, Any]) -> Path:
    """Create the checkpoint `path`: `write(folder)` fills a fresh folder, which is then sealed and renamed.

    Raises:
        CheckpointError: `path` exists (a checkpoint is never overwritten), or the disk is full or fails.
    """
    if path.exists():
        raise CheckpointError(f"{path}: exists already; a checkpoint is never overwritten")
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write(partial)
        _seal(partial, meta)
        partial.rename(path)
        fsync_directory(path.parent)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as its own error
        free = shutil.disk_usage(path.parent if path.parent.is_dir() else Path.cwd()).free
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(
            f"{path}: could not be saved ({reason}; {free / 1e6:,.0f} MB free); earlier checkpoints are untouched"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return path


def _seal(folder: Path, meta: dict[str, Any]) -> None:
    files = {}
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        fsync_file(file)
        files[file.relative_to(folder).as_posix()] = {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
    write_json(folder / MANIFEST, {"format": FORMAT, "opsin": __version__, "meta": meta, "files": files})


def verify(path: Path) -> dict[str, Any]:
    """Check every file of a checkpoint against its manifest; returns the manifest's `meta`.

    Raises:
        CheckpointError: naming the first file that is missing, added or altered.
    """
    manifest = _read_manifest(path)
    files: dict[str, dict[str, Any]] = manifest["files"]
    present = {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()} - {MANIFEST}
    for name in sorted(present - files.keys()):
        raise CheckpointError(f"{path}: {name} is not in the manifest; the checkpoint was altered")
    for name, fact in files.items():
        if name not in present:
            raise CheckpointError(f"{path}: {name} is missing; the checkpoint is incomplete")
        size = (path / name).stat().st_size
        if size != fact["bytes"]:
            raise CheckpointError(f"{path}: {name} has {size:,} bytes, the manifest says {fact['bytes']:,}")
        digest = sha256_file(path / name)
        if digest != fact["sha256"]:
            raise CheckpointError(
                f"{path}: {name} was altered: its sha256 is {digest[:12]}..., the manifest says "
                f"{fact['sha256'][:12]}...; restore the file or use another checkpoint"
            )
    meta: dict[str, Any] = manifest["meta"]
    return meta


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    if not file.is_file():
        raise CheckpointError(f"{path}: no {MANIFEST}; this is not a whole checkpoint")
    if file.stat().st_size > MAX_MANIFEST_BYTES:
        raise CheckpointError(f"{file}: larger than {MAX_MANIFEST_BYTES:,} bytes; not a manifest")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        whole = {"format", "opsin", "meta", "files"} <= manifest.keys()
    except (ValueError, AttributeError):
        raise CheckpointError(f"{file}: not valid JSON; the checkpoint was altered") from None
    if not whole:
        raise CheckpointError(f"{file}: keys are missing; the checkpoint was altered")
    if not isinstance(manifest["format"], int):
        raise CheckpointError(f"{file}: 'format' is not a number; the checkpoint was altered")
    if manifest["format"] > FORMAT:
        raise CheckpointError(
            f"{path}: written by opsin {manifest['opsin']} in format {manifest['format']}; this opsin reads up to "
            f"{FORMAT}: upgrade it"
        )
    files = manifest["files"]
    facts = files.values() if isinstance(files, dict) else [None]
    if not all(isinstance(fact, dict) and {"bytes", "sha256"} <= fact.keys() for fact in facts):
        raise CheckpointError(f"{file}: 'files' does not give every file's size and sha256; the checkpoint was altered")
    return dict(manifest)


def candidates(folder: Path) -> list[Path]:
    """Checkpoints below a run's checkpoint folder, newest first (names sort by step)."""
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")), reverse=True)


def newest_whole(folder: Path) -> tuple[Path, list[str]]:
    """The newest checkpoint that verifies, and one line for each newer one that was skipped.

    Raises:
        CheckpointError: there is no whole checkpoint.
    """
    skipped = []
    for path in candidates(folder):
        try:
            verify(path)
        except CheckpointError as error:
            skipped.append(f"skipped {error}")
            continue
        return path, skipped
    reasons = "".join(f"\n  {line}" for line in skipped)
    raise CheckpointError(f"{folder}: no valid checkpoint{reasons}")


def set_aside(path: Path) -> None:
    """Rename a damaged checkpoint, so that its place is free and its files can still be looked at."""
    aside = path.with_name(f".damaged-{path.name}")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)


def sweep(folder: Path) -> None:
    """Remove what saves and deletions that were killed have left behind."""
    if folder.is_dir():
        for path in folder.iterdir():
            if path.name.startswith(".trash-") or (path.name.startswith(".") and ".partial-" in path.name):
                shutil.rmtree(path, ignore_errors=True)


def delete(path: Path) -> None:
    """Remove a checkpoint: out of sight by one rename first, so that half of one is never seen."""
    trash = path.with_name(f".trash-{path.name}")
    path.rename(trash)
    shutil.rmtree(trash, ignore_errors=True)
