"""Paths in configuration values: relative to the configuration's folder, and checked with all other keys at once.

Validation with `context={"folder": Path}` anchors and checks them; without it (a saved checkpoint) they are left alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

from opsin.core.errors import OpsinError
from opsin.core.files import expanded


def _anchored(path: Path, info: ValidationInfo) -> tuple[Path, bool]:
    folder: Path | None = (info.context or {}).get("folder")
    if folder is None:
        return path, False
    try:
        return (folder / expanded(path)).absolute(), True
    except OpsinError as error:
        raise ValueError(str(error)) from None  # as pydantic expects it


def _file(path: Path, info: ValidationInfo) -> Path:
    path, checked = _anchored(path, info)
    if checked and not path.is_file():
        raise ValueError(f"no such file: {path}" if not path.exists() else f"not a file: {path}")
    return path


def _folder(path: Path, info: ValidationInfo) -> Path:
    path, checked = _anchored(path, info)
    if checked and not path.is_dir():
        raise ValueError(f"no such folder: {path}" if not path.exists() else f"not a folder: {path}")
    return path


def _folder_or_stage(path: Path, info: ValidationInfo) -> Path:
    folder, mark, stage = str(path).rpartition("#")
    if not mark or _anchored(path, info)[0].exists():
        return _folder(path, info)
    return Path(f"{_folder(Path(folder), info)}#{stage}")


def matching(path: Path) -> list[Path]:
    """The file, or, if it is a pattern (`*`, `?`, `[...]`), the files that match it, sorted; itself if none does."""
    if path.exists() or not set("*?[") & set(str(path)):
        return [path]
    found = Path(path.anchor).glob(str(path.relative_to(path.anchor)))
    return sorted(one for one in found if one.is_file()) or [path]


def _files(paths: tuple[Path, ...], info: ValidationInfo) -> tuple[Path, ...]:
    anchored = [_anchored(path, info) for path in paths]
    if not all(checked for _, checked in anchored):
        return paths
    return tuple(_file(one, info) for path, _ in anchored for one in matching(path))


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str | Path) else value


ExistingFile = Annotated[Path, AfterValidator(_file)]
"""A path to a file that must be there."""

ExistingFolder = Annotated[Path, AfterValidator(_folder)]
"""A path to a folder that must be there."""

ExistingStart = Annotated[Path, AfterValidator(_folder_or_stage)]
"""A path to a folder that must be there, perhaps with `#` and the name of a stage behind it."""

ExistingFiles = Annotated[tuple[Path, ...], BeforeValidator(_listed), AfterValidator(_files), Field(min_length=1)]
"""Files that must be there: a path, a pattern, or a list of them."""
