"""What kinds have in common that are made in two forms: a conversation, or one description."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from opsin.synthesize.kinds.answers import parse_blocks, parse_text
from opsin.synthesize.kinds.base import KindBase
from opsin.synthesize.subject import Exchange

if TYPE_CHECKING:
    from opsin.synthesize.subject import Task


class TwoForms(KindBase):
    """A kind with a prompt for each form; the question of a description is one of the prompt's instructions."""

    form: Literal["conversation", "detail"] = "conversation"

    @property
    def prompt_name(self) -> str:
        """One for each form."""
        return f"{self.kind}-{self.form}"

    @property
    def needs_instructions(self) -> bool:
        """For descriptions."""
        return self.form == "detail"

    def parse(self, raw: str, task: Task) -> tuple[Exchange, ...]:
        """Blocks, or a bare text."""
        if self.form == "conversation":
            return parse_blocks(raw)
        return (Exchange(self.instruction(task), parse_text(raw)),)
