"""Processes forked from a test, which share what it has made and never go on as the test."""

from __future__ import annotations

import datetime as dt
import os
import signal
import time
import traceback
from typing import TYPE_CHECKING

import torch.distributed as dist

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KILLED = 137


def fork(work: Callable[[], int | None]) -> int:
    """Start a process that ends with what `work` returns, or with 1 and a traceback; returns its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        code = work() or 0
    except BaseException:  # noqa: BLE001 (a forked process must never go on as the test)
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(pid: int, seconds: float = 60) -> int:
    """How a process ends, as shells tell it; one that takes too long is killed, and the test fails."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f"process {pid} still ran after {seconds} s")


def joined_forks(store: Path, size: int, work: Callable[[int], int | None], *, timeout: float = 30) -> list[int]:
    """How `size` processes end that are joined by gloo, which waits `timeout` seconds for a rank."""

    def joined(rank: int) -> int | None:
        wait = dt.timedelta(seconds=timeout)
        file = dist.FileStore(str(store), size)
        dist.init_process_group("gloo", store=file, rank=rank, world_size=size, timeout=wait)
        return work(rank)

    pids = [fork(lambda rank=rank: joined(rank)) for rank in range(size)]  # type: ignore[misc]
    return [ended(pid) for pid in pids]
