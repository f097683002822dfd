"""What all files of records have in common: reading them through or at random, and saying everything that is wrong."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from opsin.core.errors import DataError
from opsin.core.files import sha256_bytes, sha256_file
from opsin.core.paths import ExistingFile, ExistingFolder
from opsin.core.types import Clip, Conversation, Picture, Turn
from opsin.data.fields import RecordError, mapping, shown, whole
from opsin.data.file_state import FileState, check_unchanged, readable, states_of
from opsin.data.media_paths import MediaRoot
from opsin.data.mixture import Portion

if TYPE_CHECKING:
    from collections.abc import Iterator

IDENTITY = 1
"""Raised when a format is read in another way, so that what was derived from it before is not used."""

PLACES = ("path", "shards", "splits", "image_root")
"""Fields of sources that say where something lies."""

Counts = Counter[str]
"""What a reader did, by name: conversations, turns, pictures, clips, leading gpt turns dropped."""


class Address(NamedTuple):
    """Where a record stands: in which of `source.files`, the line for messages, and two numbers of the source's own."""

    file: int
    line: int
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Record:
    """One record: `where` it stands (file:line), and the `name` of that place, for a record without an id.

    `pictures` are those that lie beside the value, by their names.
    """

    where: str
    name: str
    value: Any
    address: Address
    pictures: Mapping[str, Picture] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A place that cannot be read; `rest` says that nothing behind it in its file can be, either."""

    where: str
    problem: str
    rest: bool = False


@dataclass(frozen=True, slots=True)
class Unusable:
    """A record that cannot be used, and all that is wrong with it; `rest`: so is the rest of its file."""

    problems: tuple[str, ...]
    rest: bool = False


Located = tuple[Address, Conversation]
"""A conversation, and where it stands."""


class RecordSource(Portion):
    """Records, one conversation each, and how much of them an epoch takes."""

    @property
    @abstractmethod
    def files(self) -> tuple[Path, ...]:
        """The files that are read, in order; media beside them are not among them."""

    unit: ClassVar[str] = ""
    """What an address's line counts, where it is not lines."""

    @cached_property
    def states(self) -> dict[Path, FileState]:
        """The files as they are when the source is first used: they must stay so for as long as it is used.

        Raises:
            DataError: one is not there.
        """
        return states_of(self.files)

    def conversations(self, counts: Counts) -> Iterator[Conversation]:
        """Yield the good records and add to `counts`.

        Raises:
            DataError: after the last record, with every problem; at once when a file is not there, or changes.
        """
        return (conversation for _, conversation in self.located(counts))

    def located(self, counts: Counts) -> Iterator[Located]:
        """As `conversations`, each with the address at which `reader` finds it again.

        Raises:
            DataError: as `conversations`.
        """
        problems: list[str] = []
        for found in self.scan(counts):
            if isinstance(found, Unusable):
                problems += found.problems
            else:
                yield found
        if problems:
            raise DataError(problems)

    def scan(self, counts: Counts) -> Iterator[Located | Unusable]:
        """Every record, good or bad: the same number of them for as long as the files are what they are.

        Raises:
            DataError: a file is not there, or changes.
        """
        self.states  # noqa: B018 (the files are what they are now)
        for record in self._records(counts):
            if isinstance(record, BadRecord):
                yield Unusable((f"{record.where}: {record.problem}",), record.rest)
                continue
            try:
                conversation = self.conversation(record, counts)
            except RecordError as error:
                yield Unusable(tuple(_named(record, error)))
                continue
            _count(conversation, counts)
            yield record.address, conversation
        self.check_at_rest()

    def check_at_rest(self) -> None:
        """Hold the files against what they were when the source was first used.

        Raises:
            DataError: one has changed, or is gone.
        """
        for path, state in self.states.items():
            check_unchanged(path, state)

    def where(self, address: Address) -> str:
        """What to call a place in messages, without looking at the file."""
        path = list(self.states)[address.file]
        return f"{path}:{self.unit}{address.line}" if address.line else str(path)

    @abstractmethod
    def reader(self) -> Reader:
        """Reads single records again, in any order.

        Raises:
            DataError: a file is not there.
        """

    def identity(self) -> str:
        """A name for what is read and how: equal names, equal conversations at equal addresses.

        Raises:
            DataError: a file is not there, has changed, or cannot be read.
        """
        places = self.model_dump(mode="json", include=set(PLACES))
        return sha256_bytes(json.dumps([self.content(), list(map(str, self.files)), places], sort_keys=True).encode())

    def content(self) -> str:
        """A name for what the files hold and how they are read, wherever they lie.

        Files of records count by their bytes; Parquet files and shards, which hold media, by their time and index.

        Raises:
            DataError: a file is not there, has changed, or cannot be read.
        """
        self.check_at_rest()
        return self._whole_content

    @cached_property
    def _whole_content(self) -> str:
        contents = [self._content(path, state) for path, state in self.states.items()]
        options = self.model_dump(mode="json", exclude={*Portion.model_fields, *PLACES})
        return sha256_bytes(json.dumps([IDENTITY, options, contents], sort_keys=True).encode())

    def conversation(self, record: Record, counts: Counts) -> Conversation:
        """What a record says.

        Raises:
            RecordError: it cannot be used.
        """
        mapping(record.value, "the record")
        turns = self._turns(record, counts)
        if not turns:
            raise RecordError("has 0 turns; remove the record")
        return Conversation(id=_sample_id(record), turns=turns, where=record.where)

    def _content(self, path: Path, state: FileState) -> Any:
        """What tells one content of a file from another."""
        del state
        with readable(path):
            return sha256_file(path)

    @abstractmethod
    def _records(self, counts: Counts) -> Iterator[Record | BadRecord]:
        """The records, whatever they hold."""

    @abstractmethod
    def _turns(self, record: Record, counts: Counts) -> tuple[Turn, ...]:
        """The turns of a record whose value is an object; raises RecordError."""


