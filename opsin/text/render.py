"""Conversation -> ids and loss mask, made together in one pass.

A prompt at serving time is, by construction, a prefix of the ids that were trained on: text is encoded piece by piece,
and no piece spans the place where an answer begins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from opsin.core.errors import RenderError
from opsin.text.templates import Control, Media, Opening, Segment, Template, Text, sample_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from opsin.core.types import Conversation, Medium
    from opsin.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as ids without its pictures and clips; each of them goes before `ids[index]`."""

    ids: tuple[int, ...]
    supervised: tuple[bool, ...]
    media: tuple[tuple[int, Medium], ...]


def render(
    conversation: Conversation, template: Template, tokenizer: Tokenizer, *, open_for_generation: bool = False
) -> Rendered:
    """Ids, loss mask and picture places; for training, unless `open_for_generation` leaves the last answer open."""
    segments = joined(template.segments(conversation, open_for_generation=open_for_generation))
    if not open_for_generation and not any(_teaches(segment) for segment in segments):
        raise RenderError(
            f"{sample_name(conversation)}: nothing to learn: 0 of {len(conversation.turns)} turns hold an answer with "
            "text other than spaces; remove the sample"
        )
    try:
        return _encode(segments, tokenizer)
    except RenderError as error:
        raise RenderError(f"{sample_name(conversation)}: {error}") from error


def joined(segments: Iterable[Segment]) -> list[Segment]:
    """Join neighbouring texts that are both learned or both not, and drop empty ones.

    The question and the words of the template around it tokenise as one text, as in the reference implementations.
    """
    result: list[Segment] = []
    for segment in segments:
        last = result[-1] if result else None
        if isinstance(segment, Text) and not segment.text:
            continue
        if isinstance(segment, Text) and isinstance(last, Text) and segment.supervised == last.supervised:
            result[-1] = Text(last.text + segment.text, last.supervised)
        else:
            result.append(segment)
    return result


def _teaches(segment: Segment) -> bool:
    return isinstance(segment, Text) and segment.supervised and bool(segment.text.strip())


def _encode(segments: list[Segment], tokenizer: Tokenizer) -> Rendered:
    ids: list[int] = []
    supervised: list[bool] = []
    media: list[tuple[int, Medium]] = []
    follows_text = False
    for segment in segments:
        match segment:
            case Media(medium):
                media.append((len(ids), medium))
            case Opening():
                ids += tokenizer.opening_ids
            case Control(token):
                ids.append(tokenizer.control(token))
            case Text(text):
                ids += tokenizer.encode(text, follows_text=follows_text)
        learned = isinstance(segment, Text | Control) and segment.supervised
        supervised += [learned] * (len(ids) - len(supervised))
        follows_text = isinstance(segment, Text)
    return Rendered(tuple(ids), tuple(supervised), tuple(media))
