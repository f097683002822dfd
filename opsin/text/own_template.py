"""A tokenizer's own chat template, taken apart into the words between the texts of a conversation.

The Jinja text never sees what users and assistants say. It is run, in a sandbox, on marks that nobody can guess, and
what it writes is cut at the marks: the words between them are the template's, in which control tokens are recognised;
the texts of the conversation are put in afterwards as plain text. The words depend on the structure alone (system text
or not, number of exchanges), so each structure is run once.

A template is refused unless it writes every text once, in order and unchanged, always writes the same words between
them, asks with a prompt that begins what it trains on, and ends answers with a control token.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from pydantic import BaseModel, ConfigDict

from opsin.core.errors import RenderError
from opsin.text.labels import Labels
from opsin.text.sandbox import SandboxError, render_all
from opsin.text.segments import (
    AfterPicture,
    Control,
    Segment,
    SegmentPart,
    Text,
    exchanges,
    ordered_turns,
    part_segments,
    sample_name,
    text_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opsin.core.types import Conversation
    from opsin.text.templates import Template
    from opsin.text.tokenizer import Tokenizer

ADVICE = "use one of opsin's templates, such as chatml or llama_3"
EDGES = (("\n\n \t", "\t \n\n"), ("  ", "   "))
"""What stands around the marks of the first and of the second run: whoever trims a text changes one of them."""
PROBED_EXCHANGES = 3


class Spoken(Protocol):
    """What rendering needs of a template."""

    @property
    def labels(self) -> Labels:
        """The label policy."""

    @property
    def stop_tokens(self) -> tuple[str, ...]:
        """Control tokens that end an answer."""

    def segments(self, conversation: Conversation, *, open_for_generation: bool = False) -> list[Segment]:
        """Segments; open for generation, the last answer has no end mark, or none of its text yet."""


class FromTokenizer(BaseModel):
    """The tokenizer's own template: `chat_template.jinja`, or `chat_template` of its `tokenizer_config.json`.

    A picture stands where it is in its turn's text; `around_picture` names two control tokens that enclose it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["tokenizer"] = "tokenizer"
    around_picture: tuple[str, str] | None = None
    after_picture: AfterPicture = "\n"


def spoken(template: Template, tokenizer: Tokenizer) -> Spoken:
    """The template as this tokenizer speaks it: itself, or the tokenizer's own.

    Raises:
        RenderError: the tokenizer has no template, or opsin refuses it; the message says why.
    """
    if not isinstance(template, FromTokenizer):
        return template
    if tokenizer.chat_template is None:
        raise RenderError(f"template 'tokenizer' needs a tokenizer with a chat template, this one has none; {ADVICE}")
    return _checked(
        tokenizer.chat_template,
        tuple(tokenizer.named_tokens.items()),
        tuple(tokenizer.control_names),
        template.around_picture,
    )


@lru_cache(maxsize=16)
def _checked(
    source: str, named: tuple[tuple[str, str], ...], controls: tuple[str, ...], around: tuple[str, str] | None
) -> OwnTemplate:
    """The template, after a look at its first exchanges."""
    longest_first = sorted(controls, key=len, reverse=True)
    template = OwnTemplate(source, dict(named), re.compile("|".join(map(re.escape, longest_first)) or "(?!)"), around)
    for number in range(1, PROBED_EXCHANGES + 1):
        template.words(number, has_system=False)
    return template


@dataclass(frozen=True, slots=True)
class Words:
    """The words of one structure: before each turn and behind the last; `asking[i]` is how answer `i` is asked for."""

    between: tuple[str, ...]
    asking: tuple[str, ...]


