"""Kinds of samples, each a file. `Kind` is the only list of them in the project."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from opsin.synthesize.kinds.brief import Brief
from opsin.synthesize.kinds.conversation import Conversation
from opsin.synthesize.kinds.detail import Detail
from opsin.synthesize.kinds.differences import Differences
from opsin.synthesize.kinds.document import Document
from opsin.synthesize.kinds.multilingual import Multilingual
from opsin.synthesize.kinds.reasoning import Reasoning
from opsin.synthesize.kinds.recaption import Recaption
from opsin.synthesize.kinds.story import Story
from opsin.synthesize.kinds.video import Video

Kind = Annotated[
    Conversation | Detail | Reasoning | Brief | Recaption | Document | Multilingual | Differences | Story | Video,
    Field(discriminator="kind"),
]
