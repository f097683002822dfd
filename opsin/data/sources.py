"""Data formats: files of records -> conversations.

A reader goes through the whole file and raises every problem in one `DataError`. `Source` at the foot is the only list
of formats in the project.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from opsin.core.errors import DataError
from opsin.core.types import Clip, Conversation, Part, Role, Turn
from opsin.data.fields import RecordError, mapping, paths_of, role_of, shown, string, turns_of, whole
from opsin.data.marks import Spoken, with_media
from opsin.data.media_paths import MediaRoot, picture_of_data_url
from opsin.data.record_file import Counts, RecordFile

if TYPE_CHECKING:
    from collections.abc import Iterable

LLAVA_ROLES: dict[str, Role] = {
    "human": "user",
    "gpt": "assistant",
    "user": "user",
    "assistant": "assistant",
    "system": "system",
}
MESSAGE_ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}
IMAGES, VIDEOS = ("image", "images"), ("video", "videos")
SIZES = ("min_pixels", "max_pixels", "resized_height", "resized_width", "fps", "nframes", "total_pixels", "detail")
"""Keys with which Qwen's and OpenAI's items ask for a size of their own."""


class LlavaFile(RecordFile):
    r"""LLaVA's and ShareGPT's format: `conversations` from human and gpt; JSON array or JSON Lines.

    `image` (or `images`) and `video` (or `videos`) are a path or a list of paths. Every `<image>` in a human turn
    becomes the next picture, every `<video>` the next video; the text around it stays as it is written. (LLaVA itself
    moves the mark to the front of its turn and adds a newline, which matters for ScienceQA's trailing `\n<image>`.)
    A conversation that begins with a gpt turn loses that turn, as in LLaVA; this is counted.
    """

    kind: Literal["llava"] = "llava"

    def _turns(self, fields: dict[str, Any], media: MediaRoot, counts: Counts) -> tuple[Turn, ...]:
        values = turns_of(fields, "conversations")
        turns = _marked([_spoken(value, number) for number, value in enumerate(values, start=1)], fields, media)
        if turns and turns[0].role == "assistant":
            counts["leading gpt turns dropped"] += 1
            return turns[1:]
        return turns


class MessagesFile(RecordFile):
    """Chat messages, a JSON array or JSON Lines: `messages` of role and content, content a text or a list of items.

    An item is `{"type": "text", "text": ...}`, `{"type": "image", "image": path}`, `{"type": "video", "video": path}`
    (or a list of paths: its frames), or OpenAI's `{"type": "image_url", "image_url": {"url": ...}}` with a path or a
    data URL. Text is literal: `<image>` in it stays text, unless the record has `images` or `videos` beside its
    messages, which then take the marks' places as in LLaVA's format.
    """

    kind: Literal["messages"] = "messages"

    def _turns(self, fields: dict[str, Any], media: MediaRoot, counts: Counts) -> tuple[Turn, ...]:
        del counts
        values = turns_of(fields, "messages")
        if any(fields.get(key) is not None for key in (*IMAGES, *VIDEOS)):
            return _marked([_plain(value, number) for number, value in enumerate(values, start=1)], fields, media)
        return tuple(_message(value, number, media) for number, value in enumerate(values, start=1))


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


def _marked(spoken: list[Spoken], fields: dict[str, Any], media: MediaRoot) -> tuple[Turn, ...]:
    return with_media(spoken, media.pictures(paths_of(fields, IMAGES)), media.clips(paths_of(fields, VIDEOS)))


def _spoken(value: Any, number: int) -> Spoken:
    fields = mapping(value, f"turn {number}")
    return role_of(fields, "from", LLAVA_ROLES, number), string(fields, "value", f"turn {number}")


def _plain(value: Any, number: int) -> Spoken:
    fields = mapping(value, f"message {number}")
    return role_of(fields, "role", MESSAGE_ROLES, number), string(fields, "content", f"message {number}")


def _message(value: Any, number: int, media: MediaRoot) -> Turn:
    fields = mapping(value, f"message {number}")
    role = role_of(fields, "role", MESSAGE_ROLES, number)
    content = fields.get("content")
    if isinstance(content, str):
        return Turn(role, (whole(content, f"message {number}"),) if content else ())
    if not isinstance(content, list):
        raise RecordError(f"message {number}: 'content' must be a text or a list of items, got {shown(content)}")
    return Turn(role, tuple(_item(item, f"message {number}, item {n}", media) for n, item in enumerate(content, 1)))


def _item(value: Any, name: str, media: MediaRoot) -> Part:
    fields = mapping(value, name)
    kind = fields.get("type")
    if kind not in ("text", "image", "image_url", "video"):
        raise RecordError(f"{name}: 'type' must be 'text', 'image', 'image_url' or 'video', got {shown(kind)}")
    if extra := sorted(set(fields) - {"type", kind}):
        sizes = "; sizes are the model's: set them in model.resolution and model.video" * bool(set(extra) & set(SIZES))
        raise RecordError(
            f"{name}: unknown key {', '.join(map(repr, extra))}; an item of type {kind!r} has 'type' and {kind!r} only"
            f"{sizes}"
        )
    if kind == "text":
        return string(fields, kind, name)
    if kind == "video":
        return _clip(fields, name, media)
    url = mapping(fields.get(kind), f"{name}: {kind!r}") if kind == "image_url" else fields
    path = string(url, "url" if kind == "image_url" else kind, name)
    if path.startswith("data:"):
        return picture_of_data_url(path, name)
    return media.pictures([path])[0]


def _clip(fields: dict[str, Any], name: str, media: MediaRoot) -> Clip:
    if not isinstance(fields.get("video"), list):
        return media.clips([string(fields, "video", name)])[0]
    frames = media.pictures(paths_of(fields, VIDEOS))
    if not frames:
        raise RecordError(f"{name}: 'video' is an empty list; it needs at least one frame")
    return Clip(frames=tuple(frames))


Source = Annotated[LlavaFile | MessagesFile, Field(discriminator="kind")]
