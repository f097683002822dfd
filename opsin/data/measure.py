"""What a sample costs, from its text and the headers of its media; by several processes, if wanted."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from ctypes import Array, c_int64
from dataclasses import dataclass
from multiprocessing.sharedctypes import RawArray
from pathlib import Path

from opsin.core.errors import LoaderError, OpsinError
from opsin.core.processes import end_with_parent
from opsin.core.types import Clip, Conversation, Medium
from opsin.data.costs import cost_of
from opsin.data.example import Preparation, make_example
from opsin.text.templates import sample_name

GROUP = 32
"""Conversations that a process is given at a time."""

AHEAD = 3
"""Groups for every process that are read before they are due: enough to keep it busy, few enough to be small."""

TIMEOUT = 300.0
"""Seconds that a process may take for one sample before it counts as hung."""

Stamp = tuple[int, int]
"""Size and time (ns) of a file; it is taken to hold the same bytes while they stay. (-1, -1) where it is gone."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One sample's row of `Costs`, or the problem that it has; notes to count, and the stamps of its media's files."""

    row: tuple[int, ...] | None
    problem: str = ""
    notes: tuple[str, ...] = ()
    stamps: tuple[tuple[str, Stamp], ...] = ()


def measure(
    conversations: Iterable[Conversation], preparation: Preparation, workers: int = 0, timeout: float = TIMEOUT
) -> Iterator[Measured]:
    """Render conversations and read the headers of their media, in order; `workers` 0 does it in the process itself.

    Raises:
        LoaderError: a process was killed or hangs; the samples that may be the reason are named.
    """
    if workers == 0:
        yield from (measure_one(conversation, preparation) for conversation in conversations)
        return
    held = _Held(workers)
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), _begin, (preparation, held))
    waiting: deque[_Group] = deque()
    first = 0
    try:
        for group in _grouped(conversations):
            waiting.append(_Group(first, group, pool.submit(_measure_group, first, group)))
            first += len(group)
            if len(waiting) > AHEAD * workers:
                yield from held.result(waiting, timeout)
        while waiting:
            yield from held.result(waiting, timeout)
    except BaseException:  # Ctrl-C too: a process that hangs would keep its parent from ending
        held.end()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True, slots=True)
class _Group:
    """Conversations that a process was given, the number of the first of them, and what comes of it."""

    first: int
    conversations: list[Conversation]
    measured: Future[list[Measured]]


def _grouped(conversations: Iterable[Conversation]) -> Iterator[list[Conversation]]:
    remaining = iter(conversations)
    while group := list(itertools.islice(remaining, GROUP)):
        yield group


def measure_one(conversation: Conversation, preparation: Preparation) -> Measured:
    """One sample; whatever is wrong with it is a problem of its own."""
    notes: list[str] = []
    files = list(_files(conversation.media))
    stamps = tuple((path, stamp(path)) for path in files)
    try:
        example = make_example(conversation, preparation, on_note=notes.append)
    except OpsinError as error:
        return Measured(None, str(error))
    except Exception as error:  # noqa: BLE001 (nobody foresaw it: the sample is what the user needs to know)
        kind = traceback.format_exception_only(error)[-1].strip()
        return Measured(None, f"{sample_name(conversation)}: cannot be read ({kind}); look at its pictures and videos")
    if stamps != tuple((path, stamp(path)) for path in files):
        return Measured(None, f"{sample_name(conversation)}: a picture or video changed while it was read")
    return Measured(cost_of(example), "", tuple(notes), stamps)


def stamp(path: str) -> Stamp:
    """A file as it is."""
    try:
        facts = Path(path).stat()
    except OSError:
        return (-1, -1)
    return facts.st_size, facts.st_mtime_ns


class _Held:
    """Which sample each process is at, in memory that all of them see: (process id, number of the sample) each."""

    def __init__(self, workers: int) -> None:
        self._slots: Array[c_int64] = RawArray(c_int64, 2 * workers)
        self._taken = multiprocessing.get_context("fork").Value("i", 0)
        self._own = 0

    def begin(self) -> None:
        """Take a slot for this process."""
        with self._taken:
            self._own = self._taken.value
            self._taken.value += 1
        self._slots[2 * self._own] = os.getpid()

    def set(self, number: int) -> None:
        """This process is at a sample; -1 for none."""
        self._slots[2 * self._own + 1] = number

    def result(self, waiting: deque[_Group], timeout: float) -> list[Measured]:
        """What becomes of the first group, which is taken out."""
        while True:
            before = self._numbers()
            try:
                measured = waiting[0].measured.result(timeout)
            except TimeoutError:
                if before == self._numbers():
                    raise LoaderError(
                        f"reading samples hangs: no progress for {timeout:g} seconds at {self._named(waiting)}; look "
                        "whether their files can be read (a network drive?), or raise worker_timeout"
                    ) from None
            except BrokenProcessPool:
                raise LoaderError(
                    f"a process that read samples was killed (often a lack of memory) at {self._named(waiting)}; "
                    "look at it, or use fewer workers"
                ) from None
            else:
                waiting.popleft()
                return measured

    def end(self) -> None:
        """End processes that may never end by themselves."""
        for pid in self._slots[::2]:
            with contextlib.suppress(OSError):
                if pid:
                    os.kill(pid, signal.SIGKILL)

    def _numbers(self) -> list[int]:
        return list(self._slots[1::2])

    def _named(self, waiting: Iterable[_Group]) -> str:
        """The samples that the processes are at."""
        numbers = set(self._numbers())
        names = [
            sample_name(conversation)
            for group in waiting
            for number, conversation in enumerate(group.conversations, group.first)
            if number in numbers
        ]
        return " or ".join(names) or "a sample"


_own: list[tuple[Preparation, _Held]] = []
"""What a process that measures works with: inherited, since a tokenizer takes long to send."""


def _begin(preparation: Preparation, held: _Held) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    end_with_parent()
    held.begin()
    _own.append((preparation, held))


def _measure_group(first: int, group: list[Conversation]) -> list[Measured]:
    preparation, held = _own[-1]
    found = []
    for number, conversation in enumerate(group, first):
        held.set(number)
        found.append(measure_one(conversation, preparation))
    held.set(-1)
    return found


def _files(media: Iterable[Medium]) -> Iterator[str]:
    """The files that media lie in alone; a shard is part of its source's content."""
    for medium in media:
        if isinstance(medium, Clip) and medium.path is not None:
            yield str(medium.path)
        for picture in medium.frames if isinstance(medium, Clip) else (medium,):
            if picture.path is not None and picture.member is None:
                yield str(picture.path)
