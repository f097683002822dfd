"""What a stage shows of its data: examples, the packs they lie in, what was refused, and the chosen samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from opsin.core.errors import OpsinError
from opsin.data.corpus import Corpus
from opsin.data.example import Preparation
from opsin.data.plan import Budget, Pack


@dataclass(frozen=True)
class Place:
    """Where a sample lies in training the first time: its pack among all, its step, both from 0."""

    index: int
    step: int
    pack: Pack


@dataclass(frozen=True)
class StageView:
    """One stage. `patch` is the side of an encoder's patch in pixels, `steps` are the packs of every optimiser step.

    `refused` are records that cannot be used; `dropped` and `shortened` is what the length policy did, a line for every
    sample; `chosen` are the samples to show.
    """

    name: str
    examples: Corpus
    patch: int
    budget: Budget
    steps: Sequence[Sequence[Pack]]
    refused: Sequence[str] = ()
    dropped: Sequence[str] = ()
    shortened: Sequence[str] = ()
    chosen: Sequence[int] = ()

    @property
    def prepare(self) -> Preparation:
        """How the samples are prepared."""
        return self.examples.preparation

    @property
    def packs(self) -> list[Pack]:
        """Every pack, in the order of training."""
        return [pack for step in self.steps for pack in step]

    @property
    def tokens(self) -> int:
        """Of all samples, once."""
        return int(self.examples.costs.tokens.sum())

    @property
    def visual(self) -> int:
        """Visual ones of `tokens`."""
        return int(self.examples.costs.visual.sum())

    @property
    def learned(self) -> int:
        """Supervised ones of `tokens`."""
        return int(self.examples.costs.supervised.sum())

    def fill(self) -> list[float]:
        """For every pack, the share of its token budget that is taken."""
        return [pack.tokens / self.budget.tokens for pack in self.packs]

    def place(self, sample: int) -> Place | None:
        """Where a sample lies first, if it does."""
        index = 0
        for step, packs in enumerate(self.steps):
            for pack in packs:
                if sample in pack.samples:
                    return Place(index, step, pack)
                index += 1
        return None


def spread(count: int, most: int) -> list[int]:
    """At most `most` of so many samples, spread evenly over them."""
    return [i * count // most for i in range(most)] if count > most else list(range(count))


def named(examples: Corpus, ids: Sequence[str]) -> list[int]:
    """Every sample that has one of these ids, in the order of the ids."""
    return [index for wanted in ids for index, known in enumerate(examples.ids()) if known == wanted]


def check_found(stages: Sequence[StageView], ids: Sequence[str]) -> None:
    """Say which ids no stage has.

    Raises:
        OpsinError: there are some.
    """
    known = {name for stage in stages for name in stage.examples.ids()}
    missing = [wanted for wanted in dict.fromkeys(ids) if wanted not in known]
    if missing:
        near = get_close_matches(missing[0], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the {len(known):,} samples have ids such as {min(known)!r}"
        raise OpsinError(f"no sample has the id {', '.join(map(repr, missing))}; {hint}")
