from __future__ import annotations

import asyncio
import random

import pytest

from opsin.core.errors import BudgetError
from opsin.synthesize.budget import Budget
from opsin.synthesize.request import Usage

MOST = Usage(100, 100, 1.0)


def test_a_request_that_might_cost_too_much_is_not_sent() -> None:
    async def run() -> None:
        budget = Budget(3.5, None, Usage(0, 0, 1.0), 7, "EUR")
        await budget.reserve(MOST)
        budget.book(MOST, Usage(1, 1, 1.0))
        await budget.reserve(MOST)
        budget.book(MOST, Usage(1, 1, 1.0))
        with pytest.raises(
            BudgetError, match=r"3\.0000 of max_cost=3\.5000 EUR are spent in this directory, and the next"
        ):
            await budget.reserve(MOST)

    asyncio.run(run())


def test_it_waits_for_those_under_way_so_that_the_money_is_really_used() -> None:
    async def run() -> None:
        budget = Budget(1.2, None, Usage(0, 0), 0)
        await budget.reserve(MOST)
        second = asyncio.create_task(budget.reserve(MOST))
        await asyncio.sleep(0)
        assert not second.done()
        budget.book(MOST, Usage(10, 10, 0.1))
        await second
        assert (budget.reserved, budget.spent.cost) == (1.0, 0.1)

    asyncio.run(run())


def test_requests_go_one_by_one_until_an_answer_shows_what_is_billed() -> None:
    async def run() -> None:
        budget = Budget(100.0, None, Usage(0, 0), 0)
        await budget.reserve(MOST)
        others = [asyncio.create_task(budget.reserve(MOST)) for _ in range(3)]
        await asyncio.sleep(0)
        assert not any(other.done() for other in others)
        budget.book(MOST, Usage(0, 0), answered=False)  # refused for now: that tells nothing
        await asyncio.sleep(0)
        assert sum(other.done() for other in others) == 1
        budget.book(MOST, Usage(0, 0))  # an answer, though of an endpoint that counts nothing
        await asyncio.gather(*others)
        budget.book(MOST, Usage(100, 900, 5.0))
        assert budget.reserved == 1.0 + 4.0  # of the one that is left: as reckoned, and as much more

    asyncio.run(run())


def test_the_number_of_requests_is_bounded_over_all_runs() -> None:
    async def run() -> None:
        budget = Budget(None, 2, Usage(0, 0), 1)
        await budget.reserve(MOST)
        with pytest.raises(BudgetError, match="2 requests were sent from this directory, all of its max_requests=2"):
            await budget.reserve(MOST)
        budget.take_back(MOST)
        await budget.reserve(MOST)

    asyncio.run(run())


@pytest.mark.parametrize("seed", range(20))
def test_it_is_never_exceeded_whatever_the_order(seed: int) -> None:
    draw = random.Random(seed)

    async def run() -> tuple[Budget, int]:
        budget = Budget(5.0, None, Usage(0, 0), 0)
        refused = 0

        async def ask() -> None:
            nonlocal refused
            most = Usage(1, 1, draw.uniform(0.1, 1.0))
            try:
                await budget.reserve(most)
            except BudgetError:
                refused += 1
                return
            await asyncio.sleep(draw.random() * 0.001)
            budget.book(most, Usage(1, 1, most.cost * draw.random()))
            assert budget.spent.cost + budget.reserved <= 5.0 + 1e-9

        await asyncio.gather(*(ask() for _ in range(60)))
        return budget, refused

    budget, refused = asyncio.run(run())
    assert refused
    assert 4.0 < budget.spent.cost <= 5.0
