"""A synthesis from its files: its numbers, some of its samples by chance, and some of those that were refused."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from opsin.core.errors import OpsinError
from opsin.core.files import sha256_bytes
from opsin.core.types import Medium
from opsin.data.fields import RecordError
from opsin.data.marks import IMAGE_MARK, VIDEO_MARK
from opsin.data.media_paths import MediaRoot
from opsin.data.record_file import BadRecord
from opsin.data.records import read_records
from opsin.report.stage_view import check_found

RECIPE = "synthesis.json"
"""What makes a directory that of a synthesis."""
STATISTICS = "statistics.json"
PROVENANCE = "provenance.jsonl"
QUARANTINE = "quarantine.jsonl"
INSTRUCT = "instruct.json"
HELD_OUT = "held-out.json"
SAMPLES = (INSTRUCT, HELD_OUT)

MOST_BYTES = 10_000_000
"""Of the statistics."""
NUMBERS = (
    "tasks",
    "states",
    "kinds",
    "attempts",
    "repaired",
    "findings",
    "hallucination",
    "suspicious",
    "usage",
    "problems",
)
"""What the statistics must have."""
REFUSED_SHARE = 3
"""Of so many samples that are shown, one more is shown that was refused."""
VIDEOS = frozenset({".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v"})


class _Line(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class Fault(_Line):
    """A check, and what it found."""

    check: str
    text: str


class _Origin(_Line):
    id: str
    kind: str
    images: list[str]
    image_root: str
    where: str


class Provenance(_Origin):
    """A line of the provenance."""

    file: str
    teacher: str
    model: str
    prompt: str
    context: str
    query: str = ""
    """What the teacher was shown; `context` is its hash."""
    attempts: int
    prompt_tokens: int
    answer_tokens: int
    cost: float | int
    repaired: list[Fault]


class Try(_Line):
    """One refused answer."""

    raw: str
    finish: str
    findings: list[Fault]


class Refused(_Origin):
    """A line of the quarantine."""

    reasons: list[Fault]
    attempts: list[Try]
    context: str


class _Sample(_Line):
    id: str
    conversations: list[dict[str, str]]


@dataclass(frozen=True)
class Made:
    """A sample with its provenance; `turns` are (role, text) without the marks of the media."""

    origin: Provenance
    turns: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class SynthesisView:
    """What is shown; `problems` are lines of the files that cannot be read."""

    directory: Path
    statistics: dict[str, Any]
    made: Sequence[Made]
    refused: Sequence[Refused]
    problems: Sequence[str]

    @cached_property
    def name(self) -> str:
        """The directory's name."""
        return self.directory.absolute().name


