"""Detailed descriptions: one instruction, and a paragraph that a teacher writes from captions and boxes."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Literal

from opsin.synthesize import annotated, rules, symbolic
from opsin.synthesize.kinds.answers import parse_text
from opsin.synthesize.kinds.base import Expected
from opsin.synthesize.kinds.single import SingleKind
from opsin.synthesize.subject import Exchange

if TYPE_CHECKING:
    from opsin.synthesize.context import Vocabulary
    from opsin.synthesize.subject import Task


class Detail(SingleKind):
    """A detailed description of one picture."""

    kind: Literal["detail"] = "detail"

    @property
    def needs_instructions(self) -> bool:
        """The question is one of them."""
        return True

    @property
    def expected(self) -> Expected:
        """One text."""
        return Expected(exchanges=(1, 1), words=(20, 800))

    def query(self, task: Task) -> str:
        """Captions and boxes."""
        return symbolic.captions_and_boxes(task.subject.context)

    def parse(self, raw: str, task: Task) -> tuple[Exchange, ...]:
        """A bare text; the question is one of the instructions."""
        return (Exchange(self.instruction(task), parse_text(raw)),)

    def by_rules(self, task: Task, vocabulary: Vocabulary) -> tuple[Exchange, ...]:
        """What there is, how many of it, and where; things of one name are told together."""
        context, rng = task.subject.context, random.Random(task.seed)
        names = [thing.name for thing in context.things]
        if context.complete and len(names) == len(set(names)):
            return rules.detail(context, vocabulary, rng)
        text = annotated.description(context, rng)
        return (Exchange(self.instruction(task), text),) if text else ()
