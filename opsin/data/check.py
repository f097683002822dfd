"""Is a data file usable? Every problem of every record, with its kind, before anything else is spent on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from opsin.core.errors import DataError, OpsinError
from opsin.core.types import Clip, Conversation, Medium
from opsin.data.record_file import Counts
from opsin.data.records import BadRecord, read_records
from opsin.data.sources import LlavaFile, MessagesFile, Source
from opsin.text.templates import ordered_turns, sample_name
from opsin.vision.picture import open_picture, picture_size
from opsin.vision.video import read_frames, video_facts

Kind = Literal["record", "turns", "picture", "video"]
Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem: what kind of thing it is about, and the line that says it."""

    kind: Kind
    text: str


@dataclass(frozen=True)
class Checked:
    """What a file holds and what is wrong with it."""

    path: Path
    counts: Counts
    problems: tuple[Problem, ...]

    @property
    def kinds(self) -> dict[Kind, int]:
        """Problems by kind."""
        return dict(Counter(problem.kind for problem in self.problems))


def source_of(path: Path, image_root: Path | None = None) -> Source:
    """The format of a file, told by its first record that can be read.

    Raises:
        DataError: it has no record that tells.
    """
    if not path.is_file():
        raise DataError([f"{path}: no such file; correct the path"])
    for record in read_records(path):
        if isinstance(record, BadRecord) or not isinstance(record.value, dict):
            continue
        if "conversations" in record.value:
            return LlavaFile(path=path, image_root=image_root)
        if "messages" in record.value:
            return MessagesFile(path=path, image_root=image_root)
    raise DataError([f"{path}: no record has 'conversations' (LLaVA, ShareGPT) or 'messages'; what is its format?"])


def check(source: Source, *, decode: bool = False, on_progress: Progress = lambda _done: None) -> Checked:
    """Read a file through: its records, the order of its turns, and the header of every medium.

    `decode` also decodes every picture whole, and the first and last frame of every video: slow, but it finds what is
    damaged behind its header.
    """
    counts: Counts = Counter()
    problems: list[Problem] = []
    seen: dict[Medium, Problem | None] = {}
    try:
        for done, conversation in enumerate(source.conversations(counts), start=1):
            problems += _problems(conversation, seen, decode=decode)
            on_progress(done)
    except DataError as error:
        problems += [Problem("record", text) for text in error.problems]
    return Checked(source.path, counts, tuple(sorted(problems, key=lambda problem: _line(problem.text, source.path))))


def _problems(conversation: Conversation, seen: dict[Medium, Problem | None], *, decode: bool) -> Sequence[Problem]:
    found = []
    try:
        ordered_turns(conversation, open_for_generation=False)
    except OpsinError as error:
        found.append(Problem("turns", str(error)))
    for medium in conversation.media:
        if medium not in seen:  # a file that many records use is opened once
            seen[medium] = _medium(medium, decode=decode)
        if (problem := seen[medium]) is not None:
            found.append(Problem(problem.kind, f"{sample_name(conversation)} {problem.text}"))
    return found


def _medium(medium: Medium, *, decode: bool) -> Problem | None:
    is_clip = isinstance(medium, Clip)
    try:
        if isinstance(medium, Clip) and medium.path is not None:
            facts = video_facts(medium.path)
            if decode:
                for _ in read_frames(medium.path, sorted({0, facts.frames - 1})):
                    pass
            return None
        for picture in medium.frames if isinstance(medium, Clip) else (medium,):
            if decode:
                open_picture(picture).close()
            else:
                picture_size(picture)
    except OpsinError as error:
        return Problem("video" if is_clip else "picture", str(error))
    return None


def _line(text: str, path: Path) -> int:
    """The line number that a problem begins with."""
    head = text.removeprefix(f"{path}:").split(":", 1)[0]
    return int(head) if head.isdigit() else 0
