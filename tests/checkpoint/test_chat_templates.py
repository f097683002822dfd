"""The Jinja text of templates that no small checkpoint in these tests has a tokenizer for."""

from __future__ import annotations

import pytest

from opsin.checkpoint.chat_templates import jinja
from opsin.core.types import Conversation, Turn
from opsin.text.sandbox import render_all
from opsin.text.templates import Control, Llama2, Llama3, Template, Text


@pytest.mark.parametrize("template", [Llama3(), Llama3(system="S"), Llama2(system="S")])
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_the_written_text_renders_what_the_template_does(template: Template, system: str | None) -> None:
    turns = [Turn("user", ("Q1",)), Turn("assistant", ("A1",)), Turn("user", (" Q2\n",))]
    turns = turns if system is None else [Turn("system", (system,)), *turns]
    segments = template.segments(Conversation("s1", tuple(turns)), open_for_generation=True)  # type: ignore[union-attr]
    ours = [s.text if isinstance(s, Text) else s.token for s in segments if isinstance(s, Text | Control)]
    messages = [{"role": turn.role, "content": turn.parts[0]} for turn in turns]
    theirs = render_all(jinja(template, "llava"), {}, [{"messages": messages, "add_generation_prompt": True}])
    assert theirs == ["".join(ours)]
