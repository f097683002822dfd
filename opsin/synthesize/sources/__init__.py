"""Where pictures and what is known of them come from. `PictureSource` is the only list of sources in the project."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from opsin.synthesize.sources.base import Collected
from opsin.synthesize.sources.coco import Coco
from opsin.synthesize.sources.detections import Detections
from opsin.synthesize.sources.documents import Documents
from opsin.synthesize.sources.jsonl import Jsonl
from opsin.synthesize.sources.videos import Videos

__all__ = ["Collected", "PictureSource"]

PictureSource = Annotated[Coco | Jsonl | Detections | Documents | Videos, Field(discriminator="kind")]
