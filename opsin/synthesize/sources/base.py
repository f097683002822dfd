"""What every source of pictures has: it reads annotations, and says which of them it cannot use."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from opsin.synthesize.context import Group, Thing, Vocabulary
from opsin.synthesize.english import bare
from opsin.synthesize.symbolic import MOST_CHARACTERS, everything

if TYPE_CHECKING:
    from opsin.synthesize.context import Box
    from opsin.synthesize.subject import Subject

MOST_NAME = 80
"""Characters of what a thing or a category is called."""
LEAST_SIDE = 1e-4
"""Of a box, as a share of the picture: less is no area."""

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True)
class Collected:
    """What a source found. `images` of the subjects are relative to `root`; `problems` name what cannot be used."""

    root: Path
    subjects: tuple[Subject, ...]
    vocabulary: Vocabulary
    problems: tuple[str, ...]


class SourceBase(BaseModel, ABC):
    """An entry of the recipe's `pictures`. A subclass is one file: fields with defaults and `read`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    id_prefix: str = Field(
        "", max_length=100, pattern=r"^[\w./:-]*$", description="before all ids: two sources may have the same names"
    )

    @property
    @abstractmethod
    def told(self) -> str:
        """What is being read, for progress."""

    @abstractmethod
    def read(self, out: Path) -> Collected:
        """Read everything. Pictures that are made of texts are drawn into `out`.

        Raises:
            DataError: a file cannot be read at all, or is of another form.
        """


class Naming(BaseModel):
    """How a category, or a group of categories, is spoken of: nouns that all of its things can truthfully be called.

    `close` names other groups whose things may be called so too: of an Easter bunny among `seasonal` things it must not
    be said that it is no animal.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    one: str | None = None
    many: str | None = None
    close: tuple[str, ...] = ()


NAMINGS = {
    "person": Naming(one="a person", many="people"),
    "animal": Naming(one="an animal", many="animals"),
    "vehicle": Naming(one="a vehicle", many="vehicles"),
}
"""Of COCO's supercategories, those whose noun is true of every member (a potted plant is no piece of furniture)."""
MEMBERS = {
    "person": frozenset(("person",)),
    "animal": frozenset(["bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe"]),
    "vehicle": frozenset(["bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"]),
}
"""Their members. Other collections have groups of the same name: a license plate is no vehicle."""


def vocabulary_of(things: Iterable[Thing], namings: dict[str, Naming]) -> Vocabulary:
    """Groups and catalogue from things, each of them once."""
    catalogue = {(thing.name, thing.category): Thing(thing.name, thing.category) for thing in things if thing.name}
    labels = dict.fromkeys(thing.group for thing in catalogue.values())
    members: dict[str, set[str]] = {}
    for thing in catalogue.values():
        members.setdefault(thing.group, set()).add(bare(thing.name))
    known = {
        label: naming for label, naming in NAMINGS.items() if members.get(label, set()) <= MEMBERS[label]
    } | namings
    groups = tuple(
        Group(label, known[label].one, known[label].many) if label in known else Group(label) for label in labels
    )
    close = frozenset(frozenset((label, other)) for label in labels if label in known for other in known[label].close)
    return Vocabulary(groups, tuple(catalogue.values()), close)


def caption_of(text: object) -> str | None:
    """A caption on one line; None if it is none."""
    if not isinstance(text, str) or _CONTROL.search(text):
        return None
    return " ".join(text.split()) or None


def name_of(text: object) -> str | None:
    """What a thing is called; None if it cannot be called so."""
    name = caption_of(text)
    return name if name is not None and len(name) <= MOST_NAME else None


def identity_of(path: str) -> str:
    """What a picture is called: its path without the ending, as in LLaVA's data (`000000033471`)."""
    return str(PurePosixPath(path).with_suffix("")) if PurePosixPath(path).name else path


def is_clean(text: str) -> bool:
    """Whether a text has no control characters (tabs and new lines are none)."""
    return _CONTROL.search(text) is None


def box_of(corners: Sequence[float]) -> Box | None:
    """x1, y1, x2, y2 as shares of the picture, clipped to it; None if nothing of the box is inside."""
    x1, y1, x2, y2 = (min(max(float(value), 0.0), 1.0) for value in corners)
    return (x1, y1, x2, y2) if x2 - x1 >= LEAST_SIDE and y2 - y1 >= LEAST_SIDE else None


def without_too_long(subjects: Iterable[Subject], problems: list[str]) -> tuple[Subject, ...]:
    """Subjects of which no more is known than a teacher can be told; the others are problems."""
    kept = []
    for subject in subjects:
        length = len(everything(subject))
        if length > MOST_CHARACTERS:
            problems.append(
                f"{subject.where}: {subject.id}: {length:,} characters of annotations; the limit is {MOST_CHARACTERS:,}"
            )
        else:
            kept.append(subject)
    return tuple(kept)


def gathered(root: Path, subjects: Iterable[Subject], namings: dict[str, Naming], problems: list[str]) -> Collected:
    """What a source found whose vocabulary is that of its pictures' own things."""
    kept = without_too_long(subjects, problems)
    things = (thing for subject in kept for context in subject.contexts for thing in context.things)
    return Collected(root, kept, vocabulary_of(things, namings), tuple(problems))
