"""How much of each source an epoch takes, and which samples: pure functions of (sizes, seed, epoch)."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

WHOLE = 1e-6
"""How far shares that should sum to 1 may be from it."""

MOST = 10**8
"""Samples of an epoch; its plan is held in memory, which takes some 100 bytes for each of them."""


class Portion(BaseModel):
    """How much of a source an epoch takes; by default every sample once. At most one of:

    - `weight`: how often each sample is seen in an epoch: 2 is twice, 0.5 every other sample
    - `number`: so many samples
    - `share`: this share of the epoch's samples (0.25: one of four comes from this source)

    `pick` says which, where that is not all of them: `random` goes through all of them in a shuffled order, one epoch
    after the other, so that over epochs all are seen equally often; `first` and `last` take the same ones every time.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)
    weight: float | None = Field(default=None, gt=0, le=1000)
    number: int | None = Field(default=None, ge=1, le=MOST)
    share: float | None = Field(default=None, gt=0, le=1)
    pick: Literal["random", "first", "last"] = "random"

    @model_validator(mode="after")
    def _one_amount(self) -> Portion:
        given = [key for key in ("weight", "number", "share") if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(f"give one of weight, number and share, not {' and '.join(given)}")
        return self


def check_shares(portions: Sequence[Portion]) -> None:
    """Hold the shares of a mixture against each other.

    Raises:
        ValueError: together they are more than the whole, or leave nothing to, or not enough for, the others.
    """
    shares = [portion.share for portion in portions if portion.share is not None]
    total = sum(shares)
    if not shares:
        return
    if len(shares) == len(portions) and abs(total - 1) > WHOLE:
        raise ValueError(f"every source has a share, but together they are {total:g}; they must sum to 1")
    if len(shares) < len(portions) and total > 1 - WHOLE:
        raise ValueError(f"the shares are {total:g} together, which leaves nothing to the sources without one")


def needed(portions: Sequence[Portion]) -> list[bool]:
    """Which sources must have a sample: those that say how much is taken of them.

    Where one says a share all must, since a share is of what the others give.
    """
    shares = any(portion.share is not None for portion in portions)
    return [shares or portion.weight is not None or portion.number is not None for portion in portions]


def amounts(portions: Sequence[Portion], sizes: Sequence[int]) -> list[int]:
    """How many samples of each source an epoch takes; the sizes are how many there are, not 0 for those `needed`.

    Where every source has a share, the epoch is as long as it can be without seeing a sample twice. A share is at least
    one sample.

    Raises:
        ValueError: the shares do not go together (`check_shares`), or the epoch is too long to be planned.
    """
    check_shares(portions)
    fixed = [_fixed(portion, size) for portion, size in zip(portions, sizes, strict=True)]
    shares = sum(portion.share or 0.0 for portion in portions)
    if all(portion.share is not None for portion in portions):
        total = min((size / (portion.share or 1) for portion, size in zip(portions, sizes, strict=True)), default=0.0)
    else:
        total = sum(number for number in fixed if number is not None) / (1 - shares)
    taken = [
        max(1, math.floor((portion.share or 0) * total + 0.5)) if number is None else number
        for portion, number in zip(portions, fixed, strict=True)
    ]
    if sum(taken) > MOST:
        raise ValueError(
            f"an epoch of {sum(taken):,} samples is more than the {MOST:,} that can be planned at once; take less of "
            "the sources, or read them with order: stream"
        )
    return taken


def _fixed(portion: Portion, size: int) -> int | None:
    """The number of samples that does not depend on the other sources; None for a share."""
    if portion.share is not None:
        return None
    if portion.number is not None:
        return portion.number
    return max(1, math.floor((portion.weight or 1.0) * size + 0.5)) if portion.weight is not None else size


def draw(portion: Portion, name: str, size: int, amount: int, *, seed: int, epoch: int) -> np.ndarray:
    """The samples (int64, `amount` of 0 .. size - 1) that an epoch takes of a source.

    No sample is there twice before every one is there once.
    """
    turn = np.arange(amount, dtype=np.int64)
    if portion.pick == "first" or amount == size:
        return turn % size
    if portion.pick == "last":
        return (size - amount + turn) % size
    # The order depends on the source's name, not on its place in the list, so that adding a source changes no other.
    order = np.random.default_rng([seed, zlib.crc32(name.encode())]).permutation(size)
    return order[(epoch * amount + turn) % size].astype(np.int64)
