"""How answers are written and read: blocks of questions and answers, or a bare text."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from opsin.synthesize.kinds.base import MalformedAnswerError
from opsin.synthesize.subject import Exchange

if TYPE_CHECKING:
    from collections.abc import Sequence

_SEPARATOR = re.compile(r"^[ \t]*={3,}[ \t]*$", re.MULTILINE)
_LABEL = re.compile(
    r"^[ \t#>]*(?:\*\*|__)?(question|answer)(?: \d+)?(?:(?:\*\*|__)[:：]|[:：](?:\*\*|__)?)", re.I | re.M
)
_FENCE = re.compile(r"```[\w-]*\n(.*)\n```", re.DOTALL)
FORM = (
    "write `Question:`, the question, `===`, `Answer:`, the answer, `===`, each on lines of its own, and nothing else"
)


def format_blocks(exchanges: Sequence[Exchange]) -> str:
    """Questions and answers in the form that prompts ask for."""
    return "".join(f"Question:\n{one.question}\n===\nAnswer:\n{one.answer}\n===\n" for one in exchanges)


def parse_blocks(raw: str) -> tuple[Exchange, ...]:
    r"""Read what `format_blocks` writes, with the habits of models that cannot be misunderstood.

    These are: a code fence around the whole, bold or numbered labels, text on the line of its label, `\r\n`, and no
    `===` at the end. Everything else (text before the first question, a block too many or without its partner, a
    label inside of a block) could pair a question with another one's answer. LLaVA's own script drops such blocks;
    here the whole answer is refused, so that the teacher is told and asked again.

    Raises:
        MalformedAnswerError: with the block that is wrong.
    """
    blocks = [block.strip() for block in _SEPARATOR.split(_unwrapped(raw))]
    if blocks[-1] == "":
        blocks.pop()
    if not blocks:
        raise MalformedAnswerError(f"the answer is empty; {FORM}")
    said = [_content(block, index) for index, block in enumerate(blocks)]
    if len(said) % 2:
        raise MalformedAnswerError(f"the last question has no answer ({_shown(said[-1])}); {FORM}")
    return tuple(Exchange(question, answer) for question, answer in zip(said[::2], said[1::2], strict=True))


def parse_text(raw: str) -> str:
    """Read a bare text: a description, a story.

    Raises:
        MalformedAnswerError: it is empty, or has the labels of questions and answers.
    """
    text = _unwrapped(raw)
    if not text:
        raise MalformedAnswerError("the answer is empty; write the text")
    if _SEPARATOR.search(text) or _LABEL.search(text):
        raise MalformedAnswerError(
            "the answer has blocks of questions and answers; write the text alone, without labels"
        )
    return text


def _unwrapped(raw: str) -> str:
    text = raw.replace("\r\n", "\n").strip()
    fenced = _FENCE.fullmatch(text)
    return fenced[1].strip() if fenced and "\n```" not in fenced[1] else text


def _content(block: str, index: int) -> str:
    """A block without its label."""
    wanted = ("Question", "Answer")[index % 2]
    label = _LABEL.match(block)
    if label is None:
        raise MalformedAnswerError(f"block {index + 1} does not begin with `{wanted}:` ({_shown(block)}); {FORM}")
    if label[1].capitalize() != wanted:
        raise MalformedAnswerError(f"block {index + 1} is labelled `{label[1]}:`, where `{wanted}:` must stand; {FORM}")
    content = block[label.end() :].strip()
    if not content:
        raise MalformedAnswerError(f"block {index + 1} (`{wanted}:`) is empty; {FORM}")
    if second := _LABEL.search(content):
        raise MalformedAnswerError(f"block {index + 1} has a second label, `{second[0].strip()}`; {FORM}")
    return content


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
