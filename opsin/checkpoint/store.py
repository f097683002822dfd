"""The checkpoint protocol: a fresh directory, everything checksummed, the manifest last, and a rename to commit.

A directory is a checkpoint only if its `manifest.json` is there and every file has the size and sha256 it names.
Weights are safetensors and the rest is JSON; nothing is ever unpickled.

    .NAME.partial/0/ 1/ ...   every rank fills a folder of its own, makes its files durable and hashes them
    .NAME.partial/            the first rank moves all files up and writes the manifest
    NAME/                     ... and renames: from now on, and not before, there is a checkpoint
    .trash-NAME/              a checkpoint that is being deleted
    .damaged-NAME/            one that was passed over when the run went on, and whose place was needed
"""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from opsin import __version__
from opsin.checkpoint.places import OPTIMISER, Place, is_shard, place_of
from opsin.core.errors import CheckpointError
from opsin.core.files import fsync_directory, fsync_file, make_directory, sha256_bytes, sha256_file, write_json
from opsin.core.ranks import ALONE, Ranks

MANIFEST = "manifest.json"
FORMAT = 2
"""2 adds to what format 1 tells the versions of libraries, the number of ranks, and a hash of the manifest itself."""

MAX_MANIFEST_BYTES = 10_000_000
SPARE = 1.2
"""A save begins only with so many times the last checkpoint's bytes free."""

LIBRARIES = ("torch", "transformers", "safetensors")
PARTIAL, TRASH = ".partial", ".trash-"


def commit(path: Path, write: Callable[[Path], None], meta: dict[str, Any], ranks: Ranks = ALONE) -> Path:
    """Create the checkpoint `path`: on every rank `write(folder)` fills a fresh folder; all of them are then one.

    No two ranks write a file of the same name. An error on one rank is one on all, and then there is no checkpoint.

    Raises:
        CheckpointError: `path` exists (a checkpoint is never overwritten), the disk is full, too full to begin, or
            fails, on any rank.
        TrainError: a rank did not answer in time, or is gone.
    """
    partial = path.with_name(f".{path.name}{PARTIAL}")
    first = ranks.rank == 0
    try:
        _agree(ranks, path, lambda: _begin(path, partial) if first else None)
        facts = _agree(ranks, path, lambda: _fill(partial / str(ranks.rank), write))
        _agree(ranks, path, lambda: _seal(path, partial, facts, meta) if first else None)
    finally:
        if first:
            shutil.rmtree(partial, ignore_errors=True)
    return path


def _agree(ranks: Ranks, path: Path, work: Callable[[], Any]) -> list[Any]:
    """Do this rank's work; what all ranks' work gave, or the same error on all of them."""
    value, problem, bug = None, None, None
    try:
        value = work()
    except CheckpointError as error:
        problem = str(error)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as its own error
        problem = _unsaved(path, ranks, (error.strerror if isinstance(error, OSError) else None) or str(error))
    except Exception as error:  # noqa: BLE001 (the other ranks must hear of it: they would wait for this one)
        problem, bug = _unsaved(path, ranks, f"{type(error).__name__}: {error}"), error
    answers = ranks.gather({"value": value, "problem": problem})
    if bug is not None:
        raise bug
    for answer in answers:
        if answer["problem"] is not None:
            raise CheckpointError(answer["problem"])
    return [answer["value"] for answer in answers]


def _unsaved(path: Path, ranks: Ranks, reason: str) -> str:
    where = f"rank {ranks.rank}: " if ranks.size > 1 else ""
    there = next(folder for folder in path.absolute().parents if folder.is_dir())
    free = shutil.disk_usage(there).free
    return f"{path}: could not be saved ({where}{reason}; {free / 1e6:,.0f} MB free); earlier checkpoints are untouched"


def _begin(path: Path, partial: Path) -> None:
    """Make room, and the fresh directory."""
    if path.exists():
        raise CheckpointError(f"{path}: exists already; a checkpoint is never overwritten")
    make_directory(path.parent)
    sweep(path.parent)
    _check_space(path)
    partial.mkdir()


def _check_space(path: Path) -> None:
    for last in candidates(path.parent)[:1]:
        try:
            size = sum(fact["bytes"] for fact in read_manifest(last)["files"].values())
        except CheckpointError:
            return  # a damaged one says nothing about what is needed
        free = shutil.disk_usage(path.parent).free
        if free < SPARE * size:
            raise CheckpointError(
                f"{path}: not begun: {free / 1e6:,.1f} MB are free and {SPARE * size / 1e6:,.1f} MB needed ({SPARE} x "
                f"the last checkpoint, {last.name}); free some space; earlier checkpoints are untouched"
            )


def _fill(own: Path, write: Callable[[Path], None]) -> dict[str, dict[str, Any]]:
    """This rank's files, durable, with their sizes and hashes."""
    own.mkdir()
    write(own)
    facts = {}
    for entry in sorted(own.rglob("*")):
        if entry.is_dir():
            fsync_directory(entry)
        else:
            fsync_file(entry)
            name = entry.relative_to(own).as_posix()
            facts[name] = {"bytes": entry.stat().st_size, "sha256": sha256_file(entry)}
    return facts


