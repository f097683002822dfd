"""Chat templates: a conversation becomes a list of typed segments.

Control tokens come from here and nowhere else, and a segment knows whether it is learned, so ids and loss mask
can be made in one pass. The policy is *answer only*: the answer's tokens and the mark that ends it are supervised.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from opsin.core.errors import RenderError
from opsin.core.types import Conversation, Medium, Turn

if TYPE_CHECKING:
    from collections.abc import Iterator

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
QWEN_SYSTEM = "You are a helpful assistant."
"""The system text that Qwen2 and Qwen2-VL put in front when a conversation has none: `ChatML(system=QWEN_SYSTEM)`."""


@dataclass(frozen=True, slots=True)
class Text:
    """Plain text; never becomes a control token, whatever it spells."""

    text: str
    supervised: bool = False


@dataclass(frozen=True, slots=True)
class Control:
    """A control token, by name."""

    token: str
    supervised: bool = False


@dataclass(frozen=True, slots=True)
class Opening:
    """What the tokenizer puts before any text of its own accord: its beginning-of-text token, or nothing."""


@dataclass(frozen=True, slots=True)
class Media:
    """The place of a picture or a clip."""

    medium: Medium


Segment = Text | Control | Opening | Media

AfterPicture = Literal["\n", ""]
"""What stands behind a picture where a question is put together from pictures and text, in chat and in evaluation: the
newline of LLaVA's data, or nothing, as in Qwen2-VL's. Records of training data are taken as they are written.
"""


class Plain(BaseModel):
    """LLaVA's pretraining format: the pictures, the caption, a newline; no EOS, and the human text is discarded."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["plain"] = "plain"
    after_picture: ClassVar[AfterPicture] = "\n"

    @property
    def stop_tokens(self) -> tuple[str, ...]:
        """Control tokens that end an answer: none, a caption ends with its newline."""
        return ()

    def segments(self, conversation: Conversation, *, open_for_generation: bool = False) -> list[Segment]:
        """Pictures, then the caption; open for generation, the caption has no newline yet."""
        system, turns = ordered_turns(conversation, open_for_generation=open_for_generation)
        if system is not None or len(turns) > 2:
            raise RenderError(
                f"{sample_name(conversation)}: template 'plain' takes one user turn and one caption, "
                f"the sample has {len(conversation.turns)} turns; use a chat template"
            )
        if not conversation.media:
            raise RenderError(
                f"{sample_name(conversation)}: template 'plain' needs a picture, the sample has 0; use a chat template"
            )
        segments: list[Segment] = [Opening(), *(Media(medium) for medium in conversation.media)]
        if len(turns) == 2:
            segments.append(Text(text_of(turns[1]), supervised=True))
            segments += [] if open_for_generation else [Text("\n", supervised=True)]
        return segments


