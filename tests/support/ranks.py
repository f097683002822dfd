"""Two ranks as two threads of this process."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Result = TypeVar("Result")


class Two:
    """One of two ranks."""

    def __init__(self, rank: int, meeting: threading.Barrier, said: dict[int, Any]) -> None:
        self.rank, self.size = rank, 2
        self._meeting, self._said = meeting, said

    def gather(self, value: Any) -> list[Any]:
        """What both gave."""
        self._said[self.rank] = value
        self.barrier()
        values = [self._said[rank] for rank in range(2)]
        self.barrier()
        return values

    def barrier(self) -> None:
        """Wait for the other."""
        self._meeting.wait(timeout=20)


def by_two(work: Callable[[Two], Result]) -> list[Result]:
    """What each of two ranks makes of the same work, at the same time."""
    meeting, said = threading.Barrier(2), dict[int, Any]()
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda rank: work(Two(rank, meeting, said)), range(2)))
