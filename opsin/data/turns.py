"""A record's fields -> turns, in the two ways that data is written: LLaVA's `conversations`, and chat `messages`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, Protocol

from opsin.core.types import Clip, Part, Picture, Role, Turn
from opsin.data.fields import Named, RecordError, listed, mapping, media_of, role_of, shown, string, turns_of, whole
from opsin.data.marks import IMAGE_MARK, VIDEO_MARK, Spoken, with_media
from opsin.data.media_paths import picture_of_data_url

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
TURNS = {"conversations": "llava", "messages": "messages"}
"""Key of a record's turns -> the kind of a source whose records have it."""
MARKS = {"image": IMAGE_MARK, "video": VIDEO_MARK}


class Media(Protocol):
    """Where the media that a record names are found."""

    def pictures(self, names: Iterable[Named]) -> list[Picture]:
        """Pictures by their names; raises RecordError."""
        ...

    def clips(self, names: Iterable[Named]) -> list[Clip]:
        """Clips by their names; raises RecordError."""
        ...


def record_turns(fields: dict[str, Any], media: Media, counts: Counter[str]) -> tuple[Turn, ...]:
    """The turns of a record of either kind, told by its keys.

    Raises:
        RecordError: it cannot be used.
    """
    if fields.get("conversations") is not None:
        return llava_turns(fields, media, counts)
    if fields.get("messages") is not None:
        return message_turns(fields, media)
    raise RecordError("has neither 'conversations' nor 'messages'")


def llava_turns(fields: dict[str, Any], media: Media, counts: Counter[str]) -> tuple[Turn, ...]:
    """The turns of `conversations`; a first turn of gpt is dropped, and counted.

    Raises:
        RecordError: they cannot be used.
    """
    values = _values(fields, "conversations")
    turns = _marked([_spoken(value, number) for number, value in enumerate(values, start=1)], fields, media)
    if turns and turns[0].role == "assistant":
        counts["leading gpt turns dropped"] += 1
        return turns[1:]
    return turns


def message_turns(fields: dict[str, Any], media: Media) -> tuple[Turn, ...]:
    """The turns of `messages`; media beside them take the places of marks and of items without a path.

    Raises:
        RecordError: they cannot be used.
    """
    values = _values(fields, "messages")
    if any(fields.get(key) is not None for key in (*IMAGES, *VIDEOS)):
        return _marked([_plain(value, number) for number, value in enumerate(values, start=1)], fields, media)
    return tuple(_message(value, number, media) for number, value in enumerate(values, start=1))


def _values(fields: dict[str, Any], key: str) -> list[Any]:
    if key in fields:
        return turns_of(fields, key)
    for other, kind in TURNS.items():
        if other in fields:
            raise RecordError(f"has no {key!r}, but {other!r}: the kind of its source is {kind}")
    raise RecordError(f"has no {key!r}; its keys are {listed(fields)}")


def _marked(spoken: list[Spoken], fields: dict[str, Any], media: Media) -> tuple[Turn, ...]:
    return with_media(spoken, media.pictures(media_of(fields, IMAGES)), media.clips(media_of(fields, VIDEOS)))


def _spoken(value: Any, number: int) -> Spoken:
    fields = mapping(value, f"turn {number}")
    return role_of(fields, "from", LLAVA_ROLES, number), string(fields, "value", f"turn {number}")


def _plain(value: Any, number: int) -> Spoken:
    fields = mapping(value, f"message {number}")
    role = role_of(fields, "role", MESSAGE_ROLES, number)
    content = fields.get("content")
    if not isinstance(content, list):
        return role, string(fields, "content", f"message {number}")
    return role, "".join(_mark(item, f"message {number}, item {n}") for n, item in enumerate(content, 1))


def _mark(value: Any, name: str) -> str:
    """An item as a mark in text: the media are beside the messages."""
    fields = mapping(value, name)
    kind = fields.get("type")
    if kind == "text":
        return string(fields, "text", name)
    if isinstance(kind, str) and kind in MARKS and set(fields) == {"type"}:
        return MARKS[kind]
    raise RecordError(
        f"{name}: the record has images or videos beside its messages, whose places are "
        f"{{'type': 'image'}} and {{'type': 'video'}}; got {shown(value)}"
    )


def _message(value: Any, number: int, media: Media) -> Turn:
    fields = mapping(value, f"message {number}")
    role = role_of(fields, "role", MESSAGE_ROLES, number)
    content = fields.get("content")
    if isinstance(content, str):
        return Turn(role, (whole(content, f"message {number}"),) if content else ())
    if not isinstance(content, list):
        raise RecordError(f"message {number}: 'content' must be a text or a list of items, got {shown(content)}")
    return Turn(role, tuple(_item(item, f"message {number}, item {n}", media) for n, item in enumerate(content, 1)))


def _item(value: Any, name: str, media: Media) -> Part:
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


def _clip(fields: dict[str, Any], name: str, media: Media) -> Clip:
    if not isinstance(fields.get("video"), list):
        return media.clips([string(fields, "video", name)])[0]
    frames = media.pictures(media_of(fields, VIDEOS))
    if not frames:
        raise RecordError(f"{name}: 'video' is an empty list; it needs at least one frame")
    return Clip(frames=tuple(frames))
