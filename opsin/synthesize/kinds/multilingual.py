"""Conversations and descriptions in other languages, from English captions (OneVision's stage 1.5 has Chinese)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from opsin.core.errors import OpsinError
from opsin.synthesize import symbolic
from opsin.synthesize.kinds.base import Expected
from opsin.synthesize.kinds.forms import TwoForms
from opsin.synthesize.kinds.single import SingleKind
from opsin.synthesize.subject import Exchange

if TYPE_CHECKING:
    from opsin.synthesize.context import Vocabulary
    from opsin.synthesize.subject import Task


class Multilingual(TwoForms, SingleKind):
    """A conversation about one picture, or a detailed description of it, in another language."""

    kind: Literal["multilingual"] = "multilingual"
    by_rules_possible: ClassVar[bool] = False

    language: Literal["zh", "fr", "de", "es", "ja"]

    @property
    def name(self) -> str:
        """With its language: a recipe may have several."""
        return f"{self.kind}-{self.language}" + ("-detail" if self.form == "detail" else "")

    @property
    def expected(self) -> Expected:
        """As in English, but things are not looked up: their names are English in the context."""
        if self.form == "detail":
            return Expected(exchanges=(1, 1), words=(10, 1000), language=self.language, grounded=False)
        return Expected(exchanges=(1, 16), words=(1, 400), language=self.language, grounded=False)

    def query(self, task: Task) -> str:
        """The captions; for a description the boxes too."""
        context = task.subject.context
        captions = symbolic.captions(context) if self.form == "conversation" else ""
        return captions or symbolic.captions_and_boxes(context)

    def by_rules(self, task: Task, vocabulary: Vocabulary) -> tuple[Exchange, ...]:
        """Not possible: the rules know English alone."""
        del vocabulary
        raise OpsinError(f"{task.id}: the rules speak English only; take the teacher `openai` for {self.language}")
