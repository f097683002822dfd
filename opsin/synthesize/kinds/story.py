"""Stories: several pictures in order, and a text that goes from one to the next."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from opsin.synthesize import symbolic
from opsin.synthesize.english import sentence
from opsin.synthesize.kinds.answers import parse_text
from opsin.synthesize.kinds.base import Expected
from opsin.synthesize.kinds.groups import GroupKind
from opsin.synthesize.subject import Exchange

if TYPE_CHECKING:
    from opsin.synthesize.context import Vocabulary
    from opsin.synthesize.subject import Task

FACTUAL_QUESTION = "Go through these pictures in order and say what each of them shows."


class Story(GroupKind):
    """A story that several pictures tell."""

    kind: Literal["story"] = "story"

    pictures_each: int = Field(4, ge=2, le=8)

    @property
    def size(self) -> int:
        """Pictures of one story."""
        return self.pictures_each

    @property
    def needs_instructions(self) -> bool:
        """The question is one of them."""
        return True

    @property
    def expected(self) -> Expected:
        """One text. It may invent what lies between the pictures."""
        return Expected(exchanges=(1, 1), words=(4, 1000), grounded=False)

    def query(self, task: Task) -> str:
        """The captions of all, in order."""
        return symbolic.several(task.subject)

    def parse(self, raw: str, task: Task) -> tuple[Exchange, ...]:
        """A bare text; the question is one of the instructions."""
        return (Exchange(self.instruction(task), parse_text(raw)),)

    def by_rules(self, task: Task, vocabulary: Vocabulary) -> tuple[Exchange, ...]:
        """No story, which would have to be invented: what the pictures show, one after the other."""
        del vocabulary
        rng = random.Random(task.seed)
        told = (
            f"Picture {number}: {sentence(rng.choice(context.captions))}"
            for number, context in enumerate(task.subject.contexts, start=1)
        )
        return (Exchange(FACTUAL_QUESTION, " ".join(told)),)
