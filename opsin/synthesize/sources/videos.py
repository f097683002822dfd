"""Videos of which some frames are described: one JSON object a line."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, FiniteFloat, model_validator

from opsin.core.paths import ExistingFile, ExistingFolder
from opsin.data.fields import RecordError
from opsin.data.media_paths import MediaRoot
from opsin.synthesize.context import Context
from opsin.synthesize.sources.base import Collected, Naming, SourceBase, gathered, identity_of
from opsin.synthesize.sources.jsonl import AnnotatedLine, context_of
from opsin.synthesize.sources.lines import LineBase, read_lines
from opsin.synthesize.subject import Subject


class Frame(AnnotatedLine):
    """One described moment."""

    time: FiniteFloat = Field(ge=0)
    """Seconds from the start."""

    @model_validator(mode="after")
    def _something(self) -> Frame:
        if not self.captions and not self.objects:
            raise ValueError(f"nothing is known of the frame at {self.time:g} seconds; give captions or objects")
        return self


class VideoLine(LineBase):
    """One line."""

    id: str | None = None
    video: str
    frames: list[Frame] = Field(min_length=1, max_length=1000)

    @model_validator(mode="after")
    def _ordered(self) -> VideoLine:
        times = [frame.time for frame in self.frames]
        if times != sorted(set(times)):
            raise ValueError("the frames are not in the order of their times, each once")
        return self


class Videos(SourceBase):
    """`{"id", "video", "frames": [{"time": seconds, "captions": [...], "objects": [...]}]}`."""

    kind: Literal["videos"] = "videos"
    path: ExistingFile
    video_root: ExistingFolder
    groups: dict[str, Naming] = Field(default={}, description="nouns of groups, by label")

    @property
    def told(self) -> str:
        """The file."""
        return f"reading {self.path}"

    def read(self, out: Path) -> Collected:
        """Every line that can be used, in their order."""
        del out
        problems: list[str] = []
        subjects = []
        for where, line in read_lines(self.path, VideoLine, problems):
            identity = line.id or identity_of(line.video)
            try:
                subjects.append(self._subject(identity, line, where))
            except RecordError as error:
                problems.append(f"{where}: {identity}: {error}")
        return gathered(self.video_root, subjects, self.groups, problems)

    def _subject(self, identity: str, line: VideoLine, where: str) -> Subject:
        MediaRoot(self.video_root).clips([line.video])
        contexts = [context_of(frame, "nothing") for frame in line.frames]
        if wrong := [context for context in contexts if isinstance(context, str)]:
            raise RecordError(wrong[0])
        known = tuple(context for context in contexts if isinstance(context, Context))
        times = tuple(frame.time for frame in line.frames)
        return Subject(identity, (), known, self.video_root, where, line.video, times)
