"""What a stage shows of its data: what its packs hold of its sources, what was refused, and the chosen samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property

import numpy as np

from opsin.core.errors import OpsinError
from opsin.data.corpus import Corpus
from opsin.data.example import Preparation
from opsin.data.held import Held
from opsin.data.plan import Budget, Pack


@dataclass(frozen=True)
class Place:
    """Where a sample lies in training the first time: its pack among all, its step, both from 0."""

    index: int
    step: int
    pack: Pack


@dataclass(frozen=True)
class StageView:
    """One stage, or a file by itself as a model sees it: then there is no budget, and there are no steps.

    `patch` is the side of an encoder's patch in pixels, `steps` are the packs of every optimiser step, of a stream
    those of the first of `all_steps`; `epoch` is how many samples an epoch takes, None of a stream. `refused` are
    records that cannot be used; `dropped` and `shortened` is what the length policy did, a line for every sample;
    `notes` count what else was left out or changed; `chosen` are the samples to show.
    """

    name: str
    examples: Corpus
    patch: int
    budget: Budget | None = None
    steps: Sequence[Sequence[Pack]] = ()
    all_steps: int = 0
    epoch: int | None = None
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
    def packs(self) -> list[Pack]:
        """Every pack, in the order of training."""
        return [pack for step in self.steps for pack in step]

    @cached_property
    def held(self) -> Held:
        """What the packs hold; where there are none every sample counts once."""
        costs = self.examples.costs
        return Held.by(self.packs, costs) if self.packs else Held.once(costs)

    @property
    def sources(self) -> dict[str, Held]:
        """What the packs hold of each source, by its name."""
        return self.held.by_source(self.examples)

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

    def place(self, sample: int) -> Place | None:
        """Where a sample lies first, if it does."""
        index = 0
        for step, packs in enumerate(self.steps):
            for pack in packs:
                if sample in pack.samples:
                    return Place(index, step, pack)
                index += 1
        return None


def varied(stage: StageView, most: int) -> list[int]:
    """At most `most` samples that packs hold, in order: of every source and kind as many as of any other, as far as
    there are."""
    examples, times = stage.examples, stage.held.times
    groups: dict[tuple[str, int], list[np.ndarray]] = {}
    for number, part in enumerate(examples.parts):
        first = examples.first(number)
        held = times[first : first + len(part)] > 0
        for kind in np.unique(part.costs.kinds[held]).tolist():
            own = first + np.flatnonzero(held & (part.costs.kinds == kind))
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
