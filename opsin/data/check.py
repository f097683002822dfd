"""Is a data file usable? Every problem of every record, with its kind, before anything else is spent on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from opsin.core.errors import DataError, OpsinError
from opsin.core.types import Clip, Conversation, Medium, Picture
from opsin.data.fields import listed, shown
from opsin.data.file_state import states_of
from opsin.data.parquet_file import ParquetFile
from opsin.data.record_file import BadRecord, Counts, Record, Unusable
from opsin.data.records import read_records
from opsin.data.science_qa import ScienceQA
from opsin.data.sources import LlavaFile, MessagesFile, Source
from opsin.data.tar_shards import TarShards
from opsin.text.segments import nothing_to_learn, ordered_turns, sample_name, text_of
from opsin.vision.picture import frames_size, open_picture, picture_size
from opsin.vision.video import read_frames, video_facts

Kind = Literal["file", "record", "turns", "picture", "video"]
Progress = Callable[[int], None]
ANIMATIONS_NAMED = 3


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem: what kind of thing it is about, and the line that says it."""

    kind: Kind
    text: str


@dataclass(frozen=True)
class Checked:
    """What a file holds and what is wrong with it.

    - `records`: how many there are, and places that cannot be read
    - `read`: those that are conversations, whatever is wrong with their turns and media
    - `counts`: of the usable ones, which training takes
    - `notes`: what is worth knowing but stops nothing
    """

    path: Path
    records: int = 0
    read: int = 0
    counts: Counts = field(default_factory=Counter)
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def usable(self) -> int:
        """Records that training takes."""
        return self.counts["conversations"]

    @property
    def kinds(self) -> dict[Kind, int]:
        """Problems by kind."""
        return dict(Counter(problem.kind for problem in self.problems))


def source_of(path: Path, image_root: Path | None = None, *, allow_outside: bool = False) -> Source:
    """The format of a file, told by its name, or by its first record that can be read.

    Raises:
        DataError: it is no file, or has no record that tells.
    """
    states_of((path,))  # which says what is wrong with a path that is no file
    if path.suffix == ".parquet":
        return ParquetFile(path=path, image_root=image_root, allow_outside=allow_outside)
    if path.suffix == ".tar":
        return TarShards(shards=(path,))
    if path.name == "problems.json" and path.with_name("pid_splits.json").is_file():
        return ScienceQA(path=path, image_root=image_root, allow_outside=allow_outside)
    first: Record | BadRecord | None = None
    for record in read_records(path):
        if isinstance(record, Record) and isinstance(record.value, dict):
            if "conversations" in record.value:
                return LlavaFile(path=path, image_root=image_root, allow_outside=allow_outside)
            if "messages" in record.value:
                return MessagesFile(path=path, image_root=image_root, allow_outside=allow_outside)
        first = first or record
    raise DataError([_unknown(path, first)])


def _unknown(path: Path, first: Record | BadRecord | None) -> str:
    """What is there in place of conversations."""
    if first is None:
        return f"{path}: {'has no record' if path.stat().st_size else 'the file is empty'}; is it the right file?"
    if isinstance(first, BadRecord):
        return f"{first.where}: {first.problem}"
    expected = "expected 'conversations' (LLaVA, ShareGPT) or 'messages'"
    if not isinstance(first.value, dict):
        return f"{first.where}: the first record is {shown(first.value)}; {expected} in an object"
    lists = [key for key, value in first.value.items() if _is_records(value)]
    advice = f"; if {lists[0]!a} holds the records, save that list alone" if lists else ""
    return f"{first.where}: the first record has the keys {listed(first.value)}; {expected}{advice}"


