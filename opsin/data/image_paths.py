"""Turn the image paths of a data file into pictures, inside one folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePath

from opsin.core.types import Picture


@dataclass(frozen=True, slots=True)
class ImageRoot:
    """The folder that image paths are relative to; paths out of it are refused unless `allow_outside`."""

    folder: Path
    allow_outside: bool = False

    def picture(self, name: str) -> Picture | str:
        """The picture, or what is wrong with its path."""
        if not name or "\0" in name:
            return f"image path {name!r} is empty or has a null character; correct it"
        path = self.folder / name
        if not self.allow_outside and (problem := self._outside(name, path)):
            return problem
        try:
            found = path.is_file()
        except OSError as error:  # a name longer than the file system takes, a loop of links
            return f"image {name!r}: {error.strerror}; correct the path"
        if not found:
            return f"image {name!r}: no such file under {self.folder}; correct the path or image_root"
        return Picture(path=path)

    def _outside(self, name: str, path: Path) -> str | None:
        allow = "make it relative to image_root, or set allow_outside"
        if PurePath(name).is_absolute():
            return f"image {name!r}: absolute path; {allow}"
        if ".." in PurePath(name).parts:
            return f"image {name!r}: '..' in the path; {allow}"
        try:
            inside = path.resolve().is_relative_to(self.folder.resolve())
        except OSError as error:
            return f"image {name!r}: {error.strerror}; correct the path"
        return (
            None if inside else f"image {name!r}: a link out of {self.folder}; copy the file in, or set allow_outside"
        )