class Reader(ABC):
    """Reads records of a source again, each at its address. It may be used in forked processes, at the same time."""

    def __init__(self, source: RecordSource) -> None:
        self._source = source
        self._files = tuple(source.states.items())

    def conversation(self, address: Address) -> Conversation:
        """The conversation that `located` gave with this address.

        Raises:
            DataError: its file has changed or is gone, or one of its media is; there is no record at the address.
        """
        path, state = self._files[address.file]
        record = self._record(path, state, address)
        if isinstance(record, BadRecord):
            raise DataError([f"{record.where}: {record.problem}"])
        try:
            return self._source.conversation(record, Counter())
        except RecordError as error:  # a medium that was there when the record was first read
            raise DataError(_named(record, error)) from None

    def close(self) -> None:  # noqa: B027 (most readers keep nothing open)
        """Let go of what is open."""

    @abstractmethod
    def _record(self, path: Path, state: FileState, address: Address) -> Record | BadRecord:
        """The record as `_records` gave it; raises DataError if the file is not in this state."""


class RecordFile(RecordSource):
    """A file of records; `image_root`, where its media lie, is by default the folder of the file."""

    path: ExistingFile
    image_root: ExistingFolder | None = None
    allow_outside: bool = False

    @property
    def files(self) -> tuple[Path, ...]:
        """The one file."""
        return (self.path,)

    @cached_property
    def media(self) -> MediaRoot:
        """Where the media lie."""
        return MediaRoot(self.image_root or self.path.parent, self.allow_outside)


def _count(conversation: Conversation, counts: Counts) -> None:
    media = conversation.media
    clips = sum(isinstance(medium, Clip) for medium in media)
    counts["conversations"] += 1
    counts["turns"] += len(conversation.turns)
    counts["pictures"] += len(media) - clips
    if clips:
        counts["clips"] += clips


def _sample_id(record: Record) -> str:
    value = record.value.get("id", record.value.get("sample_id"))
    if value is None:
        return record.name
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise RecordError(f"'id' must be a text or a number, got {shown(value)}")
    return whole(str(value), "'id'")


def _named(record: Record, error: RecordError) -> list[str]:
    """The problems of a record, each with its place and id."""
    return [f"{record.where}: ({_id_or_name(record)}) {problem}" for problem in error.args]


def _id_or_name(record: Record) -> str:
    try:
        return _sample_id(record) if isinstance(record.value, dict) else record.name
    except RecordError:
        return record.name
