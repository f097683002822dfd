"""Marks in text, `<image>` and `<video>`, as places of media: LLaVA's and ShareGPT's way to write a conversation."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from opsin.core.types import Clip, Medium, Part, Picture, Role, Turn
from opsin.data.fields import RecordError

IMAGE_MARK = "<image>"
VIDEO_MARK = "<video>"
_MARKS = re.compile(f"({IMAGE_MARK}|{VIDEO_MARK})")

Spoken = tuple[Role, str]
"""A turn as it is written, marks and all."""


def with_media(spoken: Sequence[Spoken], pictures: Sequence[Picture], clips: Sequence[Clip]) -> tuple[Turn, ...]:
    """The turns with every mark replaced by its medium; the text around it stays as it is written.

    `<image>` stands for the next picture, and in a record of videos alone for the next video, as LLaVA-NeXT's data
    writes it; `<video>` for the next video.

    Raises:
        RecordError: marks and media do not match, or a mark stands in an answer.
    """
    for number, (role, text) in enumerate(spoken, start=1):
        found = _MARKS.findall(text)
        if role == "assistant" and found:
            raise RecordError(f"turn {number} is an answer with {len(found)} {found[0]}; media belong to human turns")
    images = sum(text.count(IMAGE_MARK) for _, text in spoken)
    videos = sum(text.count(VIDEO_MARK) for _, text in spoken)
    if clips and not pictures and not videos:
        _check(images, IMAGE_MARK, len(clips), "video")
        queues: dict[str, Iterator[Medium]] = {IMAGE_MARK: iter(clips)}
    else:
        _check(images, IMAGE_MARK, len(pictures), "image")
        _check(videos, VIDEO_MARK, len(clips), "video")
        queues = {IMAGE_MARK: iter(pictures), VIDEO_MARK: iter(clips)}
    return tuple(Turn(role, tuple(_parts(text, queues))) for role, text in spoken)


def _check(marks: int, mark: str, paths: int, kind: str) -> None:
    if marks != paths:
        raise RecordError(
            f"the text has {marks} {mark} and {kind!r} has {paths} path(s); "
            f"every mark needs one {kind} and every {kind} one mark"
        )


def _parts(text: str, queues: dict[str, Iterator[Medium]]) -> Iterator[Part]:
    for piece in _MARKS.split(text):
        if piece in queues:
            yield next(queues[piece])
        elif piece:
            yield piece
