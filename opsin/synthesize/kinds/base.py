"""What every kind of sample has: how many are made, what a teacher is told and asked, and how its answer is read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from opsin.core.errors import OpsinError
from opsin.core.paths import ExistingFolder

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