def _is_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def check(source: Source, *, decode: bool = False, on_progress: Progress = lambda _done: None) -> Checked:
    """Read a file through: its records, their ids, the order of its turns, and the header of every medium.

    `decode` also decodes every picture whole, and the first and last frame of every video: slow, but it finds what is
    damaged behind its header.
    """
    counts: Counts = Counter()
    own: Counts = Counter()
    problems: list[Problem] = []
    seen = _Seen(decode=decode)
    ids = _Ids()
    records = read = 0
    try:
        for found in source.scan(own):
            records += 1
            if isinstance(found, Unusable):
                wrong: Sequence[Problem] = [Problem("record", text) for text in found.problems]
            else:
                read += 1
                _, conversation = found
                ids.add(conversation)
                wrong = _problems(conversation, seen)
            if not wrong:
                counts.update(own)
            own.clear()
            problems += wrong
            on_progress(records)
    except DataError as error:
        problems += [Problem("file", text) for text in error.problems]
    if ids.repeated:
        counts["repeated ids"] = ids.repeated
    problems.sort(key=lambda problem: _line(problem.text, source.path))
    return Checked(source.path, records, read, counts, tuple(problems), (*ids.notes(), *seen.notes()))


class _Ids:
    """Ids that were there before. Only their hashes are kept: the memory is some tens of bytes a record."""

    def __init__(self) -> None:
        self.first = ""
        self.repeated = 0
        self._hashes: set[int] = set()

    def add(self, conversation: Conversation) -> None:
        """Take note of an id."""
        key = hash(conversation.id)
        if key in self._hashes:
            self.first = self.first or sample_name(conversation)
            self.repeated += 1
        self._hashes.add(key)

    def notes(self) -> Iterator[str]:
        """What to say of them: once for a file, since in some published sets most ids are repeated."""
        if self.repeated:
            yield (
                f"{self.first} an earlier record has this id; in all {self.repeated:,} "
                f"{'id is' if self.repeated == 1 else 'ids are'} repeated. "
                "Messages and reports name samples by their ids"
            )


def _problems(conversation: Conversation, seen: _Seen) -> Sequence[Problem]:
    found = []
    try:
        _, turns = ordered_turns(conversation, open_for_generation=False)
        if not any(text_of(turn).strip() for turn in turns if turn.role == "assistant"):
            raise nothing_to_learn(conversation)
    except OpsinError as error:
        found.append(Problem("turns", str(error)))
    for medium in conversation.media:
        if (problem := seen.problem(medium)) is not None:
            found.append(Problem(problem.kind, f"{sample_name(conversation)} {problem.text}"))
    return found


class _Seen:
    """Media that were opened, so that a file that many records use is opened once. Of good ones the hash is kept."""

    def __init__(self, *, decode: bool) -> None:
        self._decode = decode
        self._animations = 0
        self._animated: list[str] = []
        self._good: set[int] = set()
        self._bad: dict[Medium, Problem] = {}

    def problem(self, medium: Medium) -> Problem | None:
        """What is wrong with a medium."""
        if isinstance(medium, Picture) and medium.data is not None:  # its bytes belong to this record alone
            return self._opened(medium)
        if hash(medium) in self._good:
            return None
        if medium not in self._bad:
            problem = self._opened(medium)
            if problem is None:
                self._good.add(hash(medium))
                return None
            self._bad[medium] = problem
        return self._bad[medium]

    def notes(self) -> Iterator[str]:
        """What to say of animations: once for a file."""
        if self._animations:
            named = ", ".join(self._animated) + ", ..." * (self._animations > len(self._animated))
            yield f"of animated pictures ({self._animations:,}) the first frame is taken: {named}"

    def _opened(self, medium: Medium) -> Problem | None:
        try:
            if isinstance(medium, Picture):
                self._look(medium)
            elif medium.path is not None:
                facts = video_facts(medium.path)
                if self._decode:
                    for _ in read_frames(medium.path, sorted({0, facts.frames - 1})):
                        pass
            else:
                frames_size(medium.frames)
                for frame in medium.frames:
                    self._look(frame)
        except OpsinError as error:
            return Problem("video" if isinstance(medium, Clip) else "picture", str(error))
        return None

    def _look(self, picture: Picture) -> None:
        if picture_size(picture).animated:
            self._animations += 1
            if self._animations <= ANIMATIONS_NAMED:
                self._animated.append(picture.name)
        if self._decode:
            open_picture(picture).close()


def _line(text: str, path: Path) -> int:
    """The number of the line or row that a problem begins with."""
    head = text.removeprefix(f"{path}:").split(":", 1)[0].removeprefix("row ")
    return int(head) if head.isdecimal() and len(head) < 20 else 0
