"""How many answers come in a second, lately."""

from __future__ import annotations

from collections import deque

SECONDS, ANSWERS = 30.0, 10
"""The answers that count: those of so many seconds, and of a slow teacher at least so many."""


class Rate:
    """Of answers; all times are seconds of one clock."""

    def __init__(self, begun: float) -> None:
        """`begun` is when asking began."""
        self._from = begun
        self._times: deque[float] = deque()

    def add(self, now: float) -> None:
        """An answer came."""
        self._times.append(now)

    def per_second(self, now: float) -> float:
        """Answers a second."""
        while len(self._times) > ANSWERS and self._times[0] < now - SECONDS:
            self._from = self._times.popleft()
        return len(self._times) / max(now - self._from, 1e-3)
