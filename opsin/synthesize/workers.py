"""A bounded number of workers that go through items until all are done, a budget is used up, or the run shall end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from opsin.core.errors import StoppedError
from opsin.core.stop import Stop
from opsin.synthesize.engine import Engine, most_noted

Item = TypeVar("Item")

GRACE_SECONDS = 30.0
"""How long a run that was asked to end waits for the answers that are under way."""
LOOK_SECONDS = 0.1
STAGGER_SECONDS = 0.002
"""Between the beginnings of two workers: all at once, their answers would come all at once, and again and again."""


def workers_for(concurrency: int) -> int:
    """So many that all slots are taken while some of the workers check answers."""
    return most_noted(concurrency) + max(2, concurrency // 4)


async def work_through(
    engine: Engine,
    items: Iterable[Item],
    make: Callable[[Item], Awaitable[None]],
    *,
    workers: int,
    stop: Stop | None = None,
    grace_seconds: float = GRACE_SECONDS,
) -> None:
    """Make something of each item, `workers` at a time, in order; items are drawn only when there is a worker for them.

    When a signal asks the run to end, no request is begun any more, those under way have `grace_seconds` to come into
    the ledger, and this returns; what is not done then is found there, or asked for, by the next run. When `make`
    raises, the workers finish the items they have, and the first error is raised.
    """
    remaining = iter(items)
    ended = False

    async def work(number: int) -> None:
        await asyncio.sleep(number * STAGGER_SECONDS)
        for item in remaining:
            await make(item)
            if ended:
                return

    tasks = {asyncio.create_task(work(number)) for number in range(workers)}
    first: BaseException | None = None
    deadline = float("inf")
    try:
        while tasks and time.monotonic() < deadline:
            done, tasks = await asyncio.wait(tasks, timeout=LOOK_SECONDS, return_when=asyncio.FIRST_EXCEPTION)
            errors = [error for task in done if (error := task.exception()) is not None]
            first = first or next(iter(errors), None)
            ended = ended or first is not None
            if stop is not None and stop.wanted is not None and deadline == float("inf"):
                ended = True
                engine.end(StoppedError("the run was asked to end", stop.wanted))
                deadline = time.monotonic() + grace_seconds
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if first is not None and not isinstance(first, StoppedError):
        raise first
