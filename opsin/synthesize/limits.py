"""Requests and tokens per minute, and the pauses that an endpoint asks for: when the next request may begin."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

SECONDS = 60.0
PAUSE_JITTER = 0.1
"""Share of a pause over which the requests that it held back begin."""


@dataclass
class _Lane:
    """So much per minute, evenly: what takes `amount` keeps the next one waiting for its share of the minute.

    Even spacing never has more than `per_minute` in any minute, and needs no memory of the last one.
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

    async def turn(self, tokens: float) -> None:
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
        finally:
            self.waiting -= 1

    async def pause(self) -> None:
        """Wait until no pause is on; one may begin, or be prolonged, meanwhile."""
        while self._paused_until > self._clock():
            await self._nap(self.paused_for + random.uniform(0.0, self._spread))

    def correct(self, tokens: float) -> None:
        """A request has taken so many tokens more than was expected of it."""
        if self._tokens is not None:
            self._tokens.correct(tokens)
