"""A hard budget: what a request may cost is put aside before it is sent, and what it did cost is booked after."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from opsin.core.errors import BudgetError
from opsin.synthesize.request import Usage

ROUNDING = 1e-9
"""Sums of costs are exact to so much."""


@dataclass
class Budget:
    """Money and requests of one output directory, over all of its runs.

    `spent` and `requests` begin with what the ledger knows; requests whose answers were lost count as if they had cost
    all that was put aside for them.

    An endpoint may bill more than the most that a request was reckoned to cost (hidden reasoning beyond max_tokens,
    pictures of more tokens than the teacher says). So requests go one by one until the first answer, and as much more
    is put aside for each as the worst bill was over what was reckoned.
    """

    max_cost: float | None
    max_requests: int | None
    spent: Usage
    requests: int
    currency: str = "USD"
    excess: float | None = None
    """What an answer has cost over what was reckoned for it, at most; nothing before the first answer."""
    under_way: int = 0
    _most: float = 0.0
    """Reckoned for the requests that are under way."""
    _settled: asyncio.Event = field(default_factory=asyncio.Event)

    async def reserve(self, most: Usage) -> None:
        """Put aside what the next request costs at most, and count it.

        If it does not fit, it waits for requests under way, which mostly cost less than was put aside for them.

        Raises:
            BudgetError: it does not fit though nothing is under way.
        """
        while True:
            if self.max_requests is not None and self.requests >= self.max_requests:
                raise BudgetError(
                    f"{self.requests:,} requests were sent from this directory, all of its max_requests="
                    f"{self.max_requests:,}; raise it to go on from here"
                )
            if self._fits(most.cost):
                self.requests += 1
                self._most += most.cost
                self.under_way += 1
                return
            if not self.under_way:
                raise BudgetError(self._told(most.cost))
            self._settled.clear()
            await self._settled.wait()

    @property
    def reserved(self) -> float:
        """Cost put aside for the requests that are under way."""
        return self._most + self.under_way * (self.excess or 0.0)

    def _fits(self, cost: float) -> bool:
        if self.max_cost is None:
            return True
        if cost and self.under_way and self.excess is None:
            return False
        return self.spent.cost + self.reserved + cost + (self.excess or 0.0) <= self.max_cost + ROUNDING

    def _told(self, cost: float) -> str:
        excess = f" (bills here were up to {self.excess:,.4f} over what max_tokens allows)" if self.excess else ""
        return (
            f"{self.spent.cost:,.4f} of max_cost={self.max_cost:,.4f} {self.currency} are spent in this directory, and "
            f"the next request may cost {cost + (self.excess or 0.0):,.4f}{excess}; raise max_cost to go on from here"
        )

    def book(self, most: Usage, used: Usage, *, answered: bool = True) -> None:
        """A request is done that `most` was reckoned for, and has used so much."""
        self.under_way -= 1
        self._most = self._most - most.cost if self.under_way else 0.0
        self.spent = self.spent + used
        if answered:
            self.excess = max(self.excess or 0.0, used.cost - most.cost)
        self._settled.set()

    def lost(self, most: Usage) -> Usage:
        """What counts as used by a request whose answer was lost: all that was put aside for it."""
        return most + Usage(0, 0, self.excess or 0.0)

    def take_back(self, most: Usage) -> None:
        """A request that was counted, but not sent."""
        self.requests -= 1
        self.book(most, Usage(0, 0), answered=False)
