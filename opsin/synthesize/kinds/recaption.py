"""Re-captioning (LLaVA-OneVision, 2408.03326, stage 1.5): a model that sees a picture describes it in detail."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from opsin.core.errors import OpsinError
from opsin.synthesize import symbolic
from opsin.synthesize.kinds.answers import parse_text
from opsin.synthesize.kinds.base import Expected
from opsin.synthesize.kinds.showing import shown
from opsin.synthesize.kinds.single import SingleKind
from opsin.synthesize.subject import Exchange

if TYPE_CHECKING:
    from opsin.synthesize.context import Context, Vocabulary
    from opsin.synthesize.request import Shown
    from opsin.synthesize.subject import Task


class Recaption(SingleKind):
    """A detailed description by a teacher that sees the picture; captions, if there are any, only help it."""

    kind: Literal["recaption"] = "recaption"
    by_rules_possible: ClassVar[bool] = False
    needs_vision: ClassVar[bool] = True

    picture_side: int = Field(1024, ge=64, le=4096)
    """Pixels of the longer side, at most."""

    @property
    def needs_instructions(self) -> bool:
        """The question is one of them."""
        return True

    @property
    def expected(self) -> Expected:
        """One text. It may speak of what no annotation knows, since the teacher sees it."""
        return Expected(exchanges=(1, 1), words=(10, 800), grounded=False)

    def usable(self, context: Context) -> bool:
        """Any picture."""
        del context
        return True

    def query(self, task: Task) -> str:
        """The captions, if there are any."""
        return symbolic.captions(task.subject.context) or "(nothing but the picture)"

    def pictures(self, task: Task) -> tuple[Shown, ...]:
        """The picture."""
        return tuple(shown(task.subject.root / image, self.picture_side) for image in task.subject.images)

    def parse(self, raw: str, task: Task) -> tuple[Exchange, ...]:
        """A bare text; the question is one of the instructions."""
        return (Exchange(self.instruction(task), parse_text(raw)),)

    def by_rules(self, task: Task, vocabulary: Vocabulary) -> tuple[Exchange, ...]:
        """Not possible: rules see no picture."""
        del vocabulary
        raise OpsinError(f"{task.id}: rules cannot describe a picture anew; take a teacher that sees")
