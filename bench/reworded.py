"""The quick start's held-out questions in words that the rule-based teacher never uses.

An answer to a question that was learned by heart, word for word, may be a reflex; an answer to the same question in
other words is not. Captions keep their words: the captions that every model here is taught have them too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from opsin.synthesize.rules import GROUP_QUESTION, TOTAL_QUESTION, group_check, group_count

Record = dict[str, Any]

REWORDINGS: dict[str, Mapping[str, str]] = {
    "reworded": {
        GROUP_QUESTION: "What category is this?",
        TOTAL_QUESTION: "What is the number of objects?",
        group_check("{}"): "Does this fall into the category {}?",
        group_count("{}"): "What is the number of {}?",
    },
    "reworded again": {
        GROUP_QUESTION: "Under what heading would you file this?",
        TOTAL_QUESTION: "Count the objects. What do you get?",
        group_check("{}"): "Would you file this under {}?",
        group_count("{}"): "Count the {}. What do you get?",
    },
}
"""Two wordings, since one alone may be lucky. The more special template stands before the one that it also fits."""


def reworded(questions: Sequence[Record], wordings: Mapping[str, str]) -> list[Record]:
    """The questions but for captions, in other words; pictures, answers and ids stay.

    Raises:
        ValueError: a question fits no template.
    """
    return [
        question | {"question": _in_other_words(question, wordings)}
        for question in questions
        if question["task"] != "caption"
    ]


def refuse_taught(wordings: Mapping[str, str], taught: Iterable[str]) -> None:
    """Make sure that no question of these wordings is among those that are taught.

    Raises:
        ValueError: one is.
    """
    for question in taught:
        for wording in wordings.values():
            if _fits(wording, question):
                raise ValueError(f"{question!r} is taught, so {wording!r} is no rewording: choose other words")


def _in_other_words(question: Record, wordings: Mapping[str, str]) -> str:
    for template, wording in wordings.items():
        found = _fits(template, question["question"])
        if found:
            return wording.format(*found.groups())
    raise ValueError(f"{question['id']}: no rewording fits {question['question']!r}; add one to REWORDINGS")


def _fits(template: str, question: str) -> re.Match[str] | None:
    """Whether a question is of a template, with what stands in the template's `{}`."""
    return re.fullmatch(re.escape(template).replace(r"\{\}", "(.+)"), question, re.IGNORECASE)
