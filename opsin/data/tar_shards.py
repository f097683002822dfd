"""WebDataset shards: plain tar files in which `key.json` and pictures `key.jpg`, `key.0.png`, ... are one sample."""

from __future__ import annotations

import codecs
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal

from pydantic import AliasChoices, Field

from opsin.core.files import sha256_bytes
from opsin.core.paths import ExistingFiles, matching
from opsin.core.types import Clip, Member, Picture, Turn
from opsin.data.fields import Named, RecordError
from opsin.data.file_state import FileState, check_unchanged, read_part
from opsin.data.record_file import Address, BadRecord, Counts, Reader, Record, RecordSource
from opsin.data.records import MAX_RECORD_BYTES, JsonError, json_value
from opsin.data.tar_index import BLOCK, Place, places_between, tar_index
from opsin.data.turns import IMAGES, record_turns

PICTURES = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp"})


class TarShards(RecordSource):
    """Tar shards: a path, a pattern such as `shards/*.tar`, or a list of them (`path` in a recipe).

    Members that follow each other with one key (the name up to its first dot) are a sample. Its JSON has
    `conversations` or `messages`, as in files of records; the pictures take the marks' places in the order of their
    numbers, unless the record names them: by the name of the member, with or without its key. Pictures are opened late,
    at their place in the shard: nothing is unpacked.
    """

    unit: ClassVar[str] = "sample "
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

    def reader(self) -> Reader:
        """Walks the headers of one sample; an address has the offset and the length in bytes of its part of a shard."""
        return _ShardReader(self)

    def _records(self, counts: Counts) -> Iterator[Record | BadRecord]:
        for number, (shard, state) in enumerate(self.states.items()):
            index = tar_index(shard, state)
            start = 0
            for ordinal, (_, group) in enumerate(groupby(index.places, key=_key_of), start=1):
                places = list(group)
                _, offset, length = places[-1]
                address = Address(number, ordinal, start, offset + length - start)
                yield _sample(shard, state, places, address, counts)
                check_unchanged(shard, state)
                start = offset + -(-length // BLOCK) * BLOCK
            for count, (offset, problem) in enumerate(index.problems, start=1):
                ends = index.damaged and count == len(index.problems)
                yield BadRecord(f"{shard}:byte {offset}", problem, rest=ends)

    def _content(self, path: Path, state: FileState) -> Any:
        return *state, sha256_bytes(repr(tar_index(path, state).places).encode("utf-8", "surrogateescape"))

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
        names = [repr(picture.member.name) for picture in self.members.values() if picture.member]
        raise RecordError(
            f"the sample has no picture {name!r}; it has {', '.join(names) or 'none'}: "
            "name the picture as its member is called, or leave it out and all are taken in order"
        )


class _ShardReader(Reader):
    def _record(self, path: Path, state: FileState, address: Address) -> Record | BadRecord:
        places = places_between(path, state, address.start, address.start + address.length)
        if not places:
            return BadRecord(f"{path}:byte {address.start}", "no member here; was the address made for this shard?")
        return _sample(path, state, places, address, Counter())


def _sample(shard: Path, state: FileState, places: list[Place], address: Address, counts: Counts) -> Record | BadRecord:
    """The members of one key as a record."""
    key = _key_of(places[0])
    by_ending = {name[len(key) + 1 :].lower(): (name, offset, length) for name, offset, length in places}
    if len(by_ending) < len(places):
        return BadRecord(f"{shard}:{key}", "two members of the sample have one name; give each sample a key of its own")
    if "json" not in by_ending:
        listed = ", ".join(name for name, _, _ in places[:9])
        problem = f"has no {f'{key}.json'!a}, only {listed}; add it, with 'conversations' or 'messages'"
        return BadRecord(f"{shard}:{key}", problem)
    name, offset, length = by_ending["json"]
    where = f"{shard}:{name}"
    endings = sorted((ending for ending in by_ending if _picture_type(ending) in PICTURES), key=_order)
    if ignored := len(by_ending) - len(endings) - 1:
        counts["members ignored"] += ignored
    if length > MAX_RECORD_BYTES:
        return BadRecord(where, f"{length:,} bytes; the limit for a record is {MAX_RECORD_BYTES:,}")
    raw = read_part(shard, state, offset, length)
    try:
        value = json_value(raw.removeprefix(codecs.BOM_UTF8), "repair or remove the record")
    except JsonError as error:
        line, column, problem = error.args
        return BadRecord(f"{where}:{line}:{column}", problem)
    pictures = {ending: Picture(path=shard, member=Member(*by_ending[ending], *state)) for ending in endings}
    return Record(where, key, value, address, pictures)


def _key_of(place: Place) -> str:
    """The name up to the first dot of its last part."""
    folder, slash, file = place[0].rpartition("/")
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
