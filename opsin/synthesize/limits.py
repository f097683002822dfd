"""Requests and tokens per minute, and the pauses that an endpoint asks for: when the next request may begin."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

SECONDS = 60.0
ROUNDING = 1e-3
"""Seconds that a clock may be short of a minute: less than that could be no time to sleep at all."""
PAUSE_JITTER = 0.1
"""Share of a pause over which the requests that it held back begin."""


@dataclass
class _Lane:
    """So much per minute, evenly: what takes `amount` keeps the next one waiting for its share of the minute.

    By itself it has no more than `per_minute` in any minute; what is given back later may fall into another one.
    """

    per_minute: float
    free_at: float = 0.0

    def take(self, amount: float, now: float) -> float:
        """Take a turn; returns when it is."""
        turn = max(now, self.free_at)
        self.free_at = turn + amount * SECONDS / self.per_minute
        return turn

    def correct(self, amount: float) -> None:
        """Add what was taken beyond the amount that was expected, or give back what was not."""
        self.free_at += amount * SECONDS / self.per_minute


@dataclass(eq=False)
class Taken:
    """When a request began, and its tokens, as expected and then as they were."""

    at: float
    tokens: float
    is_over: bool = False
    """Whether it began more than a minute ago."""


class Pace:
    """Says when a request may begin; turns are given in the order in which they are asked for."""

    def __init__(
        self,
        requests_per_minute: float | None,
        tokens_per_minute: float | None,
        *,
        nap: Callable[[float], Awaitable[None]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._requests = None if requests_per_minute is None else _Lane(requests_per_minute)
        self._tokens = None if tokens_per_minute is None else _Lane(tokens_per_minute)
        self._minute: deque[Taken] = deque()
        self._tokens_of_minute = 0.0
        self._nap = nap
        self._clock = clock
        self._paused_until = 0.0
        self._spread = 0.0
        self.waiting = 0
        """Requests that wait for their turn, or to begin."""
        self._door = asyncio.Lock()

    @property
    def paused_for(self) -> float:
        """Seconds until the endpoint may be asked again."""
        return max(0.0, self._paused_until - self._clock())

    def hold(self, seconds: float) -> None:
        """Let no request begin for so long: the endpoint asked one of them to wait, and would ask the others."""
        until = self._clock() + seconds
        if until > self._paused_until:
            self._paused_until = until
            self._spread = seconds * PAUSE_JITTER

    async def turn(self, tokens: float) -> None:
        """Wait for the turn of a request that is expected to take so many tokens: turns are spread over the minute."""
        now = self._clock()
        start = now
        if self._requests is not None:
            start = self._requests.take(1, now)
        if self._tokens is not None:
            start = max(start, self._tokens.take(tokens, now))
        if (wait := start - now) > 0:
            with self._one_waits():
                await self._nap(wait)

    async def begin(self, tokens: float) -> Taken:
        """Wait until no pause is on and the last minute has room; the request must be sent at once then.

        Whatever else requests have waited for, a pause or a slot, may have brought those of many turns together.
        """
        with self._one_waits():
            await self.pause()
            async with self._door:
                while (wait := self._until_room(tokens)) > 0:
                    await self._nap(wait)
                    await self.pause()
        taken = Taken(self._clock(), tokens)
        if self._requests is not None or self._tokens is not None:
            self._minute.append(taken)
            self._tokens_of_minute += tokens
        return taken

    def _until_room(self, tokens: float) -> float:
        """Seconds until the request that began first in the last minute is over, if there is no room before."""
        now = self._clock()
        while self._minute and self._minute[0].at + SECONDS <= now + ROUNDING:
            over = self._minute.popleft()
            over.is_over = True
            self._tokens_of_minute -= over.tokens
        full = self._requests is not None and len(self._minute) + 1 > self._requests.per_minute
        full |= self._tokens is not None and self._tokens_of_minute + tokens > self._tokens.per_minute
        return self._minute[0].at + SECONDS - now if full and self._minute else 0.0

    @contextmanager
    def _one_waits(self) -> Iterator[None]:
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1

    async def pause(self) -> None:
        """Wait until no pause is on; one may begin, or be prolonged, meanwhile."""
        while self._paused_until > self._clock():
            await self._nap(self.paused_for + random.uniform(0.0, self._spread))

    def correct(self, taken: Taken, tokens: float) -> None:
        """A request has taken so many tokens."""
        if self._tokens is not None:
            self._tokens.correct(tokens - taken.tokens)
            if not taken.is_over:
                self._tokens_of_minute += tokens - taken.tokens
            taken.tokens = tokens
