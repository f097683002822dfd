"""Data formats: files of records -> conversations.

A reader goes through the whole file and raises every problem in one `DataError`. `Source` at the foot is the only list
of formats in the project.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from opsin.core.errors import DataError
from opsin.core.paths import ExistingFile, ExistingFolder
from opsin.core.types import Conversation, Part, Picture, Role, Turn
from opsin.data.image_paths import ImageRoot
from opsin.data.records import BadRecord, Record, read_records

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

IMAGE_MARK = "<image>"
LLAVA_ROLES: dict[str, Role] = {"human": "user", "gpt": "assistant"}
MESSAGE_ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}

Counts = Counter[str]
"""What a reader did, by name: conversations, turns, pictures, leading gpt turns dropped."""


class RecordError(Exception):
    """What is wrong with one record; caught by the reader, which adds file, line and id."""


class _File(BaseModel):
    """A file of records; `image_root` is by default the folder of the file."""

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
        images = ImageRoot(self.image_root or self.path.parent, self.allow_outside)
        problems: list[str] = []
        for record in read_records(self.path):
            where = f"{self.path}:{record.line}"
            if isinstance(record, BadRecord):
                problems.append(f"{where}: {record.problem}")
                continue
            try:
                conversation = self._conversation(record, where, images, counts)
            except RecordError as error:
                problems += [f"{where}: ({_id_or_line(record)}) {problem}" for problem in error.args]
                continue
            counts.update(conversations=1, turns=len(conversation.turns), pictures=len(conversation.media))
            yield conversation
        if problems:
            raise DataError(problems)

    def _conversation(self, record: Record, where: str, images: ImageRoot, counts: Counts) -> Conversation:
        fields = _mapping(record.value, "the record")
        turns = self._turns(fields, images, counts)
        if not turns:
            raise RecordError("has 0 turns; remove the record")
        return Conversation(id=_sample_id(record), turns=turns, where=where)

    @abstractmethod
    def _turns(self, fields: dict[str, Any], images: ImageRoot, counts: Counts) -> tuple[Turn, ...]:
        """The turns of a record; raises RecordError."""


class LlavaFile(_File):
    r"""LLaVA's format: `conversations` from human and gpt, `image` a path or a list of paths; JSON array or JSON Lines.

    Every `<image>` in a human turn becomes the next picture; the text around it stays as it is written. (LLaVA itself
    moves the mark to the front of its turn and adds a newline, which matters for ScienceQA's trailing `\n<image>`.)
    A conversation that begins with a gpt turn loses that turn, as in LLaVA; this is counted.
    """

    kind: Literal["llava"] = "llava"

    def _turns(self, fields: dict[str, Any], images: ImageRoot, counts: Counts) -> tuple[Turn, ...]:
        spoken = [_spoken(value, number) for number, value in enumerate(_list(fields, "conversations"), start=1)]
        pictures = _pictures(_image_names(fields.get("image")), images)
        turns = _with_pictures(spoken, pictures)
        if turns and turns[0].role == "assistant":
            counts["leading gpt turns dropped"] += 1
            return turns[1:]
        return turns


class MessagesFile(_File):
    """Chat messages, a JSON array or JSON Lines: `messages` of role and content, content a text or a list of items.

    An item is `{"type": "text", "text": ...}` or `{"type": "image", "image": path}`. Text is literal: `<image>` in it
    stays text.
    """

    kind: Literal["messages"] = "messages"

    def _turns(self, fields: dict[str, Any], images: ImageRoot, counts: Counts) -> tuple[Turn, ...]:
        del counts
        return tuple(_message(value, number, images) for number, value in enumerate(_list(fields, "messages"), start=1))


def read_conversations(sources: Iterable[Source]) -> tuple[list[Conversation], Counts]:
    """All conversations of some files, in order, and what was counted.

    Raises:
        DataError: with every problem of every file.
    """
    conversations: list[Conversation] = []
    counts: Counts = Counter()
    problems: list[str] = []
    for source in sources:
        try:
            conversations.extend(source.conversations(counts))
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(problems)
    return conversations, counts


def _spoken(value: Any, number: int) -> tuple[Role, str]:
    fields = _mapping(value, f"turn {number}")
    text = _string(fields, "value", f"turn {number}")
    role = _role(fields, "from", LLAVA_ROLES, number)
    if role == "assistant" and (marks := text.count(IMAGE_MARK)):
        raise RecordError(f"turn {number} is a gpt turn with {marks} {IMAGE_MARK}; pictures belong to human turns")
    return role, text


def _image_names(value: Any) -> list[str]:
    names = [] if value is None else value if isinstance(value, list) else [value]
    for name in names:
        if not isinstance(name, str):
            raise RecordError(f"'image' must be a path or a list of paths, got {_shown(name)}")
    return names


def _pictures(names: Iterable[str], images: ImageRoot) -> list[Picture]:
    found = [images.picture(_whole(name, "an image path")) for name in names]
    problems = [picture for picture in found if isinstance(picture, str)]
    if problems:
        raise RecordError(*problems)
    return [picture for picture in found if isinstance(picture, Picture)]


def _with_pictures(spoken: list[tuple[Role, str]], pictures: list[Picture]) -> tuple[Turn, ...]:
    marks = sum(text.count(IMAGE_MARK) for _, text in spoken)
    if marks != len(pictures):
        raise RecordError(
            f"the text has {marks} {IMAGE_MARK} and 'image' has {len(pictures)} path(s); "
            "every mark needs one image and every image one mark"
        )
    following = iter(pictures)
    return tuple(Turn(role, tuple(_parts(text, following))) for role, text in spoken)


def _parts(text: str, pictures: Iterator[Picture]) -> Iterator[Part]:
    for piece in re.split(f"({IMAGE_MARK})", text):
        if piece == IMAGE_MARK:
            yield next(pictures)
        elif piece:
            yield piece


def _message(value: Any, number: int, images: ImageRoot) -> Turn:
    fields = _mapping(value, f"message {number}")
    role = _role(fields, "role", MESSAGE_ROLES, number)
    content = fields.get("content")
    if isinstance(content, str):
        return Turn(role, (_whole(content, f"message {number}"),) if content else ())
    if not isinstance(content, list):
        raise RecordError(f"message {number}: 'content' must be a text or a list of items, got {_shown(content)}")
    return Turn(role, tuple(_item(item, f"message {number}, item {n}", images) for n, item in enumerate(content, 1)))


def _item(value: Any, name: str, images: ImageRoot) -> Part:
    fields = _mapping(value, name)
    kind = fields.get("type")
    if kind not in ("text", "image"):
        raise RecordError(f"{name}: 'type' must be 'text' or 'image', got {_shown(kind)}")
    if extra := sorted(set(fields) - {"type", kind}):
        raise RecordError(
            f"{name}: unknown key {', '.join(map(repr, extra))}; an item of type {kind!r} has 'type' and {kind!r} only"
        )
    text = _string(fields, kind, name)
    return text if kind == "text" else _pictures([text], images)[0]


def _role(fields: dict[str, Any], key: str, roles: dict[str, Role], number: int) -> Role:
    value = fields.get(key)
    if not isinstance(value, str) or value not in roles:
        known = " or ".join(repr(role) for role in roles)
        raise RecordError(f"turn {number}: {key!r} must be {known}, got {_shown(value)}")
    return roles[value]


def _mapping(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RecordError(f"{name} must be a JSON object, got {_shown(value)}")
    return value


def _list(fields: dict[str, Any], key: str) -> list[Any]:
    value = fields.get(key)
    if not isinstance(value, list):
        raise RecordError(f"{key!r} must be a list of turns, got {_shown(value)}")
    return value


def _string(fields: dict[str, Any], key: str, name: str) -> str:
    value = fields.get(key)
    if not isinstance(value, str):
        raise RecordError(f"{name}: {key!r} must be a text, got {_shown(value)}")
    return _whole(value, name)


def _whole(text: str, name: str) -> str:
    """The text, if it is valid Unicode: JSON can spell half a character."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"U+{ord(text[error.start]):04X}"
        raise RecordError(
            f"{name}: half a character (lone surrogate {half}) at character {error.start}; was the text cut? remove it"
        ) from None
    return text


def _sample_id(record: Record) -> str:
    value = record.value.get("id", record.value.get("sample_id"))
    if value is None:
        return f"line {record.line}"
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise RecordError(f"'id' must be a text or a number, got {_shown(value)}")
    return _whole(str(value), "'id'")


def _id_or_line(record: Record) -> str:
    try:
        return _sample_id(record) if isinstance(record.value, dict) else f"line {record.line}"
    except RecordError:
        return f"line {record.line}"


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    text = ascii(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"


Source = Annotated[LlavaFile | MessagesFile, Field(discriminator="kind")]
