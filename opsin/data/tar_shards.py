"""WebDataset shards: plain tar files in which `key.json` and pictures `key.jpg`, `key.0.png`, ... are one sample."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal

from pydantic import AliasChoices, Field

from opsin.core.errors import DataError
from opsin.core.paths import ExistingFiles, matching
from opsin.core.types import Clip, Picture, Turn
from opsin.data.fields import Named, RecordError
from opsin.data.record_file import Counts, RecordSource
from opsin.data.records import MAX_RECORD_BYTES, BadRecord, Record
from opsin.data.tar_index import Place, TarIndex, tar_index
from opsin.data.turns import IMAGES, record_turns

PICTURES = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp"})


class TarShards(RecordSource):
    """Tar shards: a path, a pattern such as `shards/*.tar`, or a list of them (`path` in a recipe).

    Members that follow each other with one key (the name up to its first dot) are a sample. Its JSON has
    `conversations` or `messages`, as in files of records; the pictures take the marks' places in the order of their
    numbers, unless the record names them: by the name of the member, with or without its key. Pictures are opened late,
    at their place in the shard: nothing is unpacked.
    """

    kind: Literal["webdataset"] = "webdataset"
    shards: ExistingFiles = Field(validation_alias=AliasChoices("path", "shards"))

    @property
    def path(self) -> Path:
        """The first shard."""
        return self.files[0]

    @property
    def files(self) -> tuple[Path, ...]:
        """All shards, each once."""
        return tuple(dict.fromkeys(file for shard in self.shards for file in matching(shard)))

    def _records(self, counts: Counts) -> Iterator[Record | BadRecord]:
        for shard in self.files:
            index = tar_index(shard)
            with _opened(shard) as file:
                for key, places in groupby(index.places, key=lambda place: _key(place[0])):
                    sample = _sample(index, key, list(places), file, counts)
                    index.check_unchanged()
                    yield sample
            for offset, problem in index.problems:
                yield BadRecord(f"{shard}:byte {offset}", problem)

    def _turns(self, record: Record, counts: Counts) -> tuple[Turn, ...]:
        fields: dict[str, Any] = record.value
        if record.pictures and not _names_pictures(fields):
            fields = fields | {"images": list(record.pictures.values())}
        return record_turns(fields, _Members(record.pictures), counts)


@dataclass(frozen=True, slots=True)
class _Members:
    """The pictures of one sample, by the part of their names behind its key."""

    members: Mapping[str, Picture]

    def pictures(self, names: Iterable[Named]) -> list[Picture]:
        return [name if isinstance(name, Picture) else self._picture(name) for name in names]

    def clips(self, names: Iterable[Named]) -> list[Clip]:
        if list(names):
            raise RecordError("videos are not read from shards; keep them as files beside a file of records")
        return []

    def _picture(self, name: str) -> Picture:
        for ending, picture in self.members.items():
            whole = picture.member.name if picture.member else ""
            if name in (ending, whole, PurePosixPath(whole).name):
                return picture
        raise RecordError(f"the sample has no picture {name!r}; it has {', '.join(self.members) or 'none'}")


def _opened(shard: Path) -> BinaryIO:
    try:
        return shard.open("rb")
    except OSError as error:
        raise DataError([f"{shard}: cannot be read ({error.strerror})"]) from None


def _sample(index: TarIndex, key: str, places: list[Place], file: BinaryIO, counts: Counts) -> Record | BadRecord:
    by_ending = {name[len(key) + 1 :].lower(): (name, offset, length) for name, offset, length in places}
    where = f"{index.path}:{key}"
    if len(by_ending) < len(places):
        return BadRecord(where, "two members of the sample have one name; give each sample a key of its own")
    if "json" not in by_ending:
        return BadRecord(where, f"has no {key!a}.json, only {', '.join(name for name, _, _ in places[:9])}")
    where = f"{index.path}:{by_ending['json'][0]}"
    endings = sorted((ending for ending in by_ending if _picture_type(ending) in PICTURES), key=_order)
    if ignored := len(by_ending) - len(endings) - 1:
        counts["members ignored"] += ignored
    pictures = {ending: Picture(path=index.path, member=index.member(by_ending[ending])) for ending in endings}
    _, offset, length = by_ending["json"]
    if length > MAX_RECORD_BYTES:
        return BadRecord(where, f"{length:,} bytes; the limit for a record is {MAX_RECORD_BYTES:,}")
    try:
        file.seek(offset)
        value = json.loads(file.read(length).decode("utf-8-sig"))
    except OSError as error:
        raise DataError([f"{index.path}: cannot be read at byte {offset} ({error.strerror})"]) from None
    except UnicodeDecodeError as error:
        return BadRecord(where, f"byte {error.start} is not UTF-8; save the file as UTF-8")
    except ValueError as error:
        return BadRecord(where, f"not valid JSON ({error})")
    except RecursionError:
        return BadRecord(where, "JSON nested too deeply to read; repair or remove the record")
    return Record(where, key, value, pictures)


def _key(name: str) -> str:
    """The name up to the first dot of its last part."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _picture_type(ending: str) -> str:
    return ending.rpartition(".")[2]


def _order(ending: str) -> tuple[int, str]:
    """`jpg` before `0.jpg`, and `2.jpg` before `10.jpg`."""
    number = ending.partition(".")[0]
    return (int(number) if number.isdecimal() and len(number) < 10 else -1, ending)


def _names_pictures(fields: dict[str, Any]) -> bool:
    """Whether a record says itself which pictures go where."""
    if any(fields.get(key) is not None for key in IMAGES):
        return True
    messages = fields.get("messages")
    contents = (
        [value.get("content") for value in messages if isinstance(value, dict)] if isinstance(messages, list) else []
    )
    items = [item for content in contents if isinstance(content, list) for item in content if isinstance(item, dict)]
    return any(item.get(key) is not None for item in items for key in ("image", "image_url", "video"))
