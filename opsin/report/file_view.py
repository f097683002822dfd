"""A data file as it is, without a model: what is in it, what is wrong with it, and the chosen conversations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from opsin.core.errors import DataError, PictureError
from opsin.core.types import Clip, Conversation, Medium, Picture
from opsin.data.check import Checked, Problem, Progress, check
from opsin.data.costs import KINDS, Kind, kind_of
from opsin.data.sources import Source
from opsin.report.pieces import evenly
from opsin.report.stage_view import check_found, spread
from opsin.text.segments import sample_name, text_of
from opsin.vision.picture import frames_size, picture_bytes, picture_size
from opsin.vision.video import video_facts

MEASURED = 2000
"""Samples whose pictures' sizes are counted, spread evenly over the file."""

MOST_FRAMES = 4
"""Frames of a clip that are shown."""


@dataclass(frozen=True)
class FileView:
    """One file.

    - `kinds`: samples by kind; `turns`, `answers`: of every sample, its turns, and the characters of its answers
    - `sizes`: (height, width) in pixels of the pictures of at most `MEASURED` samples
    """

    checked: Checked
    kinds: dict[Kind, int]
    turns: Sequence[int]
    answers: Sequence[int]
    sizes: Sequence[tuple[int, int]]
    chosen: Sequence[Conversation]

    @property
    def path(self) -> Path:
        """The file."""
        return self.checked.path

    @property
    def repeated(self) -> int:
        """How many ids are there more than once."""
        return self.checked.counts["repeated ids"]

    def problems(self, conversation: Conversation) -> list[Problem]:
        """What is wrong with a conversation."""
        name = sample_name(conversation)
        return [problem for problem in self.checked.problems if problem.text.startswith(name)]


def look_at(source: Source, most: int, ids: Sequence[str] = (), on_progress: Progress = lambda _done: None) -> FileView:
    """Check a file, then read it once more to count; `most` samples are chosen, or those with the ids.

    Raises:
        DataError: the file is not there, or changes while it is read.
        OpsinError: no sample has one of the ids.
    """
    checked = check(source, on_progress=on_progress)
    number = checked.read
    wanted, measured = set(spread(number, most)), set(spread(number, MEASURED))
    kinds: Counter[Kind] = Counter()
    turns: list[int] = []
    answers: list[int] = []
    sizes: list[tuple[int, int]] = []
    chosen: list[Conversation] = []
    known: set[str] = set()
    for at, conversation in enumerate(_again(source, checked)):
        kinds[kind_of(conversation.media)] += 1
        turns.append(len(conversation.turns))
        answers.append(sum(len(text_of(turn)) for turn in conversation.turns if turn.role == "assistant"))
        if at in measured:
            sizes += _sizes(conversation.media)
        if conversation.id in ids if ids else at in wanted:
            chosen.append(conversation)
        if ids:
            known.add(conversation.id)
    check_found(known, ids)
    return FileView(checked, {kind: kinds[kind] for kind in KINDS if kinds[kind]}, turns, answers, sizes, chosen)


def _again(source: Source, checked: Checked) -> Iterator[Conversation]:
    """The good records; the bad ones have been told."""
    told = {problem.text for problem in checked.problems}
    try:
        yield from source.conversations(Counter())
    except DataError as error:
        if not told.issuperset(error.problems):
            raise


def _sizes(media: Sequence[Medium]) -> Iterator[tuple[int, int]]:
    """The sizes of pictures that can be opened."""
    for medium in media:
        if isinstance(medium, Picture):
            try:
                size = picture_size(medium)
            except PictureError:  # one of the problems of the file
                continue
            yield size.height, size.width


@dataclass(frozen=True)
class MediumFacts:
    """What a medium's file says: size in pixels; of a clip, how many frames, and of a video their rate (a second).

    `bytes` are None for a clip given as pictures; `animated`: of this picture only the first frame is taken.
    """

    height: int
    width: int
    bytes: int | None = None
    frames: int = 1
    rate: float | None = None
    animated: bool = False

    @property
    def text(self) -> str:
        """All of it."""
        told = [f"{self.height}×{self.width} pixels (height × width)"]
        if self.rate is not None:
            told.append(f"{self.frames:,} frames, {self.rate:.4g} a second: {self.frames / self.rate:.2f} s")
        elif self.bytes is None:
            told.append(f"{self.frames:,} frames")
        if self.bytes is not None:
            told.append(f"{self.bytes:,} bytes")
        if self.animated:
            told.append("animated: the first frame is taken")
        return "; ".join(told)


def medium_facts(medium: Medium) -> MediumFacts:
    """Read a medium's header.

    Raises:
        OpsinError: it cannot be opened, or is over a limit.
    """
    if isinstance(medium, Picture):
        size = picture_size(medium)
        return MediumFacts(size.height, size.width, len(picture_bytes(medium)), animated=size.animated)
    if medium.path is None:
        size = frames_size(medium.frames)
        return MediumFacts(size.height, size.width, frames=len(medium.frames))
    facts = video_facts(medium.path)
    return MediumFacts(facts.height, facts.width, medium.path.stat().st_size, facts.frames, facts.rate)


def shown_frames(clip: Clip, facts: MediumFacts) -> list[int]:
    """The numbers of some frames of a clip."""
    return evenly(facts.frames, MOST_FRAMES)
