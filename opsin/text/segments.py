"""What a template makes of a conversation: typed segments, each of which knows what part of an exchange it is.

A segment does not know whether it is learned. The label policy says so by its part (`opsin.text.labels`), so the ids
of a conversation cannot depend on what is learned of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from opsin.core.errors import RenderError
from opsin.core.types import Clip, Conversation, Medium, Turn

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator

SegmentPart = Literal["context", "header", "answer", "end", "after"]
"""What a segment is to an answer: the words that announce it (`header`; where no published policy learns them they
count as `context`), the answer, the mark that ends it, the text behind that mark; all else is context.
"""


@dataclass(frozen=True, slots=True)
class Text:
    """Plain text; never becomes a control token, whatever it spells."""

    text: str
    part: SegmentPart = "context"


@dataclass(frozen=True, slots=True)
class Control:
    """A control token, by name."""

    token: str
    part: SegmentPart = "context"


@dataclass(frozen=True, slots=True)
class Opening:
    """What the tokenizer puts before any text of its own accord: its beginning-of-text token, or nothing."""

    part: SegmentPart = "context"


@dataclass(frozen=True, slots=True)
class Media:
    """The place of a picture or a clip."""

    medium: Medium


Segment = Text | Control | Opening | Media

AfterPicture = Literal["\n", ""]
"""What stands behind a picture where a question is put together from pictures and text, in chat and in evaluation: the
newline of LLaVA's data, or nothing, as in Qwen2-VL's. Records of training data are taken as they are written.
"""


def sample_name(conversation: Conversation) -> str:
    """How messages name a sample: `file:line: (id)`."""
    return f"{conversation.where}: ({conversation.id})" if conversation.where else f"({conversation.id})"


def ordered_turns(conversation: Conversation, *, open_for_generation: bool) -> tuple[str | None, tuple[Turn, ...]]:
    """The system text and the other turns, checked: user and assistant alternate, only users show pictures."""
    name = sample_name(conversation)
    for number, turn in enumerate(conversation.turns, start=1):
        count = sum(not isinstance(part, str) for part in turn.parts)
        if count and turn.role != "user":
            raise RenderError(
                f"{name}: turn {number}, from the {turn.role}, has {count} picture{'s' if count > 1 else ''}; "
                "only user turns can hold pictures: move them to the question"
            )
    has_system = bool(conversation.turns) and conversation.turns[0].role == "system"
    turns = conversation.turns[1:] if has_system else conversation.turns
    for index, turn in enumerate(turns):
        expected = "assistant" if index % 2 else "user"
        if turn.role != expected:
            raise RenderError(
                f"{name}: turn {index + 1 + has_system} of {len(conversation.turns)} is from the {turn.role}, "
                f"expected the {expected}: an optional system turn, then user and assistant in turns"
            )
    if not turns:
        raise RenderError(f"{name}: has no user turn; remove the sample")
    if turns[-1].role == "user" and not open_for_generation:
        raise RenderError(f"{name}: ends with a user turn ({len(turns)} turns), nothing answers it; remove that turn")
    return (text_of(conversation.turns[0]) if has_system else None), turns


def nothing_to_learn(conversation: Conversation) -> RenderError:
    """What is wrong with a sample whose answers are all empty."""
    return RenderError(
        f"{sample_name(conversation)}: nothing to learn: 0 of {len(conversation.turns)} turns hold an answer with "
        "text other than spaces; remove the sample"
    )


def exchanges(turns: tuple[Turn, ...], *, open_for_generation: bool) -> Iterator[tuple[Turn, Turn | None, bool]]:
    """Each question with its answer and whether the answer is open: not begun (None), or begun and to be continued."""
    for index in range(0, len(turns), 2):
        is_last = index + 2 >= len(turns)
        answer = turns[index + 1] if index + 1 < len(turns) else None
        yield turns[index], answer, is_last and open_for_generation


def text_of(turn: Turn) -> str:
    """The text of a turn without pictures."""
    return "".join(part for part in turn.parts if isinstance(part, str))


def part_segments(
    turn: Turn, around: tuple[Segment, Segment] | None = None, numbers: Counter[str] | None = None
) -> list[Segment]:
    """Text and pictures of a turn in reading order, each picture between the two segments of `around`, if given.

    With `numbers`, which count the conversation's media so far, `Picture 1: ` or `Video 1: ` goes before each.
    """
    segments: list[Segment] = []
    for part in turn.parts:
        if isinstance(part, str):
            segments.append(Text(part))
            continue
        if numbers is not None:
            name = "Video" if isinstance(part, Clip) else "Picture"
            numbers[name] += 1
            segments.append(Text(f"{name} {numbers[name]}: "))
        segments += [Media(part)] if around is None else [around[0], Media(part), around[1]]
    return segments


def joined(segments: list[Segment]) -> list[Segment]:
    """Join neighbouring texts of one part, and drop empty ones.

    The question and the words of the template around it tokenise as one text, as in the reference implementations.
    """
    result: list[Segment] = []
    for segment in segments:
        last = result[-1] if result else None
        if isinstance(segment, Text) and not segment.text:
            continue
        if isinstance(segment, Text) and isinstance(last, Text) and segment.part == last.part:
            result[-1] = Text(last.text + segment.text, last.part)
        else:
            result.append(segment)
    return result