class VicunaV1(BaseModel):
    """LLaVA's `v1`: `{system} USER: question ASSISTANT: answer</s>USER: ...`; a conversation's own system text wins."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["vicuna_v1"] = "vicuna_v1"
    system: str = VICUNA_SYSTEM
    after_picture: AfterPicture = "\n"

    @property
    def stop_tokens(self) -> tuple[str, ...]:
        """Control tokens that end an answer."""
        return ("</s>",)

    def segments(self, conversation: Conversation, *, open_for_generation: bool = False) -> list[Segment]:
        """Segments; open for generation, the last answer has no end mark, or none of its text yet."""
        system, turns = ordered_turns(conversation, open_for_generation=open_for_generation)
        system = self.system if system is None else system
        segments: list[Segment] = [Opening()]
        # The space after the system text is part of its separator: no space follows `</s>`, none precedes a first USER.
        segments += [Text(f"{system} ")] if system else []
        for question, answer, is_open in exchanges(turns, open_for_generation=open_for_generation):
            segments += [Text("USER: "), *part_segments(question), Text(" ASSISTANT:")]
            segments += [] if answer is None else [Text(f" {text_of(answer)}", supervised=True)]
            segments += [] if is_open else [Control("</s>", supervised=True)]
        return segments


class Mistral(BaseModel):
    r"""LLaVA's `mistral_instruct`: `[INST] question [/INST] answer </s>[INST] ...`; the marks are plain text.

    There is no system text of its own; a conversation's goes into its first question, as Llama 2's does. The space
    before the end mark is learned (LLaVA's code for this style).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["mistral"] = "mistral"
    after_picture: AfterPicture = "\n"

    @property
    def stop_tokens(self) -> tuple[str, ...]:
        """Control tokens that end an answer."""
        return ("</s>",)

    def segments(self, conversation: Conversation, *, open_for_generation: bool = False) -> list[Segment]:
        """Segments; open for generation, the last answer has no end mark, or none of its text yet."""
        system, turns = ordered_turns(conversation, open_for_generation=open_for_generation)
        wrapped = f"<<SYS>>\n{system}\n<</SYS>>\n\n" if system else ""
        segments: list[Segment] = [Opening()]
        for question, answer, is_open in exchanges(turns, open_for_generation=open_for_generation):
            segments += [Text(f"[INST] {wrapped}"), *part_segments(question), Text(" [/INST]")]
            segments += [] if answer is None else [Text(f" {text_of(answer)}", supervised=True)]
            segments += [] if is_open else [Text(" ", supervised=True), Control("</s>", supervised=True)]
            wrapped = ""
        return segments


class ChatML(BaseModel):
    r"""Qwen2 and SmolLM2: `<|im_start|>role\ntext<|im_end|>\n`; a conversation's own system text wins over `system`.

    `around_picture` names two control tokens that enclose every picture and clip (Qwen2-VL's vision start and end).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["chatml"] = "chatml"
    system: str | None = None
    around_picture: tuple[str, str] | None = None
    after_picture: AfterPicture = "\n"

    @property
    def stop_tokens(self) -> tuple[str, ...]:
        """Control tokens that end an answer."""
        return ("<|im_end|>",)

    def segments(self, conversation: Conversation, *, open_for_generation: bool = False) -> list[Segment]:
        """Segments; open for generation, the last answer has no end mark, or none of its text yet."""
        system, turns = ordered_turns(conversation, open_for_generation=open_for_generation)
        system = self.system if system is None else system
        segments: list[Segment] = [Opening()]
        segments += [] if system is None else self._block("system", [Text(system)])
        for question, answer, is_open in exchanges(turns, open_for_generation=open_for_generation):
            segments += self._block("user", part_segments(question, self.around_picture))
            segments += [Control("<|im_start|>"), Text("assistant\n")]
            segments += [] if answer is None else [Text(text_of(answer), supervised=True)]
            segments += [] if is_open else [Control("<|im_end|>", supervised=True), Text("\n")]
        return segments

    @staticmethod
    def _block(role: str, content: list[Segment]) -> list[Segment]:
        return [Control("<|im_start|>"), Text(f"{role}\n"), *content, Control("<|im_end|>"), Text("\n")]


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


def exchanges(turns: tuple[Turn, ...], *, open_for_generation: bool) -> Iterator[tuple[Turn, Turn | None, bool]]:
    """Each question with its answer and whether the answer is open: not begun (None), or begun and to be continued."""
    for index in range(0, len(turns), 2):
        is_last = index + 2 >= len(turns)
        answer = turns[index + 1] if index + 1 < len(turns) else None
        yield turns[index], answer, is_last and open_for_generation


def text_of(turn: Turn) -> str:
    """The text of a turn without pictures."""
    return "".join(part for part in turn.parts if isinstance(part, str))


def part_segments(turn: Turn, around_picture: tuple[str, str] | None = None) -> list[Segment]:
    """Text and pictures of a turn in reading order, each picture between two control tokens if any are named."""
    segments: list[Segment] = []
    for part in turn.parts:
        if isinstance(part, str):
            segments.append(Text(part))
        elif around_picture is None:
            segments.append(Media(part))
        else:
            segments += [Control(around_picture[0]), Media(part), Control(around_picture[1])]
    return segments


Template = Annotated[Plain | VicunaV1 | Mistral | ChatML, Field(discriminator="kind")]
"""The only list of templates in the project."""
