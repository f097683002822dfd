"""A process that makes batches, and how a batch gets out of it: its tensors in memory that both processes see.

Each worker has a pipe of its own, over which the loader asks for packs by number. A batch comes back as a few kilobytes
of facts and the descriptor of a file in memory that holds the bytes of all tensors, which the loader maps. So a message
is whole as soon as it is sent: a worker that is then stopped or killed cannot hold the loader up. The file has no name:
nothing outlives the processes, or depends on how much of /dev/shm a container is given.
"""

from __future__ import annotations

import gc
import mmap
import os
import signal
import traceback
from dataclasses import dataclass, fields
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from opsin.core.errors import LoaderError, OpsinError
from opsin.core.processes import end_with_parent
from opsin.core.types import Batch, Example
from opsin.data.collate import TENSORS, Features, collate
from opsin.data.example import Preparation

STAGES = ("reading", "decoding")


class Examples(Protocol):
    """What gives examples."""

    def __getitem__(self, sample: Any, /) -> Example:
        """Read and render a sample; it may raise."""
        ...


class Place(NamedTuple):
    """A sample of a pack, and what is being done with it."""

    pack: int
    position: int
    stage: int


class Asked(NamedTuple):
    """A pack that is to be made: its number, and every sample's name and what the examples are asked for it by."""

    number: int
    samples: tuple[tuple[str, Any], ...]


class Held:
    """The place a process is at, in memory that its parent sees; one word, so that it is never seen half written."""

    def __init__(self) -> None:
        self._word = np.frombuffer(mmap.mmap(-1, 8), dtype=np.int64)

    def set(self, place: Place | None) -> None:
        """Take up a sample, or none."""
        self._word[0] = 0 if place is None else (place.pack + 1) << 32 | place.position << 1 | place.stage

    def get(self) -> Place | None:
        """The sample taken up last; None before the first and between two packs."""
        word = int(self._word[0])
        return None if word == 0 else Place((word >> 32) - 1, word >> 1 & 0x7FFFFFFF, word & 1)


@dataclass(frozen=True)
class Maker:
    """Makes the batch of a pack: the same in a worker and in the process itself. `skip_bad` is that of `collate`."""

    examples: Examples
    preparation: Preparation
    features: Features | None
    skip_bad: bool

    def batch(self, asked: Asked, held: Held) -> Batch:
        """The batch of a pack, with every sample noted in `held` before it is touched.

        Raises:
            OpsinError: a sample cannot be read or decoded; a `LoaderError`, with the traceback in its notes, where
                the error is not one of opsin's own.
        """
        try:
            examples = []
            for position, (_, sample) in enumerate(asked.samples):
                held.set(Place(asked.number, position, stage=0))
                examples.append(self.examples[sample])
            return collate(
                examples,
                self.preparation,
                self.features,
                opening=lambda position: held.set(Place(asked.number, position, stage=1)),
                skip_bad=self.skip_bad,
            )
        except OpsinError:
            raise
        except Exception as error:  # anything a sample can cause, and the sample is what the user needs to know
            foreign = LoaderError(f"{at(held, asked)}: {type(error).__name__}: {error}")
            foreign.add_note("".join(traceback.format_exception(error)))
            raise foreign from error


def at(held: Held, asked: Asked | None) -> str:
    """The sample of a pack that is held, in words."""
    place = held.get()
    if place is None or asked is None:
        return "between two packs"
    count, (name, _) = len(asked.samples), asked.samples[place.position]
    return f"{STAGES[place.stage]} {name}, sample {place.position + 1} of the {count} of its pack"


def work(maker: Maker, connection: Connection, held: Held) -> None:
    """Make the packs that are asked for, for as long as the parent lives; the main function of a worker process."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # what the parent does before it ends is not the worker's to do
    gc.freeze()  # the parent clears up what it left behind; here that would also copy the memory it is in
    torch.set_num_threads(1)
    end_with_parent()
    while True:
        held.set(None)
        asked = connection.recv()
        try:
            batch = maker.batch(asked, held)
            held.set(None)
            send(connection, batch)
        except OpsinError as error:
            connection.send(error)
        except (OSError, MemoryError, AttributeError) as error:
            names = ", ".join(name for name, _ in asked.samples)
            connection.send(
                LoaderError(
                    f"the batch of {names} cannot be handed over ({type(error).__name__}: {error}); workers need Linux "
                    "and memory for some batches each: use fewer of them, smaller packs, or workers: 0"
                )
            )


def send(connection: Connection, batch: Batch) -> None:
    """Hand a batch to the process at the other end."""
    arrays = {name: tensor.numpy() for name in TENSORS if (tensor := getattr(batch, name)) is not None}
    facts = {field.name: getattr(batch, field.name) for field in fields(Batch) if field.name not in arrays}
    with os.fdopen(os.memfd_create("batch"), "wb") as memory:
        for array in arrays.values():  # the pixels last, so that the integers before them are aligned
            memory.write(np.ascontiguousarray(array).data)
        if not memory.tell():  # of a batch without documents: no memory of zero bytes can be mapped
            memory.write(b"\0")
        memory.flush()
        connection.send((facts, [(name, array.dtype.str, array.shape) for name, array in arrays.items()]))
        send_handle(connection, memory.fileno(), None)


def receive(connection: Connection) -> Batch | OpsinError:
    """What a worker made of a pack.

    Raises:
        EOFError, ConnectionError: the worker is dead.
    """
    message = connection.recv()
    if isinstance(message, OpsinError):
        return message
    facts, shapes = message
    descriptor = recv_handle(connection)
    memory = mmap.mmap(descriptor, 0)
    os.close(descriptor)
    offset = 0
    for name, dtype, shape in shapes:
        array = np.ndarray(shape, dtype, memory, offset)
        facts[name] = torch.from_numpy(array)
        offset += array.nbytes
    return Batch(**facts)
