"""What several commands share: exit codes, options, and how a model's directory is named."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opsin.core.errors import OpsinError

if TYPE_CHECKING:
    from opsin.text.templates import Template

FAILED = 2
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]


class ChatTemplate(StrEnum):
    """How a model is spoken to, with the template's own system text."""

    VICUNA_V1 = "vicuna_v1"
    LLAMA_2 = "llama_2"
    LLAMA_3 = "llama_3"
    MISTRAL = "mistral"
    CHATML = "chatml"
    TOKENIZER = "tokenizer"


def existing(checkpoint: Path) -> None:
    """Say at once that a model's directory is not there, before the libraries are loaded that would look for it."""
    if not checkpoint.is_dir():
        what = "a file; give the directory that it is in" if checkpoint.exists() else "no such directory"
        raise OpsinError(f"{checkpoint}: {what}; expected a run, a checkpoint, or a model's directory")


def template_of(kind: ChatTemplate | None) -> Template | None:
    """The template of that name, or None to leave it to the model."""
    if kind is None:
        return None
    from pydantic import TypeAdapter

    from opsin.text.templates import Template

    value: Template = TypeAdapter(Template).validate_python({"kind": kind.value})
    return value
