"""What a detector found, in COCO's format of results; captions of a COCO file may be added."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from opsin.core.errors import DataError
from opsin.core.paths import ExistingFile, ExistingFolder
from opsin.synthesize.sources.base import Collected, Naming, SourceBase
from opsin.synthesize.sources.coco import collected
from opsin.synthesize.sources.coco_file import CocoImages, read_coco, read_mapping


class Detections(SourceBase):
    """Results `[{"image_id", "category_id", "bbox", "score"}]`, and a COCO file with the images and the categories.

    A detector overlooks things, so nothing is counted or called absent.
    """

    kind: Literal["detections"] = "detections"
    results: ExistingFile
    images: ExistingFile
    captions: ExistingFile | None = None
    image_root: ExistingFolder
    min_score: float = Field(0.5, ge=0, le=1)
    groups: dict[str, Naming] = Field(default={}, description="nouns of groups, by label")

    @property
    def told(self) -> str:
        """The file of results."""
        return f"reading {self.results}"

    def read(self, out: Path) -> Collected:
        """The files, pictures in the order of their ids."""
        del out
        coco = CocoImages()
        content = read_mapping(self.images)
        coco.add_images(self.images, content)
        coco.add_categories(self.images, content)
        results = read_coco(self.results)
        if not isinstance(results, list):
            raise DataError([f"{self.results}: expected COCO's list of results, got {type(results).__name__}"])
        coco.add_things(self.results, results, self.min_score)
        if self.captions is not None:
            content = read_mapping(self.captions)
            coco.add_images(self.captions, content)
            coco.add_captions(self.captions, content)
        return collected(coco, self.image_root, str(self.results), "nothing", self.groups)