def look_at_synthesis(directory: Path, samples: int, seed: int, ids: Sequence[str] = ()) -> SynthesisView:
    """Read a directory; so many samples are chosen by the seed, or those with the ids, refused ones too.

    Raises:
        OpsinError: a file is missing or no such file; or no sample has one of the ids.
    """
    problems: list[str] = []
    known: set[str] = set()
    made = _chosen(directory / PROVENANCE, samples, seed, ids, Provenance, problems, known)
    refused = _chosen(directory / QUARANTINE, -(-samples // REFUSED_SHARE), seed, ids, Refused, problems, known)
    check_found(known, ids)
    return SynthesisView(
        directory, _statistics(directory / STATISTICS), _with_turns(directory, made, problems), refused, problems
    )


Origin = TypeVar("Origin", Provenance, Refused)


def _chosen(
    path: Path,
    most: int,
    seed: int,
    ids: Sequence[str],
    model: type[Origin],
    problems: list[str],
    known: set[str],
) -> list[Origin]:
    """Lines with these ids, or those whose ids have the smallest hashes with the seed; in the file's order."""
    wanted = set(ids)
    found: list[tuple[int, int, str, Any]] = []
    for number, (where, value) in enumerate(_values(path, problems)):
        identity = value.get("id") if isinstance(value, dict) else None
        if not isinstance(identity, str):
            problems.append(f"{where}: no id; is this the file of a synthesis?")
            continue
        if ids:
            known.add(identity)
            if identity in wanted:
                found.append((0, -number, where, value))
            continue
        rank = -int(sha256_bytes(f"{seed}/{identity}".encode("utf-8", "surrogatepass"))[:15], 16)
        (heapq.heappush if len(found) < most else heapq.heappushpop)(found, (rank, -number, where, value))
    lines = (_line(model, where, value, problems) for _, _, where, value in sorted(found, key=lambda one: -one[1]))
    return [line for line in lines if line is not None]


def _values(path: Path, problems: list[str]) -> Iterator[tuple[str, Any]]:
    """(where, value) of each record; bad ones are noted."""
    if not path.is_file():
        raise OpsinError(f"{path}: no such file; let `opsin synthesize` end, which writes it")
    if path.stat().st_size == 0:
        return
    for record in read_records(path):
        if isinstance(record, BadRecord):
            problems.append(f"{record.where}: {record.problem}")
        else:
            yield record.where, record.value


def _line(model: type[Origin], where: str, value: Any, problems: list[str]) -> Origin | None:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        problems.append(
            f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}; it was not written by this version"
        )
        return None


def _statistics(path: Path) -> dict[str, Any]:
    again = "run `opsin synthesize` again, which writes it and asks nothing twice"
    if not path.is_file() or path.stat().st_size > MOST_BYTES:
        raise OpsinError(f"{path}: no such file, or over {MOST_BYTES:,} bytes; {again}")
    try:
        statistics = TypeAdapter(dict[str, Any]).validate_json(path.read_bytes())
    except ValidationError as error:
        raise OpsinError(f"{path}: no JSON object ({error.errors()[0]['msg']}); {again}") from None
    if missing := [name for name in NUMBERS if name not in statistics]:
        raise OpsinError(f"{path}: lacks {', '.join(missing)}; {again}")
    return statistics


def _with_turns(directory: Path, chosen: Sequence[Provenance], problems: list[str]) -> list[Made]:
    made = {origin.id: Made(origin) for origin in chosen}
    for name in SAMPLES:
        if any(origin.file == name for origin in chosen):
            for where, value in _values(directory / name, problems):
                identity = value.get("id") if isinstance(value, dict) else None
                if identity in made:
                    made[identity] = replace(made[identity], turns=_turns(where, value, problems))
    problems += [f"{one.origin.file}: no sample {one.origin.id!r}" for one in made.values() if not one.turns]
    return list(made.values())


def _turns(where: str, value: Any, problems: list[str]) -> tuple[tuple[str, str], ...]:
    try:
        turns = _Sample.model_validate(value).conversations
        return tuple((_ROLES[turn["from"]], _without_marks(turn["value"])) for turn in turns)
    except (ValidationError, KeyError):
        problems.append(f"{where}: no conversation of `human` and `gpt`")
        return ()


_ROLES = {"human": "user", "gpt": "assistant"}


def _without_marks(text: str) -> str:
    return text.replace(IMAGE_MARK, "").replace(VIDEO_MARK, "").strip("\n")


def media(origin: Provenance | Refused) -> list[Medium | str]:
    """The pictures or the video of a sample, each as a medium, or what is wrong with its path."""
    root = MediaRoot(Path(origin.image_root))
    return [_medium(root, name) for name in origin.images]


def _medium(root: MediaRoot, name: str) -> Medium | str:
    try:
        if Path(name).suffix.lower() in VIDEOS:
            (clip,) = root.clips([name])
            return clip
        return root.picture(name)
    except RecordError as error:
        return str(error)


def told(origin: Provenance) -> str:
    """Where a sample comes from, in a line."""
    teacher = f"{origin.teacher} {origin.model}".strip()
    parts = [origin.kind, origin.file, f"by {teacher}", origin.prompt, f"context {origin.context[:12]}"]
    if origin.prompt_tokens or origin.answer_tokens:
        tokens = f"{origin.prompt_tokens:,} + {origin.answer_tokens:,} tokens"
        parts += [f"answer {origin.attempts}", tokens, f"cost {origin.cost:.5f}"]
    return "; ".join(part for part in parts if part)
