"""The loader: the batches of a plan's packs, in order, made ahead of time by worker processes.

Worker w of n makes packs w, w + n, w + 2n, ... Not torch's DataLoader: that reports a killed worker by an exception in
whatever the main thread is doing, without the sample; it waits for good for tensors of a worker that is stopped; and it
draws from the global random state, so that dropout would depend on the number of workers.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from types import TracebackType
from typing import Any, Self

from opsin.core.errors import LoaderError, OpsinError
from opsin.core.types import Batch
from opsin.data.collate import Features
from opsin.data.example import Preparation
from opsin.data.plan import Pack
from opsin.data.worker import Asked, Examples, Held, Maker, Place, at, receive, work

AHEAD = 2
"""Batches that each worker makes before they are asked for."""

GRACE = 1.0
"""Seconds to wait for a killed process to be gone; the system may keep one that waits for a disk or a network."""


@dataclass(frozen=True)
class _Worker:
    number: int
    process: ForkProcess
    connection: Connection
    held: Held

    def __str__(self) -> str:
        return f"worker {self.number} (process {self.process.pid})"


class Loader(Iterator[Batch]):
    """The batches of some packs, in their order, whatever the number of workers and however fast each of them is.

    The position of a run is the number of batches taken: a loader of `packs[k:]` goes on where another had given k.

    - `examples[i]` is what a pack's index i stands for. It may read a file, and raise; every worker has a copy of its
      own, made by forking, and what it keeps open must stand that.
    - `workers`: 0 makes every batch when it is asked for, in the process itself. So does `features`, whatever the
      number of workers is: with cached features there is nothing to decode.
    - `timeout`: seconds that a worker may take for one sample before it counts as hung; only workers are watched
    - `name_of`: names a sample by its index in messages. It must not open the sample, which may be what hangs.
    - `pick`: what `examples` are asked by for a sample's index, by default the index itself. A corpus that grows while
      it is planned gives all that a worker has to know of a sample
    - `skip_bad`: leave out samples with a medium that is damaged; a batch names its own, and can be without documents

    Workers start with the loader and end with `close`, with the last batch, with an error, or with the loader itself.
    """

    def __init__(
        self,
        examples: Examples,
        preparation: Preparation,
        packs: Sequence[Pack],
        *,
        workers: int = 0,
        timeout: float = 120.0,
        features: Features | None = None,
        name_of: Callable[[int], str] = "sample number {}".format,
        pick: Callable[[int], Any] = int,
        skip_bad: bool = False,
    ) -> None:
        self._maker = Maker(examples, preparation, features, skip_bad)
        self._packs = packs
        self._name_of, self._pick = name_of, pick
        self._asked: dict[int, Asked] = {}
        self._timeout = timeout
        self._taken = 0
        self._held = Held()
        self._workers: list[_Worker] = []
        self._end = weakref.finalize(self, _end, self._workers)
        for number in range(min(workers, len(packs)) if features is None else 0):
            self._workers.append(_started(number, self._maker))
        for number in range(min(AHEAD * len(self._workers), len(packs))):
            self._ask(number)

    def __next__(self) -> Batch:
        """The next pack's batch.

        Raises:
            OpsinError: a sample cannot be read or decoded; the same error for any number of workers.
            LoaderError: a worker was killed or hangs, or met an error that is not one of opsin's own; with the sample.
        """
        if self._taken == len(self._packs):
            self.close()
            raise StopIteration
        if not self._end.alive:
            raise LoaderError("the loader was closed, by an error or by its user; make another one to go on")
        try:
            if self._workers:
                batch = self._received(self._taken)
            else:
                batch = self._maker.batch(self._question(self._taken), self._held)
        except BaseException:  # Ctrl-C too: no worker is left, whatever ends the run
            self.close()
            raise
        self._taken += 1
        return batch

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the workers; batches already given stay valid."""
        self._end()

    def _question(self, number: int) -> Asked:
        samples = self._packs[number].samples
        return Asked(number, tuple((self._name_of(sample), self._pick(sample)) for sample in samples))

    def _ask(self, number: int) -> None:
        self._asked[number] = self._question(number)
        with contextlib.suppress(ConnectionError):  # of a dead worker: told when its next batch is due
            self._workers[number % len(self._workers)].connection.send(self._asked[number])

    def _at(self, worker: _Worker) -> str:
        place = worker.held.get()
        return at(worker.held, self._asked.get(place.pack) if place is not None else None)

    def _received(self, number: int) -> Batch:
        worker = self._workers[number % len(self._workers)]
        self._await(worker)
        try:
            made = receive(worker.connection)
        except (EOFError, ConnectionError):
            raise self._dead(worker) from None
        del self._asked[number]
        if isinstance(made, OpsinError):
            raise made
        if number + AHEAD * len(self._workers) < len(self._packs):
            self._ask(number + AHEAD * len(self._workers))
        return made

    def _await(self, worker: _Worker) -> None:
        """Wait for a message, or for the end of the process; as long as the worker gets from sample to sample."""
        held: Place | None = worker.held.get()
        while not wait([worker.connection, worker.process.sentinel], self._timeout):
            if held == (held := worker.held.get()):
                raise LoaderError(
                    f"{worker} hangs: {self._timeout:g} seconds {self._at(worker)}; look whether its file "
                    "can be read (a network drive?), leave the sample out, or raise worker_timeout if it only is slow"
                )

    def _dead(self, worker: _Worker) -> LoaderError:
        worker.process.join()
        status = worker.process.exitcode or 0
        if status == -signal.SIGKILL:
            how = "was killed (signal 9: often a lack of memory)"
        elif status < 0:
            how = f"was killed (signal {-status}: {signal.strsignal(-status)})"
        else:
            how = f"ended with status {status}"
        return LoaderError(
            f"{worker} {how} while {self._at(worker)}; try fewer workers if memory is short, and the sample "
            "alone (workers: 0) if it always dies there"
        )


def _started(number: int, maker: Maker) -> _Worker:
    context = multiprocessing.get_context("fork")  # examples and plan are there, at no cost
    ours, theirs = context.Pipe()
    held = Held()
    process = context.Process(target=work, args=(maker, theirs, held), name=f"loader-{number}", daemon=True)
    # Ctrl-C reaches the whole group, but only the loader acts on it: a process is born with its parent's mask.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    theirs.close()
    return _Worker(number, process, ours, held)


def _end(workers: list[_Worker]) -> None:
    """A worker has nothing to save, so it is not asked: one that hangs would not answer."""
    for worker in workers:
        worker.process.kill()
    for worker in workers:
        worker.process.join(GRACE)
        worker.connection.close()
        if worker.process.exitcode is not None:
            worker.process.close()
    workers.clear()
