"""Conversations: questions about what is in a picture, and complex ones, that a teacher makes of the captions alone."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Literal

from opsin.synthesize import annotated, rules, symbolic
from opsin.synthesize.kinds.answers import parse_blocks
from opsin.synthesize.kinds.base import Expected
from opsin.synthesize.kinds.single import SingleKind

if TYPE_CHECKING:
    from opsin.synthesize.context import Vocabulary
    from opsin.synthesize.subject import Exchange, Task


class Conversation(SingleKind):
    """Several questions and answers about one picture."""

    kind: Literal["conversation"] = "conversation"

    @property
    def expected(self) -> Expected:
        """Several exchanges; answers may be one word."""
        return Expected(exchanges=(1, 16), words=(1, 300))

    def query(self, task: Task) -> str:
        """The captions, without boxes, as in the paper; the things where there are no captions."""
        context = task.subject.context
        return symbolic.captions(context) or symbolic.captions_and_boxes(context)

    def parse(self, raw: str, task: Task) -> tuple[Exchange, ...]:
        """Blocks of questions and answers."""
        del task
        return parse_blocks(raw)

    def by_rules(self, task: Task, vocabulary: Vocabulary) -> tuple[Exchange, ...]:
        """What is there, how many, where."""
        context = task.subject.context
        converse = rules.conversation if context.complete else annotated.conversation
        return converse(context, vocabulary, random.Random(task.seed))
