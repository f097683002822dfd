"""Processes that do one thing together: which of them this one is, and how they agree."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Protocol


def is_first() -> bool:
    """Of all processes that `torchrun` has started, this one is to speak."""
    return os.environ.get("RANK", "0") == "0"


class Ranks(Protocol):
    """Processes numbered from 0 to `size - 1`, of which this one is `rank`. Every call is made by all of them."""

    @property
    def rank(self) -> int:
        """This process."""
        ...

    @property
    def size(self) -> int:
        """How many there are."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """What each rank gave, in their order; plain values only (numbers, texts, lists, dicts, None).

        Raises:
            TrainError: a rank did not answer in time, or is gone.
        """
        ...

    def barrier(self) -> None:
        """Return when all ranks have come here.

        Raises:
            TrainError: a rank did not answer in time, or is gone.
        """
        ...


@dataclass(frozen=True)
class Alone:
    """One process: nobody to wait for."""

    rank: int = 0
    size: int = 1

    def gather(self, value: Any) -> list[Any]:
        """The value itself."""
        return [value]

    def barrier(self) -> None:
        """Nothing to wait for."""


ALONE = Alone()
