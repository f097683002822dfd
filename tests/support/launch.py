"""Processes that train together, as torchrun would start them, but forked from one that has imported torch already.

They are not forked from the tests: what those have run by then (pools of threads, stores, media libraries) does not
survive a fork well, and a rank that dies of it tells nothing of what is tested.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import socket
import time
import traceback
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed import TCPStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

SECONDS = 120.0
HOST = "127.0.0.1"
PRELOADED = [
    "pytest",
    "peft",
    "opsin.train.run",
    "opsin.checkpoint.load",
    "tests.support.models",
    "tests.support.tokenizers",
]


def meet() -> None:
    """Go to the next store; called by all ranks before they meet."""
    os.environ["MASTER_PORT"], _, os.environ["PORTS"] = os.environ["PORTS"].partition(",")


def _run(environment: dict[str, str], work: Callable[..., Any], args: tuple[Any, ...], answer: Connection) -> None:
    faulthandler.enable()
    warnings.simplefilter("error")
    for tolerated in (DeprecationWarning, FutureWarning):
        warnings.simplefilter("ignore", tolerated)
    os.environ.clear()
    os.environ |= environment
    torch.set_num_threads(1)  # the ranks share the cores
    try:
        answer.send((True, work(*args)))
    except BaseException as error:  # noqa: BLE001 (whatever it is, the parent is told)
        answer.send((False, f"{type(error).__name__}: {error}\n{traceback.format_exc()}"))
        os._exit(1)
    os._exit(0)


def launched(
    size: int, work: Callable[..., Any], *args: Any, seconds: float = SECONDS, meetings: int = 1
) -> list[tuple[bool, Any]]:
    """Call `work(*args)` on `size` ranks; for each, whether it ended well, and what it gave or why not.

    Work and arguments are pickled: a function of a module. What a test has patched does not reach the ranks, but for
    the environment. They `meet` as often as is said, every time at a store of its own. A rank that died without a
    word, or took longer than `seconds`, has ended badly, with how it ended.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    # As torchrun does, the launcher keeps the stores: no rank takes a port that another process may have taken by then.
    listeners = [socket.create_server((HOST, 0)) for _ in range(meetings)]
    ports = [listener.getsockname()[1] for listener in listeners]
    stores = [
        TCPStore(HOST, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())
        for port, listener in zip(ports, listeners, strict=True)
    ]
    shared = dict(os.environ) | {"MASTER_ADDR": HOST, "TORCHELASTIC_USE_AGENT_STORE": "True"}
    shared |= {"WORLD_SIZE": f"{size}", "LOCAL_WORLD_SIZE": f"{size}", "PORTS": ",".join(map(str, ports))}
    ends: list[Connection] = []
    processes = []
    for rank in range(size):
        mine, theirs = context.Pipe(duplex=False)
        environment = shared | {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}"}
        process = context.Process(target=_run, args=(environment, work, args, theirs))
        process.start()
        theirs.close()
        ends.append(mine)
        processes.append(process)
    deadline = time.monotonic() + seconds
    answers = []
    for end, process in zip(ends, processes, strict=True):
        answer = None
        try:
            if end.poll(max(0.0, deadline - time.monotonic())):
                answer = end.recv()
        except EOFError:
            pass  # it is dead: how it died is told below
        process.join(max(0.0, deadline - time.monotonic()))
        told = "a rank ended without a word"
        if process.is_alive():
            told = f"a rank took longer than {seconds:g} seconds"
            os.kill(process.pid or 0, signal.SIGKILL)
            process.join()
        answers.append(answer or (False, f"{told}, with exit code {process.exitcode}"))
    del stores  # they were needed until here
    return answers


def together(size: int, work: Callable[..., Any], *args: Any, seconds: float = SECONDS, meetings: int = 1) -> list[Any]:
    """What each rank gave; all must have ended well."""
    answers = launched(size, work, *args, seconds=seconds, meetings=meetings)
    assert all(good for good, _ in answers), "\n".join(str(value) for good, value in answers if not good)
    return [value for _, value in answers]
