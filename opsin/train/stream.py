"""Sources that are too large to be read through before the first step: planned a window at a time.

The samples come in the order of their files, those of several sources by their shares, shuffled within a window. A
source that ends begins anew. Everything is a pure function of (sources, stage, seed), as for stages that are read
whole: what a sample costs is kept, so a resumed run plans its way to where it was without opening any media again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import overload

import numpy as np

from opsin.core.errors import DataError, TrainError
from opsin.data.corpus import Corpus, Part
from opsin.data.index import Chunks
from opsin.data.plan import WINDOW, Filler, Pack, rank_share
from opsin.data.sources import Source
from opsin.train.selecting import Found, Selection

SHUFFLED = 2048
"""Samples of a window."""

Progress = Callable[[str, int], None]
"""Told the name of a source, and how many more of its samples are read."""


def quiet(_name: str, _more: int) -> None:
    """Nobody is told."""


@dataclass(frozen=True)
class Reading:
    """How a stage's sources are read: what is wanted of them, where to tell what happened, and what to do about it."""

    selection: Selection
    found: Found
    skip_bad: bool
    on_progress: Progress


class StreamSteps(Sequence[tuple[Pack, ...]]):
    """The packs of every step of a stage; its samples are added to `corpus` as they are planned."""

    def __init__(self, reading: Reading, corpus: Corpus, seed: int) -> None:
        self._stage = reading.selection.stage
        self.packs_per_step = self._stage.packs_per_step
        self._corpus = corpus
        self._feeds = [Feed(name, source, reading) for name, source in self._stage.sources.items()]
        self._seed = seed
        self._filler = Filler(self._stage.budget)
        self._costs: dict[int, tuple[int, int, int]] = {}
        self._window = 0
        self._packs: list[Pack] = []
        self._gone = 0
        self._hash = sha256()
        self._digests: dict[int, str] = {}

    def __len__(self) -> int:
        return self._stage.steps or 0

    @overload
    def __getitem__(self, step: int) -> tuple[Pack, ...]: ...

    @overload
    def __getitem__(self, step: slice) -> list[tuple[Pack, ...]]: ...

    def __getitem__(self, step: int | slice) -> tuple[Pack, ...] | list[tuple[Pack, ...]]:
        """The packs of a step; everything before it is planned first.

        Raises:
            DataError: a record among those that are read for it cannot be used.
        """
        if isinstance(step, slice):
            return [self[i] for i in range(len(self))[step]]
        if not 0 <= step < len(self):
            raise IndexError(step)  # what ends an iteration
        if step < self._gone:
            raise IndexError(f"step {step} is taken and forgotten")
        each = self.packs_per_step
        while len(self._packs) < (step + 1 - self._gone) * each:
            self._packs.append(self._next_pack())
            if len(self._packs) % each == 0:
                self._digests[self._gone + len(self._packs) // each] = self._hash.hexdigest()
        start = (step - self._gone) * each
        return tuple(self._packs[start : start + each])

    def digest(self, steps: int) -> str:
        """A hash of the samples of the first so many steps."""
        if steps not in self._digests:
            self[steps - 1]
        return self._digests[steps]

    def forget(self, before: int) -> None:
        """Let go of the steps before one, and of samples that no later one has."""
        del self._packs[: (before - self._gone) * self.packs_per_step]
        self._gone = before
        self._digests = {step: digest for step, digest in self._digests.items() if step >= before}
        needed = [min(pack.samples) for pack in self._packs]
        self._corpus.forget(min([*needed, self._filler.oldest], default=0))

    def _next_pack(self) -> Pack:
        while len(self._filler) < WINDOW:
            self._read_window()
        samples = self._filler.pack()
        for sample in samples:
            self._hash.update(f"{self._corpus.name(sample)} {self._costs[sample]}\n".encode("utf-8", "surrogateescape"))
        tokens, patches, supervised = zip(*(self._costs.pop(sample) for sample in samples), strict=True)
        return Pack(tuple(samples), tokens=sum(tokens), patches=sum(patches), supervised=sum(supervised))

    def _read_window(self) -> None:
        first = len(self._corpus)
        for feed in self._feeds:
            for part in feed.take(self._window):
                columns = (part.costs.tokens, part.costs.patches, part.costs.supervised)
                rows = zip(*(column.tolist() for column in columns), strict=True)
                self._costs |= dict(enumerate(rows, len(self._corpus)))
                self._corpus.add(part)
        order = np.random.default_rng([self._seed, self._window]).permutation(len(self._corpus) - first) + first
        tokens, patches, _ = zip(*(self._costs[sample] for sample in order.tolist()), strict=True)
        self._filler.add(order, np.array(tokens), np.array(patches))
        self._window += 1


class _Packs(Sequence[Pack]):
    """One rank's packs of a stream from a step on; each is planned when it is looked at."""

    def __init__(self, steps: StreamSteps, first: int, rank: int, ranks: int) -> None:
        self._steps, self._first, self._rank, self._ranks = steps, first, rank, ranks
        self._each = steps.packs_per_step // ranks

    def __len__(self) -> int:
        return (len(self._steps) - self._first) * self._each

    @overload
    def __getitem__(self, number: int) -> Pack: ...

    @overload
    def __getitem__(self, number: slice) -> list[Pack]: ...

    def __getitem__(self, number: int | slice) -> Pack | list[Pack]:
        if isinstance(number, slice):
            return [self[i] for i in range(len(self))[number]]
        step, place = divmod(number, self._each)
        return rank_share(self._steps[self._first + step], self._rank, self._ranks)[place]


def check_ranks(steps: Sequence[tuple[Pack, ...]], ranks: int) -> None:
    """Refuse ranks that cannot share the steps of a stream evenly.

    Raises:
        TrainError: with the numbers.
    """
    if isinstance(steps, StreamSteps) and steps.packs_per_step % ranks:
        raise TrainError(
            f"order: stream with packs_per_step {steps.packs_per_step} and {ranks} ranks: each must get as many; make "
            f"packs_per_step a multiple of {ranks}"
        )


def packs_from(steps: Sequence[tuple[Pack, ...]], first: int, rank: int = 0, ranks: int = 1) -> Sequence[Pack]:
    """One rank's packs of all steps from one on, without planning a stream ahead."""
    if isinstance(steps, StreamSteps):
        return _Packs(steps, first, rank, ranks)
    return [pack for step in steps[first:] for pack in rank_share(step, rank, ranks)]


class Feed:
    """The samples of one source, one after the other without an end: its share of every window."""

    def __init__(self, name: str, source: Source, reading: Reading) -> None:
        self._name, self._source, self._reading = name, source, reading
        selection = reading.selection
        told = partial(reading.on_progress, name)
        self._chunks = Chunks(source, selection.preparation, told, workers=selection.stage.workers)
        self._found = reading.found
        self._number = 0
        self._part: Part | None = None
        self._at = 0
        self._usable = 0

    def take(self, window: int) -> list[Part]:
        """What a window takes; windows are asked for in order.

        Raises:
            DataError: a record that is read for it cannot be used; the source has none that can.
        """
        share = self._source.share or 1.0
        left = int((window + 1) * SHUFFLED * share) - int(window * SHUFFLED * share)
        taken = []
        while left:
            if self._part is None or self._at == len(self._part):
                self._part, self._at = self._read(), 0
            chosen = np.arange(self._at, min(self._at + left, len(self._part)))
            if len(chosen):
                taken.append(self._part.take(chosen))
            self._at += len(chosen)
            left -= len(chosen)
        return taken

    def _read(self) -> Part:
        index = self._chunks.chunk(self._number)
        part = self._reading.selection.part(self._name, self._source, index, self._found)
        self._found.check(skip_bad=self._reading.skip_bad)
        self._usable += len(part)
        if index.last and not self._usable:
            lost = (*self._found.refused, *self._found.dropped)
            raise DataError([f"{self._source.path}: no sample that the stage can use", *lost])
        if index.last:  # what happened to its samples is told once
            self._found = Found()
        self._number = 0 if index.last else self._number + 1
        return part