def _seal(path: Path, partial: Path, facts: list[dict[str, dict[str, Any]]], meta: dict[str, Any]) -> None:
    """Move the files of all ranks into one directory, describe them, and give it its name."""
    files: dict[str, dict[str, Any]] = {}
    for rank, found in enumerate(facts):
        if twice := sorted(files.keys() & found.keys()):
            raise CheckpointError(f"{path}: rank {rank} wrote {twice[0]}, and so did another")
        files |= found
        own = partial / str(rank)
        for entry in sorted(own.iterdir()):
            entry.rename(partial / entry.name)
        own.rmdir()
    libraries = {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES}
    about = {"format": FORMAT, "opsin": __version__, "libraries": libraries, "ranks": len(facts), "meta": meta}
    about["files"] = dict(sorted(files.items()))
    write_json(partial / MANIFEST, about | {"sha256": _digest(about)})
    partial.rename(path)
    fsync_directory(path.parent)


def verify(path: Path, *, weights_only: bool = False) -> dict[str, Any]:
    """Check every file of a checkpoint against its manifest; returns the manifest's `meta`.

    With `weights_only`, the optimiser's files may be missing or altered.

    Raises:
        CheckpointError: naming the first file that is missing, added or altered.
    """
    manifest = read_manifest(path)
    files: dict[str, dict[str, Any]] = manifest["files"]
    present = {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()} - {MANIFEST}
    for name in sorted(present - files.keys()):
        raise CheckpointError(f"{path}: {name} is not in the manifest; the checkpoint was altered")
    for name, fact in files.items():
        if weights_only and is_shard(name, OPTIMISER):
            continue
        if name not in present:
            raise CheckpointError(f"{path}: {name} is missing; the checkpoint is incomplete")
        _verify_file(path, name, fact)
    meta: dict[str, Any] = manifest["meta"]
    return meta


def _verify_file(path: Path, name: str, fact: dict[str, Any]) -> None:
    try:
        size = (path / name).stat().st_size
        digest = sha256_file(path / name) if size == fact["bytes"] else ""
    except OSError as error:
        raise CheckpointError(f"{path}: {name} cannot be read ({error.strerror or error})") from None
    if size != fact["bytes"]:
        raise CheckpointError(f"{path}: {name} has {size:,} bytes, the manifest says {fact['bytes']:,}")
    if digest != fact["sha256"]:
        raise CheckpointError(
            f"{path}: {name} was altered: its sha256 is {digest[:12]}..., the manifest says "
            f"{fact['sha256'][:12]}...; restore the file or use another checkpoint"
        )


def read_manifest(path: Path) -> dict[str, Any]:
    """What a checkpoint says about itself: format, opsin, meta, files (name -> bytes, sha256).

    Raises:
        CheckpointError: it has no manifest, or one that cannot be read, or one of a later opsin.
    """
    file = path / MANIFEST
    if not file.is_file():
        raise CheckpointError(f"{path}: no {MANIFEST}; this is not a whole checkpoint")
    if file.stat().st_size > MAX_MANIFEST_BYTES:
        raise CheckpointError(f"{file}: larger than {MAX_MANIFEST_BYTES:,} bytes; not a manifest")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        whole = {"format", "opsin", "meta", "files"} <= manifest.keys()
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror or error})") from None
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
    if manifest["format"] != 1 and manifest.pop("sha256", None) != _digest(manifest):
        raise CheckpointError(f"{file}: its sha256 is not that of its content; the checkpoint was altered")
    if not isinstance(manifest["meta"], dict):
        raise CheckpointError(f"{file}: 'meta' is not a table; the checkpoint was altered")
    files = manifest["files"]
    if not (isinstance(files, dict) and all(map(_is_fact, files.values()))):
        raise CheckpointError(f"{file}: 'files' does not give every file's size and sha256; the checkpoint was altered")
    return dict(manifest)


def _digest(about: dict[str, Any]) -> str:
    """A hash of what a manifest says, however it is spaced."""
    return sha256_bytes(json.dumps(about, sort_keys=True).encode())


def _is_fact(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("bytes"), int) and isinstance(value.get("sha256"), str)


def candidates(folder: Path) -> list[Path]:
    """Checkpoints below a run's checkpoint folder, newest first, and behind them folders of other names."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    nowhere = Place(-1, -1)
    return sorted(found, key=lambda path: (place_of(path) or nowhere, path.name), reverse=True)


def newest_whole(folder: Path, *, weights_only: bool = False) -> tuple[Path, list[str]]:
    """The newest checkpoint that verifies, and one line for each newer one that was skipped.

    With `weights_only`, what only a resumed stage needs may be missing or damaged: the optimiser's state.

    Raises:
        CheckpointError: there is no whole checkpoint, or the newest one was made within a stage without the
            optimiser's state.
    """
    skipped = []
    for path in candidates(folder):
        try:
            meta = verify(path, weights_only=weights_only)
        except CheckpointError as error:
            skipped.append(f"skipped {error}")
            continue
        within = meta.get("done") is False
        if within and not weights_only and not any(is_shard(name, OPTIMISER) for name in read_manifest(path)["files"]):
            raise CheckpointError(
                f"{path}: was made within a stage, but holds no optimiser state; --weights-only goes on from its "
                "weights with a fresh optimiser"
            )
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
            if path.name.startswith(TRASH) or (path.name.startswith(".") and PARTIAL in path.name):
                _remove(path)


def delete(path: Path) -> None:
    """Remove a checkpoint: out of sight by one rename first, so that half of one is never seen."""
    trash = path.with_name(f"{TRASH}{path.name}")
    path.rename(trash)
    _remove(trash)


def _remove(path: Path) -> None:
    """Remove a directory or a file, as far as that is possible; the next sweep tries again."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
