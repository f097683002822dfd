"""What all files of records have in common: reading them through, and saying everything that is wrong."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from opsin.core.errors import DataError
from opsin.core.paths import ExistingFile, ExistingFolder
from opsin.core.types import Clip, Conversation, Turn
from opsin.data.fields import RecordError, mapping, shown, whole
from opsin.data.media_paths import MediaRoot
from opsin.data.records import BadRecord, Record, read_records

if TYPE_CHECKING:
    from collections.abc import Iterator

Counts = Counter[str]
"""What a reader did, by name: conversations, turns, pictures, clips, leading gpt turns dropped."""


class RecordSource(BaseModel):
    """Records, one conversation each."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @property
    @abstractmethod
    def files(self) -> tuple[Path, ...]:
        """The files that are read, in order; media beside them are not among them."""

    def conversations(self, counts: Counts) -> Iterator[Conversation]:
        """Yield the good records and add to `counts`.

        Raises:
            DataError: after the last record, with every problem; at once when a file is not there, or changes.
        """
        for path in self.files:
            if not path.is_file():
                raise DataError([f"{path}: no such file; correct the path"])
        problems: list[str] = []
        for record in self._records(counts):
            if isinstance(record, BadRecord):
                problems.append(f"{record.where}: {record.problem}")
                continue
            try:
                conversation = self._conversation(record, counts)
            except RecordError as error:
                problems += [f"{record.where}: ({_id_or_name(record)}) {problem}" for problem in error.args]
                continue
            _count(conversation, counts)
            yield conversation
        if problems:
            raise DataError(problems)

    def _conversation(self, record: Record, counts: Counts) -> Conversation:
        mapping(record.value, "the record")
        turns = self._turns(record, counts)
        if not turns:
            raise RecordError("has 0 turns; remove the record")
        return Conversation(id=_sample_id(record), turns=turns, where=record.where)

    @abstractmethod
    def _records(self, counts: Counts) -> Iterator[Record | BadRecord]:
        """The records, whatever they hold."""

    @abstractmethod
    def _turns(self, record: Record, counts: Counts) -> tuple[Turn, ...]:
        """The turns of a record whose value is an object; raises RecordError."""


class RecordFile(RecordSource):
    """A file of records; `image_root`, where its media lie, is by default the folder of the file."""

    path: ExistingFile
    image_root: ExistingFolder | None = None
    allow_outside: bool = False

    @property
    def files(self) -> tuple[Path, ...]:
        """The one file."""
        return (self.path,)

    @property
    def _media(self) -> MediaRoot:
        return MediaRoot(self.image_root or self.path.parent, self.allow_outside)

    def _records(self, counts: Counts) -> Iterator[Record | BadRecord]:
        del counts
        return read_records(self.path)


def _count(conversation: Conversation, counts: Counts) -> None:
    clips = sum(isinstance(medium, Clip) for medium in conversation.media)
    counts.update(conversations=1, turns=len(conversation.turns), pictures=len(conversation.media) - clips)
    if clips:
        counts["clips"] += clips


def _sample_id(record: Record) -> str:
    value = record.value.get("id", record.value.get("sample_id"))
    if value is None:
        return record.name
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise RecordError(f"'id' must be a text or a number, got {shown(value)}")
    return whole(str(value), "'id'")


def _id_or_name(record: Record) -> str:
    try:
        return _sample_id(record) if isinstance(record.value, dict) else record.name
    except RecordError:
        return record.name
