"""What a recipe says about the checks: how often an answer is asked for again, and what is refused."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from opsin.core.paths import ExistingFile


class Checks(BaseModel):
    """Of every answer. What a single kind allows (exchanges, words, language) is that kind's own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    repairs: int = Field(default=1, ge=0, le=5)
    """How often the teacher is told what is wrong with an answer, and asked again."""
    hallucination: Literal["refuse", "report", "off"] = "refuse"
    """What becomes of an answer that mentions things that are not in the picture, or more of them than there are."""
    synonyms: ExistingFile | None = None
    """The words for things, in the form of the built-in `opsin/synthesize/checks/synonyms.txt`, instead of it."""
    near_duplicate: float | None = Field(default=0.9, ge=0.5, le=1)
    """Jaccard similarity of word triples from which the later one of two samples is refused; nothing: none is."""
    stop_when_refused: float | None = Field(default=0.9, gt=0, le=1)
    """Share of refused samples from which on no more of a kind are asked for, 50 at the least; nothing: never."""
