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
    """

    max_cost: float | None
    max_requests: int | None
    spent: Usage
    requests: int
    currency: str = "USD"
    reserved: float = 0.0
    """Cost put aside for the requests that are under way."""
    under_way: int = 0
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
            if self.max_cost is None or self.spent.cost + self.reserved + most.cost <= self.max_cost + ROUNDING:
                self.requests += 1
                self.reserved += most.cost
                self.under_way += 1
                return
            if not self.under_way:
                raise BudgetError(
                    f"{self.spent.cost:,.4f} of max_cost={self.max_cost:,.4f} {self.currency} are spent in this "
                    f"directory, and the next request may cost {most.cost:,.4f}; raise max_cost to go on from here"
                )
            self._settled.clear()
            await self._settled.wait()

    def book(self, most: Usage, used: Usage) -> None:
        """A request is done that `most` was put aside for, and has used so much."""
        self.under_way -= 1
        self.reserved = self.reserved - most.cost if self.under_way else 0.0
        self.spent = self.spent + used
        self._settled.set()

    def take_back(self, most: Usage) -> None:
        """A request that was counted, but not sent."""
        self.requests -= 1
        self.book(most, Usage(0, 0))
