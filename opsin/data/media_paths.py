"""Turn the paths of a data file into pictures and clips, inside one folder."""

from __future__ import annotations

import base64
import binascii
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath

from opsin.core.types import Clip, Picture
from opsin.data.fields import Named, RecordError
from opsin.vision.picture import MAX_BYTES


@dataclass(frozen=True)
class MediaRoot:
    """The folder that paths are relative to, or below which they are; others are refused unless `allow_outside`."""

    folder: Path
    allow_outside: bool = False

    @cached_property
    def _resolved(self) -> str:
        return os.path.realpath(self.folder)

    def pictures(self, names: Iterable[Named]) -> list[Picture]:
        """Pictures, by their paths.

        Raises:
            RecordError: with every path that cannot be used.
        """
        names = list(names)
        files = iter(self._files([name for name in names if isinstance(name, str)], "image"))
        return [name if isinstance(name, Picture) else Picture(path=next(files)) for name in names]

    def clips(self, names: Iterable[Named]) -> list[Clip]:
        """Video files, by their paths.

        Raises:
            RecordError: with every path that cannot be used.
        """
        return [Clip(path=path) for path in self._files([str(name) for name in names], "video")]

    def picture(self, name: str) -> Picture | str:
        """The picture, or what is wrong with its path."""
        path = self._file(name, "image")
        return path if isinstance(path, str) else Picture(path=path)

    def _files(self, names: Iterable[str], kind: str) -> list[Path]:
        found = [self._file(name, kind) for name in names]
        if problems := [path for path in found if isinstance(path, str)]:
            raise RecordError(*problems)
        return [path for path in found if isinstance(path, Path)]

    def _file(self, name: str, kind: str) -> Path | str:
        if not name or "\0" in name:
            return f"{kind} path {name!r} is empty or has a null character; correct it"
        if name.startswith("file://"):
            return f"{kind} {name!r}: a URL; give the path alone, without 'file://'"
        if "://" in name:
            return f"{kind} {name!r}: a URL; opsin opens local files only: fetch it, and give its path"
        path = self.folder / name
        if not self.allow_outside and (problem := self._outside(name, path, kind)):
            return problem
        try:
            mode = path.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            return f"{kind} {name!r}: no such file under {self.folder}; correct the path or image_root"
        except OSError as error:  # a name longer than the file system takes, a loop of links
            return f"{kind} {name!r}: {error.strerror}; correct the path"
        if not stat.S_ISREG(mode):  # a FIFO would block for ever
            return f"{kind} {name!r}: a folder or a device under {self.folder}, not a file; correct the path"
        return path

    def _outside(self, name: str, path: Path, kind: str) -> str | None:
        allow = "make it relative to image_root, or set allow_outside"
        if ".." in PurePath(name).parts:
            return f"{kind} {name!r}: '..' in the path; {allow}"
        try:
            inside = Path(os.path.realpath(path)).is_relative_to(self._resolved)
        except OSError as error:
            return f"{kind} {name!r}: {error.strerror}; correct the path"
        if inside:
            return None
        if PurePath(name).is_absolute():
            return f"{kind} {name!r}: absolute path out of {self.folder}; {allow}"
        return f"{kind} {name!r}: a link out of {self.folder}; copy the file in, or set allow_outside"


def picture_of_data_url(url: str, name: str) -> Picture:
    """A picture inside the record: `data:image/png;base64,...`.

    Raises:
        RecordError: it is not base64, or too large.
    """
    head, _, body = url.partition(",")
    if not head.startswith("data:image/") or not head.endswith(";base64"):
        raise RecordError(f"{name}: expected 'data:image/...;base64,...', got {head[:40]!r}")
    if len(body) * 3 // 4 > MAX_BYTES:
        raise RecordError(f"{name}: about {len(body) * 3 // 4:,} bytes; the limit is {MAX_BYTES:,}")
    try:
        return Picture(data=base64.b64decode(body, validate=True))
    except (binascii.Error, ValueError):
        raise RecordError(f"{name}: not valid base64") from None
