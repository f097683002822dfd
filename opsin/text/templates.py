"""Chat templates: a conversation becomes a list of typed segments.

Control tokens come from here and nowhere else, and a segment knows what part of an exchange it is, so ids and loss mask
can be made in one pass. LLaVA's `v0` is not among them: its code counts a beginning-of-text token into every piece, so
what it learns drifts into the questions, and a template without that drift would be no published model's.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from opsin.core.errors import RenderError
from opsin.core.types import Conversation
from opsin.text.labels import Labels
from opsin.text.own_template import FromTokenizer
from opsin.text.segments import (
    AfterPicture,
    Control,
    Media,
    Opening,
    Segment,
    Text,
    exchanges,
    ordered_turns,
    part_segments,
    sample_name,
    text_of,
)

__all__ = [
    "AfterPicture",
    "ChatML",
    "Control",
    "FromTokenizer",
    "Llama2",
    "Llama3",
    "Media",
    "Mistral",
    "Opening",
    "Plain",
    "Segment",
    "Template",
    "Text",
    "VicunaV1",
    "ordered_turns",
    "sample_name",
]

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
MMTAG_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant is able to understand the visual content that the user provides, and assist the user with a variety "
    "of tasks using natural language."
    "The visual content will be provided with the following format: <Image>visual content</Image>."
)
"""LLaVA's `v1_mmtag`: `VicunaV1(system=MMTAG_SYSTEM, image_tags=True)`."""
LLAMA_2_SYSTEM = (
    "You are a helpful language and vision assistant. "
    "You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)
MPT_SYSTEM = (
    "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and honest answers."
)
"""LLaVA's `mpt`: `ChatML(system=MPT_SYSTEM, after_mark="")`."""
CHATML_DIRECT_SYSTEM = "Answer the questions."
"""LLaVA's `chatml_direct` and `mistral_direct`: `ChatML(system=CHATML_DIRECT_SYSTEM, after_mark="")`."""
QWEN_SYSTEM = "You are a helpful assistant."
"""The system text that Qwen2 and Qwen2-VL put in front when a conversation has none: `ChatML(system=QWEN_SYSTEM)`."""


class Plain(BaseModel):
    """LLaVA's pretraining format: the pictures, the caption, a newline; no EOS, and the human text is discarded."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["plain"] = "plain"
    after_picture: ClassVar[AfterPicture] = "\n"
    labels: ClassVar[Labels] = "answer_only"

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
            segments.append(Text(text_of(turns[1]), "answer"))
            segments += [] if open_for_generation else [Text("\n", "answer")]
        return segments


class VicunaV1(BaseModel):
    """LLaVA's `v1`: `{system} USER: question ASSISTANT: answer</s>USER: ...`; a conversation's own system text wins.

    With `image_tags` every picture stands between the words `<Image>` and `</Image>` (LLaVA's `mmtag` variants).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["vicuna_v1"] = "vicuna_v1"
    system: str = VICUNA_SYSTEM
    image_tags: bool = False
    after_picture: AfterPicture = "\n"
    labels: ClassVar[Labels] = "answer_only"

    @property
    def stop_tokens(self) -> tuple[str, ...]:
        """Control tokens that end an answer."""
        return ("</s>",)

    def segments(self, conversation: Conversation, *, open_for_generation: bool = False) -> list[Segment]:
        """Segments; open for generation, the last answer has no end mark, or none of its text yet."""
        system, turns = ordered_turns(conversation, open_for_generation=open_for_generation)
        system = self.system if system is None else system
        around = (Text("<Image>"), Text("</Image>")) if self.image_tags else None
        segments: list[Segment] = [Opening()]
        # The space after the system text is part of its separator: no space follows `</s>`, none precedes a first USER.
        segments += [Text(f"{system} ")] if system else []
        for question, answer, is_open in exchanges(turns, open_for_generation=open_for_generation):
            segments += [Text("USER: "), *part_segments(question, around), Text(" ASSISTANT:")]
            segments += [] if answer is None else [Text(f" {text_of(answer)}", "answer")]
            segments += [] if is_open else [Control("</s>", "end")]
        return segments


class Mistral(BaseModel):
    r"""LLaVA's `mistral_instruct`: `[INST] question [/INST] answer </s>[INST] ...`; the marks are plain text.

    There is no system text of its own; a conversation's goes into its first question, as Llama 2's does. The space
    before the end mark is learned (LLaVA's code for this style).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["mistral"] = "mistral"
    after_picture: AfterPicture = "\n"
    labels: ClassVar[Labels] = "answer_only"

    @property
    def stop_tokens(self) -> tuple[str, ...]:
        """Control tokens that end an answer."""
        return ("</s>",)

    def segments(self, conversation: Conversation, *, open_for_generation: bool = False) -> list[Segment]:
        """Segments; open for generation, the last answer has no end mark, or none of its text yet."""
        return _instructions(conversation, "", [], open_for_generation=open_for_generation)


class Llama2(BaseModel):
    r"""LLaVA's `llava_llama_2`: `[INST] <<SYS>>\nsystem\n<</SYS>>\n\nquestion [/INST] answer </s><s>[INST] ...`.

    As Mistral's, with a system text of its own and a `<s>` before every question.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["llama_2"] = "llama_2"
    system: str = LLAMA_2_SYSTEM
    after_picture: AfterPicture = "\n"
    labels: ClassVar[Labels] = "answer_only"

    @property
    def stop_tokens(self) -> tuple[str, ...]:
        """Control tokens that end an answer."""
        return ("</s>",)

    def segments(self, conversation: Conversation, *, open_for_generation: bool = False) -> list[Segment]:
        """Segments; open for generation, the last answer has no end mark, or none of its text yet."""
        return _instructions(conversation, self.system, [Control("<s>")], open_for_generation=open_for_generation)


class Llama3(BaseModel):
    r"""Llama 3's: `<|start_header_id|>role<|end_header_id|>\n\ntext<|eot_id|>`; a conversation's system text wins.

    The published Jinja template trims every text; here a text is taken as it is written.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["llama_3"] = "llama_3"
    system: str | None = None
    after_picture: AfterPicture = "\n"
    labels: ClassVar[Labels] = "answer_only"

    @property
    def stop_tokens(self) -> tuple[str, ...]:
        """Control tokens that end an answer."""
        return ("<|eot_id|>",)

    def segments(self, conversation: Conversation, *, open_for_generation: bool = False) -> list[Segment]:
        """Segments; open for generation, the last answer has no end mark, or none of its text yet."""
        system, turns = ordered_turns(conversation, open_for_generation=open_for_generation)
        system = self.system if system is None else system
        segments: list[Segment] = [Opening()]
        segments += [] if system is None else [*self._header("system"), Text(system), Control("<|eot_id|>")]
        for question, answer, is_open in exchanges(turns, open_for_generation=open_for_generation):
            segments += [*self._header("user"), *part_segments(question), Control("<|eot_id|>")]
            segments += self._header("assistant")
            segments += [] if answer is None else [Text(text_of(answer), "answer")]
            segments += [] if is_open else [Control("<|eot_id|>", "end")]
        return segments

    @staticmethod
    def _header(role: str) -> list[Segment]:
        return [Control("<|start_header_id|>"), Text(role), Control("<|end_header_id|>"), Text("\n\n")]


class ChatML(BaseModel):
    r"""Qwen2 and SmolLM2: `<|im_start|>role\ntext<|im_end|>\n`; a conversation's own system text wins over `system`.

    - `around_picture` names two control tokens that enclose every picture and clip (Qwen2-VL's vision start and end)
    - `number_media` writes `Picture 1: ` or `Video 1: ` before each of them (`add_vision_id` of Qwen2-VL's template)
    - `after_mark` stands behind every `<|im_end|>`: nothing in LLaVA's `mpt` and `chatml_direct`
    - `labels`: what is learned (`opsin.text.labels`)
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["chatml"] = "chatml"
    system: str | None = None
    around_picture: tuple[str, str] | None = None
    number_media: bool = False
    after_mark: Literal["\n", ""] = "\n"
    after_picture: AfterPicture = "\n"
    labels: Labels = "answer_only"

    @property
    def stop_tokens(self) -> tuple[str, ...]:
        """Control tokens that end an answer."""
        return ("<|im_end|>",)

    def segments(self, conversation: Conversation, *, open_for_generation: bool = False) -> list[Segment]:
        """Segments; open for generation, the last answer has no end mark, or none of its text yet."""
        system, turns = ordered_turns(conversation, open_for_generation=open_for_generation)
        system = self.system if system is None else system
        around = (
            None if self.around_picture is None else (Control(self.around_picture[0]), Control(self.around_picture[1]))
        )
        numbers: Counter[str] | None = Counter() if self.number_media else None
        segments: list[Segment] = [Opening()]
        segments += [] if system is None else self._block("system", [Text(system)])
        for question, answer, is_open in exchanges(turns, open_for_generation=open_for_generation):
            segments += self._block("user", part_segments(question, around, numbers))
            segments += [Control("<|im_start|>", "header"), Text("assistant\n", "header")]
            segments += [] if answer is None else [Text(text_of(answer), "answer")]
            segments += [] if is_open else [Control("<|im_end|>", "end"), Text(self.after_mark, "after")]
        return segments

    def _block(self, role: str, content: list[Segment]) -> list[Segment]:
        opened: list[Segment] = [Control("<|im_start|>"), Text(f"{role}\n")]
        return [*opened, *content, Control("<|im_end|>"), Text(self.after_mark)]


def _instructions(
    conversation: Conversation, system: str, between: list[Segment], *, open_for_generation: bool
) -> list[Segment]:
    """The style of Llama 2 and Mistral; `between` stands before every question but the first."""
    own, turns = ordered_turns(conversation, open_for_generation=open_for_generation)
    told = system if own is None else own
    segments: list[Segment] = [Opening()]
    for question, answer, is_open in exchanges(turns, open_for_generation=open_for_generation):
        is_first = len(segments) == 1
        wrapped = f"<<SYS>>\n{told}\n<</SYS>>\n\n" if is_first and told else ""
        segments += [] if is_first else between
        segments += [Text(f"[INST] {wrapped}"), *part_segments(question), Text(" [/INST]")]
        segments += [] if answer is None else [Text(f" {text_of(answer)}", "answer")]
        segments += [] if is_open else [Text(" ", "answer"), Control("</s>", "end")]
    return segments


Template = Annotated[Plain | VicunaV1 | Mistral | Llama2 | Llama3 | ChatML | FromTokenizer, Field(discriminator="kind")]
"""The only list of templates in the project."""
