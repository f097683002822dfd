"""What is known about a picture without looking at it: captions and things, and the vocabulary to talk about them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import random

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2, each 0..1 of the picture's width or height; y grows downwards."""


@dataclass(frozen=True, slots=True)
class Thing:
    """One thing in a picture.

    `name` is a noun phrase with its article (`"a violin"`), or empty if nobody named it; `category` is a path
    (`("hobbies", "music")`). A `crowd` is an area of many things that nobody counted (COCO's `iscrowd`).
    """

    name: str
    category: tuple[str, ...]
    box: Box | None = None
    crowd: bool = False

    @property
    def group(self) -> str:
        """The outermost category."""
        return self.category[0]


UNCERTAIN = 10
"""Annotators of COCO box at most about so many things of a sort and mark the rest as a crowd, or overlook them."""

Exhaustive = Literal["everything", "categories", "nothing"]
"""What the things of a picture are: all that is in it; all of every category that the collection knows (COCO); or only
some. It decides what may be counted, and what may be called absent."""


@dataclass(frozen=True, slots=True)
class Context:
    """The symbolic form of one picture. `text` is what is written in it (documents), `table` its cells if it is one.

    The first row of a table is its header, the first column names its rows.
    """

    captions: tuple[str, ...]
    things: tuple[Thing, ...]
    exhaustive: Exhaustive = "everything"
    text: str = ""
    title: str = ""
    table: tuple[tuple[str, ...], ...] = ()

    @property
    def complete(self) -> bool:
        """Whether everything in the picture is annotated, thing by thing."""
        return self.exhaustive == "everything" and bool(self.things) and not any(thing.crowd for thing in self.things)

    def counts(self) -> Counter[str]:
        """Number of things per group."""
        return Counter(thing.group for thing in self.things)


@dataclass(frozen=True, slots=True)
class Group:
    """A group of things. `one` and `many` are set only if every member can truthfully be called so."""

    label: str
    one: str | None = None
    many: str | None = None

    def counted(self, count: int) -> str:
        """`"1 animal"`, `"3 animals"`. Only for groups with nouns."""
        if self.one is None or self.many is None:
            raise ValueError(f"the group {self.label!r} has no noun to count with: give it `one` and `many`")
        return f"1 {self.one.split(' ', 1)[1]}" if count == 1 else f"{count} {self.many}"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The groups of a collection, its things (to ask about what is absent), and the pairs of groups that overlap.

    A bunny filed under `seasonal` is an animal all the same; so `close` names the pairs of groups of which one must not
    be denied because the other one is true.
    """

    groups: tuple[Group, ...]
    catalogue: tuple[Thing, ...] = ()
    close: frozenset[frozenset[str]] = frozenset()

    def group(self, label: str) -> Group:
        """The group of that label; a label that is not listed is a group without nouns."""
        return next((group for group in self.groups if group.label == label), Group(label))

    def may_deny(self, label: str, present: str) -> bool:
        """Whether a thing of the group `present` is certainly not in the group `label`."""
        return label != present and frozenset((label, present)) not in self.close

    def absent(self, context: Context) -> tuple[Thing, ...]:
        """Things of the catalogue that are certainly not in the picture, nor anything else of their group."""
        present = {thing.group for thing in context.things}
        return tuple(thing for thing in self.catalogue if all(self.may_deny(thing.group, group) for group in present))

    def draw_absent(self, context: Context, rng: random.Random) -> Thing | None:
        """One of `absent`; drawing things, not groups, asks about a group as often in vain as it is seen."""
        candidates = self.absent(context)
        return rng.choice(candidates) if candidates else None
