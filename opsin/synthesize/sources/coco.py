"""COCO's own annotations: `captions_*.json` and `instances_*.json`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from opsin.core.paths import ExistingFile, ExistingFolder
from opsin.data.media_paths import MediaRoot
from opsin.synthesize.context import Context, Exhaustive
from opsin.synthesize.sources.base import Collected, Naming, SourceBase, vocabulary_of, without_too_long
from opsin.synthesize.sources.coco_file import CocoImages, listed, read_mapping
from opsin.synthesize.subject import Subject

if TYPE_CHECKING:
    from opsin.synthesize.sources.coco_file import CocoImage


class Coco(SourceBase):
    """Captions, instances or both. A picture that is in only one of the files has only what that one says.

    `exhaustive: categories` is what COCO promises: all things of its categories are annotated. `groups` are the nouns
    of supercategories, where their labels are none.
    """

    kind: Literal["coco"] = "coco"
    captions: ExistingFile | None = None
    instances: ExistingFile | None = None
    image_root: ExistingFolder
    exhaustive: Exhaustive = "categories"
    groups: dict[str, Naming] = Field(default={}, description="nouns of groups, by label")

    @model_validator(mode="after")
    def _something(self) -> Coco:
        if self.captions is None and self.instances is None:
            raise ValueError("nothing is known of the pictures; give captions, instances or both")
        return self

    @property
    def told(self) -> str:
        """The files."""
        return f"reading {' and '.join(str(path) for path in (self.captions, self.instances) if path is not None)}"

    def read(self, out: Path) -> Collected:
        """Both files, pictures in the order of their ids."""
        del out
        coco = CocoImages()
        if self.instances is not None:
            content = read_mapping(self.instances)
            coco.add_images(self.instances, content, annotated=True)
            coco.add_categories(self.instances, content)
            coco.add_things(self.instances, listed(self.instances, content, "annotations"))
        if self.captions is not None:
            content = read_mapping(self.captions)
            coco.add_images(self.captions, content)
            coco.add_captions(self.captions, content)
        where = self.captions or self.instances
        return collected(coco, self.image_root, str(where), self.exhaustive, self.groups)


def collected(
    coco: CocoImages, image_root: Path, where: str, exhaustive: Exhaustive, groups: dict[str, Naming]
) -> Collected:
    """Subjects of all pictures that are on disk and have annotations.

    One whose annotations could not all be used, or that no file of instances lists, is no longer called exhaustive.
    """
    problems = list(coco.problems)
    media = MediaRoot(image_root)
    subjects = []
    for image in sorted(coco.images.values(), key=lambda image: image.id):
        found = media.picture(image.file_name)
        if isinstance(found, str):
            problems.append(f"{where}: {image.name}: {found}")
        elif not image.captions and not image.things:
            problems.append(f"{where}: {image.name}: neither captions nor things are annotated")
        else:
            subjects.append(_subject(image, image_root, where, "nothing" if coco.lost else exhaustive))
    kept = without_too_long(subjects, problems)
    return Collected(image_root, kept, vocabulary_of(coco.categories.values(), groups), tuple(problems))


def _subject(image: CocoImage, root: Path, where: str, exhaustive: Exhaustive) -> Subject:
    known: Exhaustive = exhaustive if image.annotated and not image.damaged else "nothing"
    context = Context(tuple(image.captions), tuple(image.things), known)
    return Subject(image.name, (image.file_name,), (context,), root, where)
