"""What a stage shows of its data: its sources, the packs, what was refused, and the chosen samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property

import numpy as np

from opsin.core.errors import OpsinError
from opsin.data.corpus import Corpus
from opsin.data.costs import Costs, Kind
from opsin.data.example import Preparation
from opsin.data.plan import Budget, Pack


@dataclass(frozen=True)
class Place:
    """Where a sample lies in training the first time: its pack among all, its step, both from 0."""

    index: int
    step: int
    pack: Pack


@dataclass(frozen=True)
class SourceView:
    """The samples of one source, and how often (int64) the packs of the whole training hold each of them.

    Where there are no packs, every sample counts once.
    """

    name: str
    costs: Costs
    times: np.ndarray

    @property
    def samples(self) -> int:
        """How many there are."""
        return len(self.costs)

    @property
    def drawn(self) -> int:
        """How many the packs hold, each as often as they do."""
        return int(self.times.sum())

    @property
    def tokens(self) -> int:
        """Of what is drawn."""
        return int((self.times * self.costs.tokens).sum())

    @property
    def kinds(self) -> dict[Kind, int]:
        """How many samples there are of each kind."""
        return self.costs.by_kind()


@dataclass(frozen=True)
class StageView:
    """One stage, or a file by itself as a model sees it: then there is no budget, and there are no steps.

    `patch` is the side of an encoder's patch in pixels, `steps` are the packs of every optimiser step. `refused` are
    records that cannot be used; `dropped` and `shortened` is what the length policy did, a line for every sample;
    `notes` count what else was left out or changed; `chosen` are the samples to show.
    """

    name: str
    examples: Corpus
    patch: int
    budget: Budget | None = None
    steps: Sequence[Sequence[Pack]] = ()
    refused: Sequence[str] = ()
    dropped: Sequence[str] = ()
    shortened: Sequence[str] = ()
    notes: Sequence[str] = ()
    chosen: Sequence[int] = ()

    @property
    def prepare(self) -> Preparation:
        """How the samples are prepared."""
        return self.examples.preparation

    @cached_property
    def costs(self) -> Costs:
        """Of all samples."""
        return self.examples.costs

    @cached_property
    def packs(self) -> list[Pack]:
        """Every pack, in the order of training."""
        return [pack for step in self.steps for pack in step]

    @property
    def tokens(self) -> int:
        """Of all samples, once."""
        return int(self.costs.tokens.sum())

    @property
    def visual(self) -> int:
        """Visual ones of `tokens`."""
        return int(self.costs.visual.sum())

    @property
    def learned(self) -> int:
        """Supervised ones of `tokens`."""
        return int(self.costs.supervised.sum())

    @property
    def left_out(self) -> dict[str, Sequence[str]]:
        """What is not used as it is, by what happened to it: a line for every sample."""
        found = {"Refused": self.refused, "Dropped": self.dropped, "Shortened": self.shortened}
        return {name: lines for name, lines in found.items() if lines}

    def fill(self) -> list[float]:
        """For every pack, the share of its token budget that is taken."""
        return [] if self.budget is None else [pack.tokens / self.budget.tokens for pack in self.packs]

    def patch_fill(self) -> list[float]:
        """For every pack, the share of its patch budget that is taken."""
        return [] if self.budget is None else [pack.patches / self.budget.patches for pack in self.packs]

    def sources(self) -> list[SourceView]:
        """The sources by name; a stream has many parts of each."""
        held = [sample for pack in self.packs for sample in pack.samples]
        times = np.bincount(held, minlength=len(self.costs)) if held else np.ones(len(self.costs), dtype=np.int64)
        found: dict[str, list[np.ndarray]] = {}
        for number, part in enumerate(self.examples.parts):
            first = self.examples.first(number)
            found.setdefault(part.name, []).append(np.arange(first, first + len(part)))
        own = {name: np.concatenate(samples) for name, samples in found.items()}
        return [SourceView(name, self.costs.take(samples), times[samples]) for name, samples in own.items()]

    def place(self, sample: int) -> Place | None:
        """Where a sample lies first, if it does."""
        index = 0
        for step, packs in enumerate(self.steps):
            for pack in packs:
                if sample in pack.samples:
                    return Place(index, step, pack)
                index += 1
        return None


def varied(examples: Corpus, most: int) -> list[int]:
    """At most `most` samples, in order: of every source and kind as many as of any other, as far as there are."""
    groups: dict[tuple[str, int], list[np.ndarray]] = {}
    for number, part in enumerate(examples.parts):
        for kind in np.unique(part.costs.kinds).tolist():
            own = examples.first(number) + np.flatnonzero(part.costs.kinds == kind)
            groups.setdefault((part.name, kind), []).append(own)
    samples = [np.concatenate(parts) for parts in groups.values()]
    shown = [0] * len(samples)
    for place in spread(len(samples), most):
        shown[place] = 1
    while sum(shown) < min(most, sum(map(len, samples))):
        rest = [place for place, own in enumerate(samples) if shown[place] < len(own)]
        shown[min(rest, key=lambda place: shown[place])] += 1
    return sorted(int(own[i]) for own, count in zip(samples, shown, strict=True) for i in spread(len(own), count))


def spread(count: int, most: int) -> list[int]:
    """At most `most` of so many samples, spread evenly over them."""
    return [i * count // most for i in range(most)] if count > most else list(range(count))


def named(examples: Corpus, ids: Sequence[str]) -> list[int]:
    """Every sample that has one of these ids, in the order of the ids."""
    return [index for wanted in ids for index, known in enumerate(examples.ids()) if known == wanted]


def check_found(known: set[str], ids: Sequence[str]) -> None:
    """Say which ids are not among the known ones.

    Raises:
        OpsinError: there are some.
    """
    missing = [wanted for wanted in dict.fromkeys(ids) if wanted not in known]
    if missing:
        near = get_close_matches(missing[0], known, n=1)
        example = f" such as {min(known)!r}" if known else ""
        hint = f"did you mean {near[0]!r}?" if near else f"there are {len(known):,} ids{example}"
        raise OpsinError(f"no sample has the id {', '.join(map(repr, missing))}; {hint}")
