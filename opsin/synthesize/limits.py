"""Requests and tokens per minute, and the pauses that an endpoint asks for: when the next request may begin."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
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
    """A turn: when it was, and the tokens of its request, as expected and then as they were."""

    at: float
    tokens: float


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
        self._nap = nap
        self._clock = clock
        self._paused_until = 0.0
        self._spread = 0.0
        self.waiting = 0
        """Requests that wait for their turn."""

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

    async def turn(self, tokens: float) -> Taken:
        """Wait until a request that is expected to take so many tokens may begin."""
        now = self._clock()
        start = now
        if self._requests is not None:
            start = self._requests.take(1, now)
        if self._tokens is not None:
            start = max(start, self._tokens.take(tokens, now))
        self.waiting += 1
        try:
            if (wait := start - now) > 0:
                await self._nap(wait)
            await self.pause()
            return await self._fits(tokens)
        finally:
            self.waiting -= 1

    async def _fits(self, tokens: float) -> Taken:
        """Wait until the last minute has room; shares that were given back let requests come closer than it has."""
        while self._tokens is not None:
            now = self._clock()
            while self._minute and self._minute[0].at + SECONDS <= now + ROUNDING:
                self._minute.popleft()
            if not self._minute or sum(one.tokens for one in self._minute) + tokens <= self._tokens.per_minute:
                break
            await self._nap(self._minute[0].at + SECONDS - now)
        taken = Taken(self._clock(), tokens)
        if self._tokens is not None:
            self._minute.append(taken)
        return taken

    async def pause(self) -> None:
        """Wait until no pause is on; one may begin, or be prolonged, meanwhile."""
        while self._paused_until > self._clock():
            await self._nap(self.paused_for + random.uniform(0.0, self._spread))

    def correct(self, taken: Taken, tokens: float) -> None:
        """The request of that turn has taken so many tokens."""
        if self._tokens is not None:
            self._tokens.correct(tokens - taken.tokens)
            taken.tokens = tokens
