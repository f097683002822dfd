"""The plan: which samples go into which pack, as a pure function of (costs, budgets, seed, epoch).

A pack has a budget of tokens, which the language model works on, and one of patches, which the encoder does. Nothing
here opens a picture. Resuming a run is one integer, the index of the next pack.
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
class Budget:
    """The most that a pack holds."""

    tokens: int
    patches: int


@dataclass(frozen=True, slots=True)
class Pack:
    """Indices of the samples of one pack, and what they cost."""

    samples: tuple[int, ...]
    tokens: int
    patches: int
    supervised: int


@dataclass(frozen=True, slots=True)
class Plan:
    """All packs of an epoch."""

    packs: tuple[Pack, ...]
    budget: Budget

    @property
    def tokens(self) -> int:
        """Tokens of the epoch."""
        return sum(pack.tokens for pack in self.packs)

    @property
    def supervised(self) -> int:
        """Supervised tokens of the epoch."""
        return sum(pack.supervised for pack in self.packs)

    @property
    def patches(self) -> int:
        """Encoder patches of the epoch."""
        return sum(pack.patches for pack in self.packs)

    @property
    def efficiency(self) -> float:
        """Share of the packs' token budgets that holds tokens."""
        return self.tokens / (len(self.packs) * self.budget.tokens) if self.packs else 1.0


def plan_epoch(examples: Sequence[Example], budget: Budget, *, seed: int, epoch: int) -> Plan:
    """Shuffle, then fill packs up to both budgets, best fit over a window.

    Raises:
        DataError: a sample is over a budget; all such samples are named.
    """
    costs = [(example.num_tokens, example.num_patches) for example in examples]
    _refuse_large(examples, costs, budget)
    order = np.random.default_rng([seed, epoch]).permutation(len(costs))
    packs = []
    for start in range(0, len(order), WINDOW):
        packs += _fill([int(i) for i in order[start : start + WINDOW]], costs, budget)
    # A window's last packs are the emptiest; shuffling spreads them.
    shuffled = np.random.default_rng([seed, epoch, 1]).permutation(len(packs))
    return Plan(tuple(_pack(packs[int(i)], examples) for i in shuffled), budget)


Cost = tuple[int, int]
"""Tokens and patches."""


def _refuse_large(examples: Sequence[Example], costs: Sequence[Cost], budget: Budget) -> None:
    most_tokens, most_patches = (max((cost[axis] for cost in costs), default=0) for axis in (0, 1))
    problems = []
    for example, (tokens, patches) in zip(examples, costs, strict=True):
        if tokens > budget.tokens:
            problems.append(
                f"{example.name} {tokens} tokens, more than the pack's budget of {budget.tokens}; raise batch_tokens "
                f"to at least {most_tokens}, or shorten the sample"
            )
        if patches > budget.patches:
            problems.append(
                f"{example.name} {patches} patches of {len(example.layouts)} pictures, more than the pack's budget of "
                f"{budget.patches}; raise batch_patches to at least {most_patches}, or show it fewer or smaller "
                "pictures"
            )
    if problems:
        raise DataError(problems)


def _pack(samples: Sequence[int], examples: Sequence[Example]) -> Pack:
    return Pack(
        tuple(samples),
        tokens=sum(examples[i].num_tokens for i in samples),
        patches=sum(examples[i].num_patches for i in samples),
        supervised=sum(examples[i].num_supervised for i in samples),
    )


def _fill(samples: Sequence[int], costs: Sequence[Cost], budget: Budget) -> list[list[int]]:
    """Best fit in the shuffled order: each sample into the pack with the least room for tokens that still takes it.

    Not longest first: that fills packs a little better, but sorts them by length, and so by kind of sample.
    """
    packs: list[list[int]] = []
    patch_room: list[int] = []
    room: list[tuple[int, int]] = []  # (free tokens, pack), sorted
    for i in samples:
        tokens, patches = costs[i]
        fitting = range(bisect.bisect_left(room, (tokens, -1)), len(room))
        at = next((at for at in fitting if patch_room[room[at][1]] >= patches), None)
        if at is not None:
            free, pack = room.pop(at)
        else:
            free, pack = budget.tokens, len(packs)
            packs.append([])
            patch_room.append(budget.patches)
        packs[pack].append(i)
        patch_room[pack] -= patches
        bisect.insort(room, (free - tokens, pack))
    return packs
