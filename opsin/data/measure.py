"""What a sample costs, from its text and the headers of its media; by several processes, if wanted."""

from __future__ import annotations

import itertools
import multiprocessing
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from opsin.core.errors import LoaderError, OpsinError
from opsin.core.types import Clip, Conversation, Medium
from opsin.data.costs import cost_of
from opsin.data.example import Preparation, make_example

GROUP = 32
"""Conversations that a process is given at a time."""

AHEAD = 3
"""Groups for every process that are read before they are due: enough to keep it busy, few enough to be small."""

Stamp = tuple[int, int]
"""Size and time (ns) of a file; it is taken to hold the same bytes while they stay. (-1, -1) where it is gone."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One sample's row of `Costs`, or the problem that it has; notes to count, and the stamps of its media's files."""

    row: tuple[int, ...] | None
    problem: str = ""
    notes: tuple[str, ...] = ()
    stamps: tuple[tuple[str, Stamp], ...] = ()


def measure(conversations: Iterable[Conversation], preparation: Preparation, workers: int = 0) -> Iterator[Measured]:
    """Render conversations and read the headers of their media, in order; `workers` 0 does it in the process itself.

    Raises:
        LoaderError: a process was killed.
    """
    if workers == 0:
        yield from (measure_one(conversation, preparation) for conversation in conversations)
        return
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, context, _begin, (preparation,)) as pool:
        waiting: deque[Future[list[Measured]]] = deque()
        remaining = iter(conversations)
        try:
            while group := list(itertools.islice(remaining, GROUP)):
                waiting.append(pool.submit(_measure_group, group))
                if len(waiting) > AHEAD * workers:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        except BrokenProcessPool:
            raise LoaderError(
                "a process that read samples was killed (often a lack of memory); use fewer workers, and start again: "
                "what was measured is kept"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def measure_one(conversation: Conversation, preparation: Preparation) -> Measured:
    """One sample."""
    notes: list[str] = []
    try:
        example = make_example(conversation, preparation, on_note=notes.append)
    except OpsinError as error:
        return Measured(None, str(error))
    stamps = tuple((path, stamp(path)) for path in _files(conversation.media))
    return Measured(cost_of(example), "", tuple(notes), stamps)


def stamp(path: str) -> Stamp:
    """A file as it is."""
    try:
        facts = Path(path).stat()
    except OSError:
        return (-1, -1)
    return facts.st_size, facts.st_mtime_ns


_own: list[Preparation] = []
"""The preparation of a process that measures: inherited, since a tokenizer takes long to send."""


def _begin(preparation: Preparation) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    _own.append(preparation)


def _measure_group(group: list[Conversation]) -> list[Measured]:
    return [measure_one(conversation, _own[-1]) for conversation in group]


def _files(media: Iterable[Medium]) -> Iterator[str]:
    """The files that media lie in alone; a shard is part of its source's content."""
    for medium in media:
        if isinstance(medium, Clip) and medium.path is not None:
            yield str(medium.path)
        for picture in medium.frames if isinstance(medium, Clip) else (medium,):
            if picture.path is not None and picture.member is None:
                yield str(picture.path)
