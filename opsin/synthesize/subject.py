"""What samples are made of: pictures with what is known about them, and one thing to be made of one of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from opsin.core.files import sha256_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from opsin.synthesize.context import Context


@dataclass(frozen=True, slots=True)
class Subject:
    """A picture, several pictures, or the frames of a video, and what is known about each.

    `images` are paths as they will stand in the data, relative to `root`; `contexts` has one entry for each of them,
    or, for a `video`, one for each described frame (then `images` is empty and `times` has their seconds). `where` is
    the place in the annotations (`captions.json` or `file.jsonl:12`), for messages.
    """

    id: str
    images: tuple[str, ...]
    contexts: tuple[Context, ...]
    root: Path
    where: str
    video: str | None = None
    times: tuple[float, ...] = ()

    @property
    def context(self) -> Context:
        """Of a single picture."""
        if len(self.contexts) != 1:
            raise ValueError(f"{self.id}: {len(self.contexts)} contexts; a kind for single pictures asks for one")
        return self.contexts[0]


@dataclass(frozen=True, slots=True)
class Exchange:
    """A question and its answer."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Task:
    """One sample to be made: `kind` is the name of an entry of the recipe's kinds; `id` is that of the sample.

    `seed` makes every choice of the task (instruction, place of `<image>`, what the rules draw) a function of the
    recipe's seed and the id alone, whatever is made beside it.
    """

    id: str
    kind: str
    subject: Subject
    seed: str
    draw: int = 0
    """Which of the samples that the kind makes of this subject."""


def seed_of(seed: int, identity: str) -> str:
    """The seed of one task."""
    return sha256_bytes(f"{seed}/{identity}".encode())[:16]
