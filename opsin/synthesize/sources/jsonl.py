"""A simple format of our own: one JSON object a line for each picture."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, FiniteFloat, field_validator, model_validator

from opsin.core.paths import ExistingFile, ExistingFolder
from opsin.data.media_paths import MediaRoot
from opsin.synthesize.context import Context, Exhaustive, Thing
from opsin.synthesize.english import bare, noun_phrase
from opsin.synthesize.sources.base import (
    Collected,
    Naming,
    SourceBase,
    box_of,
    caption_of,
    gathered,
    identity_of,
    is_clean,
    name_of,
)
from opsin.synthesize.sources.lines import LineBase, read_lines
from opsin.synthesize.subject import Subject


class Described(LineBase):
    """A thing: what it is called, where it is, and the group that it belongs to."""

    name: str
    box: list[FiniteFloat] | None = None
    category: str | list[str] | None = None

    @field_validator("box")
    @classmethod
    def _corners(cls, box: list[float] | None) -> list[float] | None:
        return _so_many(box, "[x1, y1, x2, y2]")


class AnnotatedLine(LineBase):
    """What is known of a picture or a frame."""

    captions: list[str] = Field([], max_length=100)
    objects: list[Described] = Field([], max_length=1000)
    size: list[FiniteFloat] | None = None
    """Width and height in pixels, if boxes are in pixels; without it they are shares of the picture."""

    @field_validator("size")
    @classmethod
    def _sides(cls, size: list[float] | None) -> list[float] | None:
        return _so_many(size, "[width, height]")

    @model_validator(mode="after")
    def _boxes(self) -> AnnotatedLine:
        if self.size is not None and min(self.size) <= 0:
            raise ValueError(f"size {self.size} is no width and height")
        for described in self.objects:
            if described.box is not None and self.size is None and not all(0 <= side <= 1 for side in described.box):
                raise ValueError(f"the box of {described.name!r} is not within 0..1; if it is in pixels, give `size`")
        return self


class PictureLine(AnnotatedLine):
    """One line."""

    id: str | None = None
    image: str
    text: str = ""


class Jsonl(SourceBase):
    """`{"image", "captions": [], "objects": [{"name", "box": [x1, y1, x2, y2], "category"}], "id", "size", "text"}`."""

    kind: Literal["jsonl"] = "jsonl"
    path: ExistingFile
    image_root: ExistingFolder
    exhaustive: Exhaustive = "nothing"
    groups: dict[str, Naming] = Field(default={}, description="nouns of groups, by label")

    @property
    def told(self) -> str:
        """The file."""
        return f"reading {self.path}"

    def read(self, out: Path) -> Collected:
        """Every line that can be used, in their order."""
        del out
        problems: list[str] = []
        media = MediaRoot(self.image_root)
        subjects = []
        for where, line in read_lines(self.path, PictureLine, problems):
            identity = line.id or identity_of(line.image)
            found = media.picture(line.image)
            context = context_of(line, self.exhaustive, line.text)
            if problem := found if isinstance(found, str) else context if isinstance(context, str) else None:
                problems.append(f"{where}: {identity}: {problem}")
            elif isinstance(context, Context):
                subjects.append(Subject(identity, (line.image,), (context,), self.image_root, where))
        return gathered(self.image_root, subjects, self.groups, problems)


def _so_many(numbers: list[float] | None, form: str) -> list[float] | None:
    if numbers is not None and len(numbers) != len(form.split(",")):
        raise ValueError(f"expected {form}, got a list of {len(numbers)}")
    return numbers


def context_of(line: AnnotatedLine, exhaustive: Exhaustive, text: str = "") -> Context | str:
    """What is known of a picture, or what is wrong with it."""
    captions = [caption_of(caption) for caption in line.captions]
    if None in captions:
        return f"caption {captions.index(None) + 1} is empty or has control characters"
    things = [_thing(described, line.size) for described in line.objects]
    if wrong := [thing for thing in things if isinstance(thing, str)]:
        return wrong[0]
    if not is_clean(text):
        return "the text has control characters"
    found = tuple(thing for thing in things if isinstance(thing, Thing))
    return Context(tuple(caption for caption in captions if caption is not None), found, exhaustive, text)


def _thing(described: Described, size: list[float] | None) -> Thing | str:
    given = described.category
    path = [given] if isinstance(given, str) else given if given is not None else [bare(described.name)]
    name, category = name_of(described.name), [name_of(part) for part in path]
    if name is None or not category or None in category:
        return f"the object {described.name[:60]!r} has no usable name or category (1 to 80 characters, on one line)"
    box = None
    if described.box is not None:
        x1, y1, x2, y2 = described.box
        width, height = size or (1.0, 1.0)
        box = box_of((x1 / width, y1 / height, x2 / width, y2 / height))
        if box is None:
            return f"the box of {name!r}, {described.box}, has no area inside of the picture; it is [x1, y1, x2, y2]"
    return Thing(noun_phrase(name), tuple(part for part in category if part is not None), box)
