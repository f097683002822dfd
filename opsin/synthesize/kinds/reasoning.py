"""Complex reasoning: a question whose answer must be thought out, made of captions and boxes."""

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


class Reasoning(SingleKind):
    """One question that needs several facts, with the reasons in its answer."""

    kind: Literal["reasoning"] = "reasoning"

    @property
    def expected(self) -> Expected:
        """One exchange; teachers sometimes make a second one of two thoughts."""
        return Expected(exchanges=(1, 2), words=(4, 600), reasoned=True)

    def query(self, task: Task) -> str:
        """Captions and boxes."""
        return symbolic.captions_and_boxes(task.subject.context)

    def parse(self, raw: str, task: Task) -> tuple[Exchange, ...]:
        """Blocks of questions and answers."""
        del task
        return parse_blocks(raw)

    def by_rules(self, task: Task, vocabulary: Vocabulary) -> tuple[Exchange, ...]:
        """Comparisons, what is outermost, what belongs together."""
        context = task.subject.context
        reason = rules.reasoning if context.complete else annotated.reasoning
        return reason(context, vocabulary, random.Random(task.seed))
