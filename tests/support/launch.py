"""Processes that train together, as torchrun would start them, but forked: they need not import torch again."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
import traceback
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed import TCPStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

SECONDS = 120.0
HOST = "127.0.0.1"
MEETINGS = 16
"""How often the processes of one launch can meet: every time at a store of its own."""


def meet() -> None:
    """Go to the next store; called by all ranks before they meet."""
    os.environ["MASTER_PORT"], _, os.environ["PORTS"] = os.environ["PORTS"].partition(",")


def _run(rank: int, size: int, ports: str, work: Callable[..., Any], args: tuple[Any, ...], answer: Connection) -> None:
    torch.set_num_threads(1)  # the parent's pool of threads did not come along
    named = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "PORTS": ports}
    # As torchrun does, the launcher keeps the stores: no rank takes a port that another process may have taken by then.
    fixed = {"MASTER_ADDR": HOST, "TORCHELASTIC_USE_AGENT_STORE": "True"}
    os.environ |= {name: str(value) for name, value in named.items()} | fixed
    try:
        answer.send((True, work(*args)))
    except BaseException as error:  # noqa: BLE001 (whatever it is, the parent is told)
        answer.send((False, f"{type(error).__name__}: {error}\n{traceback.format_exc()}"))
        os._exit(1)
    os._exit(0)


def launched(size: int, work: Callable[..., Any], *args: Any, seconds: float = SECONDS) -> list[tuple[bool, Any]]:
    """Call `work(*args)` on `size` ranks; for each, whether it ended well, and what it gave or why not.

    A rank that was killed, or took longer than `seconds`, has ended badly, with None.
    """
    context = multiprocessing.get_context("fork")
    listeners = [socket.create_server((HOST, 0)) for _ in range(MEETINGS)]
    ports = [listener.getsockname()[1] for listener in listeners]
    ends: list[Connection] = []
    processes = []
    for rank in range(size):
        mine, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_run, args=(rank, size, ",".join(map(str, ports)), work, args, theirs))
        process.start()
        theirs.close()
        ends.append(mine)
        processes.append(process)
    # Not before: a process with threads, as a store's, should not fork.
    stores = [
        TCPStore(HOST, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())
        for port, listener in zip(ports, listeners, strict=True)
    ]
    deadline = time.monotonic() + seconds
    answers: list[tuple[bool, Any]] = []
    for end, process in zip(ends, processes, strict=True):
        try:
            answers.append(end.recv() if end.poll(max(0.0, deadline - time.monotonic())) else (False, None))
        except EOFError:
            answers.append((False, None))
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            os.kill(process.pid or 0, signal.SIGKILL)
            process.join()
    del stores  # they were needed until here
    return answers


def together(size: int, work: Callable[..., Any], *args: Any, seconds: float = SECONDS) -> list[Any]:
    """What each rank gave; all must have ended well."""
    answers = launched(size, work, *args, seconds=seconds)
    assert all(good for good, _ in answers), "\n".join(str(value) for good, value in answers if not good)
    return [value for _, value in answers]
