"""The plan: which samples go into which pack, as a pure function of (lengths, budget, seed, epoch).

Nothing here opens a picture. Resuming a run is one integer, the index of the next pack.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from opsin.core.errors import DataError
from opsin.core.types import Example

WINDOW = 1024
"""Samples considered at once: large enough to fill packs, small enough to keep the shuffle's order."""


@dataclass(frozen=True, slots=True)
class Pack:
    """Indices of the samples of one pack, and what they cost."""

    samples: tuple[int, ...]
    tokens: int
    supervised: int


@dataclass(frozen=True, slots=True)
class Plan:
    """All packs of an epoch."""

    packs: tuple[Pack, ...]
    budget: int

    @property
    def tokens(self) -> int:
        """Tokens of the epoch."""
        return sum(pack.tokens for pack in self.packs)

    @property
    def supervised(self) -> int:
        """Supervised tokens of the epoch."""
        return sum(pack.supervised for pack in self.packs)

    @property
    def efficiency(self) -> float:
        """Share of the packs' budgets that holds tokens."""
        return self.tokens / (len(self.packs) * self.budget) if self.packs else 1.0


def plan_epoch(examples: Sequence[Example], budget: int, *, seed: int, epoch: int) -> Plan:
    """Shuffle, then fill packs of at most `budget` tokens, best fit over a window.

    Raises:
        DataError: a sample is longer than the budget; all such samples are named.
    """
    lengths = [example.num_tokens for example in examples]
    too_long = [i for i, length in enumerate(lengths) if length > budget]
    if too_long:
        raise DataError(
            [
                f"{examples[i].where or 'sample'}: ({examples[i].id}) {lengths[i]} tokens, more than the pack's budget "
                f"of {budget}; raise batch_tokens to at least {max(lengths)}, or shorten the sample"
                for i in too_long
            ]
        )
    order = np.random.default_rng([seed, epoch]).permutation(len(lengths))
    packs = []
    for start in range(0, len(order), WINDOW):
        packs += _fill([int(i) for i in order[start : start + WINDOW]], lengths, budget)
    # A window's last packs are the emptiest; shuffling spreads them.
    shuffled = np.random.default_rng([seed, epoch, 1]).permutation(len(packs))
    return Plan(tuple(_pack(packs[int(i)], examples) for i in shuffled), budget)


def _pack(samples: Sequence[int], examples: Sequence[Example]) -> Pack:
    return Pack(
        tuple(samples),
        tokens=sum(examples[i].num_tokens for i in samples),
        supervised=sum(examples[i].num_supervised for i in samples),
    )


def _fill(samples: Sequence[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Best fit in the shuffled order: each sample into the pack with the least room that still takes it.

    Not longest first: that fills packs a little better, but sorts them by length, and so by kind of sample.
    """
    packs: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, pack), sorted
    for i in samples:
        at = bisect.bisect_left(room, (lengths[i], -1))
        if at < len(room):
            free, pack = room.pop(at)
        else:
            free, pack = budget, len(packs)
            packs.append([])
        packs[pack].append(i)
        bisect.insort(room, (free - lengths[i], pack))
    return packs
