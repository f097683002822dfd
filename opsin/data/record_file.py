"""What all files of records have in common: reading them through, and saying everything that is wrong."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from typing import TYPE_CHECKING, Any

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


class RecordFile(BaseModel):
    """A file of records; `image_root`, where its media lie, is by default the folder of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: ExistingFile
    image_root: ExistingFolder | None = None
    allow_outside: bool = False

    def conversations(self, counts: Counts) -> Iterator[Conversation]:
        """Yield the good records and add to `counts`.

        Raises:
            DataError: after the last record, with every problem of the file.
        """
        if not self.path.is_file():
            raise DataError([f"{self.path}: no such file; correct the path"])
        media = MediaRoot(self.image_root or self.path.parent, self.allow_outside)
        problems: list[str] = []
        for record in read_records(self.path):
            where = f"{self.path}:{record.line}"
            if isinstance(record, BadRecord):
                problems.append(f"{where}: {record.problem}")
                continue
            try:
                conversation = self._conversation(record, where, media, counts)
            except RecordError as error:
                problems += [f"{where}: ({_id_or_line(record)}) {problem}" for problem in error.args]
                continue
            _count(conversation, counts)
            yield conversation
        if problems:
            raise DataError(problems)

    def _conversation(self, record: Record, where: str, media: MediaRoot, counts: Counts) -> Conversation:
        fields = mapping(record.value, "the record")
        turns = self._turns(fields, media, counts)
        if not turns:
            raise RecordError("has 0 turns; remove the record")
        return Conversation(id=_sample_id(record), turns=turns, where=where)

    @abstractmethod
    def _turns(self, fields: dict[str, Any], media: MediaRoot, counts: Counts) -> tuple[Turn, ...]:
        """The turns of a record; raises RecordError."""


def _count(conversation: Conversation, counts: Counts) -> None:
    clips = sum(isinstance(medium, Clip) for medium in conversation.media)
    counts.update(conversations=1, turns=len(conversation.turns), pictures=len(conversation.media) - clips)
    if clips:
        counts["clips"] += clips


def _sample_id(record: Record) -> str:
    value = record.value.get("id", record.value.get("sample_id"))
    if value is None:
        return f"line {record.line}"
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise RecordError(f"'id' must be a text or a number, got {shown(value)}")
    return whole(str(value), "'id'")


def _id_or_line(record: Record) -> str:
    try:
        return _sample_id(record) if isinstance(record.value, dict) else f"line {record.line}"
    except RecordError:
        return f"line {record.line}"
