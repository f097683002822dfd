"""The plan: which samples go into which pack, as a pure function of (costs, budgets, seed, epoch).

A pack has a budget of tokens, which the language model works on, and one of patches, which the encoder does. Nothing
here opens a picture. Resuming a run is one integer, the index of the next pack.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from opsin.data.costs import Costs

WINDOW = 256
"""Samples at hand: enough to fill packs to 99.9%, few enough to keep the order of the shuffle."""


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


def plan_epoch(costs: Costs, budget: Budget, *, seed: int, epoch: int, samples: np.ndarray | None = None) -> Plan:
    """Shuffle, then fill packs up to both budgets, best fit over a window.

    `samples` are those that the epoch takes, by default each once.

    Raises:
        ValueError: a sample is over a budget, which `opsin.data.policy` decides about before.
    """
    taken = np.arange(len(costs)) if samples is None else samples
    chosen = _fitting(costs, taken, budget)
    order = np.random.default_rng([seed, epoch]).permutation(len(taken))
    packs = list(_packs(order, chosen, budget))
    # The last packs of the epoch are the emptiest; shuffling spreads them.
    shuffled = np.random.default_rng([seed, epoch, 1]).permutation(len(packs))
    return Plan(tuple(_pack(packs[i], taken, chosen) for i in shuffled.tolist()), budget)


def plan_batches(
    costs: Costs, budget: Budget, size: int, *, seed: int, epoch: int, samples: np.ndarray | None = None
) -> tuple[tuple[Pack, ...], ...]:
    """Shuffle, then cut into batches of `size` samples, each filled into packs by itself; the last batch has the rest.

    Which samples a batch holds does not depend on the budget, which decides about the number of its packs alone.

    Raises:
        ValueError: a sample is over a budget, which `opsin.data.policy` decides about before.
    """
    taken = np.arange(len(costs)) if samples is None else samples
    chosen = _fitting(costs, taken, budget)
    order = np.random.default_rng([seed, epoch]).permutation(len(taken))
    batches = (order[start : start + size] for start in range(0, len(order), size))
    return tuple(tuple(_pack(places, taken, chosen) for places in _packs(batch, chosen, budget)) for batch in batches)


def _fitting(costs: Costs, taken: np.ndarray, budget: Budget) -> Costs:
    """What these samples cost, each within the budget."""
    chosen = costs.take(taken)
    if len(chosen) and (chosen.tokens.max() > budget.tokens or chosen.patches.max() > budget.patches):
        raise ValueError(f"a sample has {chosen.tokens.max()} tokens or {chosen.patches.max()} patches; {budget}")
    return chosen


def _pack(places: Sequence[int], taken: np.ndarray, chosen: Costs) -> Pack:
    """The pack of what stands at these places of the epoch."""
    return Pack(
        tuple(taken[places].tolist()),
        tokens=int(chosen.tokens[places].sum()),
        patches=int(chosen.patches[places].sum()),
        supervised=int(chosen.supervised[places].sum()),
    )


def _packs(order: np.ndarray, costs: Costs, budget: Budget) -> Iterator[list[int]]:
    filler = Filler(budget)
    next_one = 0
    while next_one < len(order) or len(filler):
        coming = order[next_one : next_one + WINDOW - len(filler)]
        filler.add(coming, costs.tokens[coming], costs.patches[coming])
        next_one += len(coming)
        yield filler.pack()


def rank_share(step: Sequence[Pack], rank: int, ranks: int) -> tuple[Pack, ...]:
    """The packs of an optimiser step that one of its ranks makes, in their order; some ranks may have one fewer.

    All packs are about as long, but their pictures differ: in every round the pack with the most patches goes to the
    rank that has the fewest so far.
    """
    loads = [0] * ranks
    own = []
    costliest = sorted(range(len(step)), key=lambda place: (-step[place].patches, place))
    for start in range(0, len(step), ranks):
        idlest = sorted(range(ranks), key=lambda one: (loads[one], one))
        for place, one in zip(costliest[start : start + ranks], idlest, strict=False):
            loads[one] += step[place].patches
            own += [place] if one == rank else []
    return tuple(step[place] for place in sorted(own))


class Filler:
    """Fills packs from samples in the order in which they come, with `WINDOW` of them at hand.

    A pack begins with the samples that came first, and so is as mixed as they are; the last ones are those two of the
    window that leave the least room. (Longest first would fill packs as well, but sort them by length, and so by kind.)
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._samples = np.empty(0, dtype=np.int64)
        self._tokens = np.empty(0, dtype=np.int64)
        self._patches = np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        """Samples at hand."""
        return len(self._samples)

    @property
    def oldest(self) -> int:
        """The lowest number of a sample at hand; there is one."""
        return int(self._samples.min())

    def add(self, samples: np.ndarray, tokens: np.ndarray, patches: np.ndarray) -> None:
        """Samples that come next, with what each costs; none may be over the budget."""
        self._samples = np.concatenate([self._samples, samples])
        self._tokens = np.concatenate([self._tokens, tokens])
        self._patches = np.concatenate([self._patches, patches])

    def pack(self) -> list[int]:
        """The next pack, of what is at hand; at least the sample that came first is in it."""
        taken = self._first()
        free = np.ones(len(self), dtype=bool)
        free[:taken] = False
        room = [
            self._budget.tokens - int(self._tokens[:taken].sum()),
            self._budget.patches - int(self._patches[:taken].sum()),
        ]
        chosen = list(range(taken))
        while last := self._last(free, *room):
            free[last] = False
            room[0] -= int(self._tokens[last].sum())
            room[1] -= int(self._patches[last].sum())
            chosen += last
        packed: list[int] = self._samples[chosen].tolist()
        self._samples, self._tokens, self._patches = (x[free] for x in (self._samples, self._tokens, self._patches))
        return packed

    def _first(self) -> int:
        """How many samples are taken as they come: at least one, and leaving room for about two to choose."""
        tokens, patches = np.cumsum(self._tokens), np.cumsum(self._patches)
        left = self._budget.tokens - 2 * int(np.median(self._tokens))
        fitting = int(np.searchsorted(tokens, left, side="right"))
        return max(1, min(fitting, int(np.searchsorted(patches, self._budget.patches, side="right"))))

    def _last(self, free: np.ndarray, tokens: int, patches: int) -> list[int]:
        """The one or two samples at hand that fill so much room best; none if none fits."""
        fitting = np.flatnonzero(free & (self._tokens <= tokens) & (self._patches <= patches))
        if not len(fitting):
            return []
        order = fitting[np.argsort(self._tokens[fitting], kind="stable")]
        length, cost = self._tokens[order], self._patches[order]
        # For each sample the longest that fits beside it, of those before it in this order, so that pairs are distinct.
        beside = np.minimum(np.searchsorted(length, tokens - length, side="right"), np.arange(len(order))) - 1
        paired = (beside >= 0) & (cost + cost[beside] <= patches)
        together = length + np.where(paired, length[beside], 0)
        best = int(np.argmax(together))
        return [int(order[best]), int(order[beside[best]])] if paired[best] else [int(order[best])]
