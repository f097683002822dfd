"""Conversation -> ids and loss mask, made together in one pass.

A prompt at serving time is, by construction, a prefix of the ids that were trained on: text is encoded piece by piece,
and no piece spans the place where an answer begins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from opsin.core.errors import RenderError
from opsin.text.labels import POLICIES, Policy
from opsin.text.own_template import spoken
from opsin.text.segments import Control, Media, Opening, Segment, Text, joined, nothing_to_learn, sample_name

if TYPE_CHECKING:
    from opsin.core.types import Conversation, Medium
    from opsin.text.templates import Template
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
    """Ids, loss mask and picture places; for training, unless `open_for_generation` leaves the last answer open.

    Raises:
        RenderError: the conversation does not fit the template, has nothing to learn, or the tokenizer cannot write it.
    """
    speaking = spoken(template, tokenizer)
    segments = joined(speaking.segments(conversation, open_for_generation=open_for_generation))
    if not open_for_generation and not any(_teaches(segment) for segment in segments):
        raise nothing_to_learn(conversation)
    try:
        return _encode(segments, tokenizer, POLICIES[speaking.labels])
    except RenderError as error:
        raise RenderError(f"{sample_name(conversation)}: {error}") from error


def _teaches(segment: Segment) -> bool:
    return isinstance(segment, Text) and segment.part == "answer" and bool(segment.text.strip())


def _encode(segments: list[Segment], tokenizer: Tokenizer, policy: Policy) -> Rendered:
    ids: list[int] = []
    supervised: list[bool] = []
    media: list[tuple[int, Medium]] = []
    everywhere = policy.everywhere(tokenizer)
    follows_text = False
    for segment in segments:
        match segment:
            case Media(medium):
                media.append((len(ids), medium))
                new: list[int] = []
            case Opening():
                new = list(tokenizer.opening_ids)
            case Control(token):
                new = [tokenizer.control(token)]
            case Text(text):
                new = tokenizer.encode(text, follows_text=follows_text)
        learned = not isinstance(segment, Media) and segment.part in policy.parts
        supervised += [learned or token in everywhere for token in new]
        ids += new
        follows_text = isinstance(segment, Text)
    return Rendered(tuple(ids), tuple(supervised), tuple(media))
