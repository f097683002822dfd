"""The processes that train together: one to a device, each with its rank, as `torchrun` starts them.

What they say to each other about a step (counts, losses, a wish to stop) goes over gloo, even where tensors go over
NCCL: it can wait with a timeout, so a rank that is dead or hangs ends the run instead of hanging it.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from opsin.core.errors import LostRankError, OpsinError, TrainError
from opsin.core.ranks import ALONE, Ranks

Result = TypeVar("Result")

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What `torchrun` tells each process of itself."""


PLACE = re.compile(r"^\[[^]]*\] *")
"""Where in the source of gloo an error was raised."""

SAVING, PREPARING = 6, 144
"""How many times longer than for a step ranks wait for each other to write a checkpoint, or to read a corpus."""


@dataclass(frozen=True)
class World:
    """This process among all, and the device that it trains on; `group` is None for a process alone.

    `preparing` is the same world for work that may take hours on one rank while others wait, `saving` for a thread that
    saves. There a rank that is gone is noticed at once, too, but one that hangs only after long.
    """

    rank: int
    size: int
    device: torch.device
    group: Any = None
    saving: Ranks = ALONE
    preparing: Ranks = ALONE

    def gather(self, value: Any) -> list[Any]:
        """What each rank gave, in their order."""
        if self.group is None:
            return [value]
        # As JSON, since the collective of torch that takes objects would pickle them.
        own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        with answering():
            sizes = [torch.zeros(1, dtype=torch.long) for _ in range(self.size)]
            dist.all_gather(sizes, torch.tensor([len(own)]), group=self.group)
            longest = int(max(sizes))
            texts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
            dist.all_gather(texts, torch.nn.functional.pad(own, (0, longest - len(own))), group=self.group)
        return [json.loads(bytes(text[: int(size)].tolist())) for text, size in zip(texts, sizes, strict=True)]

    def barrier(self) -> None:
        """Return when all ranks have come here."""
        self.gather(None)

    def agree(self, error: OpsinError | None) -> None:
        """Raise this rank's error, or, if it has none, that of the first rank that has one.

        Raises:
            OpsinError: some rank has one.
        """
        _agree(self, error)

    def in_turn(self, work: Callable[[], Result]) -> Result:
        """What `work` gives, done by rank 0 first: the others find what it keeps on disk.

        Raises:
            OpsinError: it failed, on any rank.
        """
        result: list[Result] = []
        for turn in (True, False):
            error: OpsinError | None = None
            if (self.rank == 0) == turn:
                try:
                    result.append(work())
                except OpsinError as problem:
                    error = problem
            _agree(self.preparing, error)
        return result[0]


def _agree(ranks: Ranks, error: OpsinError | None) -> None:
    told = ranks.gather(None if error is None else f"{error}")
    if error is not None:
        raise error
    for rank, text in enumerate(told):
        if text is not None:
            raise TrainError(f"rank {rank} of {ranks.size} ended with: {text}")


def alone(device: str = "cpu") -> World:
    """The world of one process."""
    return World(0, 1, device_of(device))


@contextmanager
def answering() -> Iterator[None]:
    """Turn what a collective call raises when a rank does not answer into an error that says so.

    Raises:
        LostRankError: a rank is gone, or did not answer in time.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if not is_lost(error):
            raise
        reason = PLACE.sub("", str(error).splitlines()[0]).partition(". ")[0]
        raise LostRankError(f"another rank does not answer, so this one ends too ({reason})") from None


def is_lost(error: BaseException) -> bool:
    """The error comes from a collective call that could not be finished."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower() or "timed out" in str(error).lower()


def device_of(choice: str, local_rank: int = 0) -> torch.device:
    """Where to train: as the recipe says, by default on a CUDA device if there is one.

    Raises:
        TrainError: the recipe wants CUDA, and there is none for this rank.
    """
    if choice == "auto":
        choice = "cuda" if torch.cuda.is_available() else "cpu"
    if choice == "cuda":
        if not torch.cuda.is_available():
            raise TrainError("the recipe says device: cuda, but torch finds no CUDA device; use device: cpu or auto")
        if local_rank >= torch.cuda.device_count():
            raise TrainError(
                f"local rank {local_rank}, but {torch.cuda.device_count()} CUDA devices; start one process for each"
            )
        return torch.device("cuda", local_rank)
    return torch.device(choice)


@contextmanager
def joined(device: str, timeout: float) -> Iterator[World]:
    """The world that `torchrun` has started this process in, or a world of this process alone.

    Raises:
        TrainError: the variables of `torchrun` are not all there, its port is taken, or the other processes do not
            come in time.
    """
    if "WORLD_SIZE" not in os.environ:
        yield alone(device)
        return
    missing = [name for name in VARIABLES if name not in os.environ]
    if missing:
        are = "is" if len(missing) == 1 else "are"
        raise TrainError(f"WORLD_SIZE is set, but {', '.join(missing)} {are} not; start ranks with torchrun")
    own = device_of(device, int(os.environ["LOCAL_RANK"]))
    if own.type == "cuda":
        torch.cuda.set_device(own)
    wait = dt.timedelta(seconds=timeout)
    with answering(), _listening():
        dist.init_process_group("cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo", timeout=wait)
        control, saving, preparing = (
            dist.new_group(backend="gloo", timeout=wait * longer) for longer in (1, SAVING, PREPARING)
        )
    rank, size = dist.get_rank(), dist.get_world_size()
    world = World(rank, size, own, control)
    yield replace(world, saving=replace(world, group=saving), preparing=replace(world, group=preparing))
    # Only at a good end: it waits for the others, who may be gone after a bad one.
    dist.destroy_process_group()


@contextmanager
def _listening() -> Iterator[None]:
    """The first rank listens where the others find it, unless `torchrun` does; another program may have the port."""
    try:
        yield
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
        raise TrainError(
            f"port {port} of {address} is taken, maybe by another training; set MASTER_PORT to a free one for all ranks"
        ) from None