@dataclass(frozen=True)
class OwnTemplate:
    """A tokenizer's template in use; made by `spoken`."""

    source: str
    named: dict[str, str]
    controls: re.Pattern[str]
    around: tuple[str, str] | None
    labels: ClassVar[Labels] = "answer_only"
    _known: dict[tuple[int, bool], Words | RenderError] = field(default_factory=dict, repr=False)

    @property
    def stop_tokens(self) -> tuple[str, ...]:
        """Control tokens that end an answer."""
        behind_answer = self.words(1, has_system=False).between[-1]
        return tuple(s.token for s in self._ended(behind_answer) if isinstance(s, Control) and s.part == "end")

    def segments(self, conversation: Conversation, *, open_for_generation: bool = False) -> list[Segment]:
        """Segments; open for generation, the last answer has no end mark, or none of its text yet."""
        system, turns = ordered_turns(conversation, open_for_generation=open_for_generation)
        try:
            words = self.words((len(turns) + 1) // 2, has_system=system is not None)
        except RenderError as error:
            raise RenderError(f"{sample_name(conversation)}: {error}") from error
        between = iter(words.between)
        segments: list[Segment] = []
        if system is not None:
            segments += [*self._marked(next(between)), Text(system)]
        segments += self._marked(next(between))
        around = None if self.around is None else (Control(self.around[0]), Control(self.around[1]))
        talk = exchanges(turns, open_for_generation=open_for_generation)
        for (question, answer, is_open), asking in zip(talk, words.asking, strict=True):
            segments += [*part_segments(question, around), *self._marked(asking)]
            begun = next(between).removeprefix(asking)
            if answer is not None:
                segments += [*self._marked(begun, "answer"), Text(text_of(answer), "answer")]
            segments += [] if is_open else self._ended(next(between))
        return segments

    def words(self, number: int, *, has_system: bool) -> Words:
        """The words around `number` exchanges.

        Raises:
            RenderError: the template fails or is refused.
        """
        key = (number, has_system)
        if key not in self._known:
            try:
                self._known[key] = self._words(["system"] * has_system + ["user", "assistant"] * number)
            except RenderError as error:
                self._known[key] = error
        known = self._known[key]
        if isinstance(known, RenderError):
            raise RenderError(str(known))
        return known

    def _words(self, roles: list[str]) -> Words:
        first, second = self._runs(roles)
        if first != second:
            raise _refusal("what it writes depends on what the texts say, or it trims them")
        *prompts, whole = first
        for number, (*before, asking) in enumerate(prompts, start=1):
            trained = whole[len(before)]
            if whole[: len(before)] != before or not trained.startswith(asking):
                raise _refusal(
                    f"it asks for answer {number} with {asking!r} and trains on {trained!r}; "
                    "a model would be asked otherwise than it was taught"
                )
        for index, role in enumerate(roles, start=1):
            if role == "assistant":
                self._ended(whole[index])
        return Words(tuple(whole), tuple(prompt[-1] for prompt in prompts))

    def _runs(self, roles: list[str]) -> list[list[list[str]]]:
        """For each of two kinds of marks: the words of every prompt on the way to the last answer, then all words."""
        lengths = [*(index for index, role in enumerate(roles) if role == "assistant"), len(roles)]
        requests: list[dict[str, Any]] = []
        marks: list[list[str]] = []
        for left, right in EDGES:
            chosen = [f"{left}aZ{secrets.token_hex(8 + 4 * len(left))}{right}" for _ in roles]
            messages = [{"role": role, "content": mark} for role, mark in zip(roles, chosen, strict=True)]
            for length in lengths:
                requests.append({"messages": messages[:length], "add_generation_prompt": length < len(roles)})
                marks.append(chosen[:length])
        try:
            texts = render_all(self.source, self.named, requests)
        except SandboxError as error:
            raise _refusal(f"on turns of {', '.join(roles)}: {error}") from error
        words = [_cut(text, chosen, roles) for text, chosen in zip(texts, marks, strict=True)]
        return [words[: len(lengths)], words[len(lengths) :]]

    def _ended(self, words: str) -> list[Segment]:
        """The words behind an answer; the first control token ends it, spaces before that are still its own."""
        mark = self.controls.search(words)
        if mark is None or words[: mark.start()].strip():
            raise _refusal(f"behind an answer it writes {words!r}, which does not begin with a control token")
        spaces, end = words[: mark.start()], Control(mark.group(), "end")
        return [Text(spaces, "answer"), end, *self._marked(words[mark.end() :])]

    def _marked(self, words: str, part: SegmentPart = "context") -> list[Segment]:
        """The template's words with the control tokens in them."""
        segments: list[Segment] = []
        at = 0
        for mark in self.controls.finditer(words):
            segments += [Text(words[at : mark.start()], part), Control(mark.group(), part)]
            at = mark.end()
        return [*segments, Text(words[at:], part)]


def _cut(text: str, marks: Sequence[str], roles: Sequence[str]) -> list[str]:
    """The words before, between and behind the marks."""
    words = []
    for number, (mark, role) in enumerate(zip(marks, roles, strict=False), start=1):
        count = text.count(mark.strip())
        before, found, text = text.partition(mark)
        if count != 1 or not found:
            what = (
                "changes its spaces"
                if count == 1
                else "leaves it out, changes it or moves it"
                if not count
                else f"writes it {count} times"
            )
            raise _refusal(f"turn {number}, from the {role}, must be written once, in order and unchanged; it {what}")
        words.append(before)
    return [*words, text]


def _refusal(reason: str) -> RenderError:
    return RenderError(f"the tokenizer's chat template cannot be used: {reason}; {ADVICE}")
