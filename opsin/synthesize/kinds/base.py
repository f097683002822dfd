"""What every kind of sample has: how many are made, what a teacher is told and asked, and how its answer is read."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from opsin.core.errors import OpsinError
from opsin.core.files import sha256_bytes
from opsin.core.paths import ExistingFolder
from opsin.synthesize.prompting import Prompt

if TYPE_CHECKING:
    from opsin.synthesize.context import Vocabulary
    from opsin.synthesize.request import Shown
    from opsin.synthesize.subject import Exchange, Subject, Task


class MalformedAnswerError(OpsinError):
    """An answer that cannot be read as what its kind asks for; the message also tells the teacher what is wrong."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What the checks hold a sample of a kind against."""

    exchanges: tuple[int, int]
    """Fewest and most."""
    words: tuple[int, int]
    """Fewest and most words of one answer (characters / 2 in languages without spaces)."""
    language: str = "en"
    grounded: bool = True
    """Whether the things it mentions must be in the contexts."""
    reasoned: bool = False
    """Whether its answers speak of more than the picture, so that only what they place into it is looked up."""
    free_of_positions: bool = True
    """Whether numbers that look like coordinates are refused."""


class KindBase(BaseModel, ABC):
    """An entry of the recipe's `kinds`. A subclass is one file: fields with defaults, the methods below, nothing else.

    Its prompt lies in `opsin/synthesize/prompts/<kind>/`: `system.txt`, and few-shot pairs `001_context.txt` and
    `001_answer.txt`; a recipe may name another folder of that form.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    by_rules_possible: ClassVar[bool] = True
    """Whether the offline teacher can make it."""
    needs_vision: ClassVar[bool] = False
    """Whether the teacher must see the pictures."""
    needs_teacher: ClassVar[bool] = True
    """Whether a teacher has anything to add; if not, `by_rules` makes it, whatever the recipe's teacher is."""

    kind: str
    share: float = Field(1.0, gt=0, le=1)
    """Of the pictures, chosen by the recipe's seed."""
    draws: int = Field(1, ge=1, le=100)
    """Samples of each chosen picture (or group of pictures)."""
    prompt: ExistingFolder | None = None
    max_tokens: int = Field(1024, ge=1, le=100_000)
    temperature: float = Field(0.7, ge=0, le=2)

    @property
    def name(self) -> str:
        """What its samples are called: in their ids (`PICTURE#NAME`), in statistics."""
        return self.kind

    @property
    def prompt_name(self) -> str:
        """Of the packaged prompt."""
        return self.kind

    @property
    def needs_instructions(self) -> bool:
        """Whether its questions are the prompt's instructions."""
        return False

    def load_prompt(self) -> Prompt:
        """The packaged prompt, or the recipe's own.

        Raises:
            OpsinError: it lacks what this kind needs, or cannot be read.
        """
        prompt = Prompt.load(self.prompt_name, self.prompt, self.expected.language)
        tag = "" if self.expected.language == "en" else f".{self.expected.language}"
        if self.needs_teacher and not prompt.system:
            raise OpsinError(f"{self.prompt}: no system.txt; {self.name} needs it to tell a teacher what to do")
        if self.needs_instructions and not prompt.instructions:
            raise OpsinError(f"{self.prompt}: no instructions{tag}.txt; {self.name} takes its questions from there")
        return prompt

    def instruction(self, task: Task) -> str:
        """One of the prompt's instructions, drawn by the task's seed."""
        return random.Random(task.seed).choice(self.load_prompt().instructions)

    def chosen(self, identity: str, seed: int) -> bool:
        """Whether a subject, or a group of them, belongs to the share that samples are made of."""
        drawn = sha256_bytes(f"{seed}/{self.name}/{identity}".encode("utf-8", "surrogatepass"))
        return int(drawn[:12], 16) < self.share * 16**12

    @property
    @abstractmethod
    def expected(self) -> Expected:
        """What the checks hold its samples against."""

    @abstractmethod
    def subjects(self, subjects: Sequence[Subject], seed: int) -> Iterator[Subject]:
        """The subjects that it makes samples of: those it can use of the recipe's, or groups of them."""

    @abstractmethod
    def query(self, task: Task) -> str:
        """The last message to the teacher, before it is delimited: the symbolic form of the subject."""

    def pictures(self, task: Task) -> tuple[Shown, ...]:
        """The pictures that go with the query; none for a teacher that only reads."""
        return ()

    @abstractmethod
    def parse(self, raw: str, task: Task) -> tuple[Exchange, ...]:
        """Read an answer.

        Raises:
            MalformedAnswerError: it is not of the form that the prompt asks for.
        """

    @abstractmethod
    def by_rules(self, task: Task, vocabulary: Vocabulary) -> tuple[Exchange, ...]:
        """The sample that the offline teacher makes: only what the context makes true; empty if it states nothing."""
