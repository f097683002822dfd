"""Brief descriptions: the captions as they are, each the answer to a brief instruction (LLaVA's first stage)."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, ClassVar, Literal

from opsin.synthesize import symbolic
from opsin.synthesize.english import sentence
from opsin.synthesize.kinds.answers import parse_text
from opsin.synthesize.kinds.base import Expected
from opsin.synthesize.kinds.single import SingleKind
from opsin.synthesize.subject import Exchange

if TYPE_CHECKING:
    from opsin.synthesize.context import Context, Vocabulary
    from opsin.synthesize.subject import Task


class Brief(SingleKind):
    """One of the captions with an instruction; no teacher is asked, since there is nothing to add."""

    kind: Literal["brief"] = "brief"
    needs_teacher: ClassVar[bool] = False

    @property
    def needs_instructions(self) -> bool:
        """The question is one of them."""
        return True

    @property
    def expected(self) -> Expected:
        """One caption."""
        return Expected(exchanges=(1, 1), words=(1, 400))

    def usable(self, context: Context) -> bool:
        """Whether it has a caption."""
        return bool(context.captions)

    def query(self, task: Task) -> str:
        """The captions."""
        return symbolic.captions(task.subject.context)

    def parse(self, raw: str, task: Task) -> tuple[Exchange, ...]:
        """A bare text."""
        return (Exchange(self.instruction(task), parse_text(raw)),)

    def by_rules(self, task: Task, vocabulary: Vocabulary) -> tuple[Exchange, ...]:
        """Another caption in every draw, as long as there are some."""
        del vocabulary
        captions = list(dict.fromkeys(task.subject.context.captions))
        random.Random(task.subject.id).shuffle(captions)
        return (Exchange(self.instruction(task), sentence(captions[task.draw % len(captions)])),)
