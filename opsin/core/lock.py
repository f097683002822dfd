"""One process to a run directory: a lock that the system lets go of when its holder ends, however it ends."""

from __future__ import annotations

import datetime as dt
import fcntl
import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from opsin.core.errors import TrainError

LOCK = ".lock"
GRACE_SECONDS = 10.0
"""How long to wait for the worker processes of a dead holder, which end soon after it and hold the lock until then."""


class RunLock:
    """Holds a directory while inside; the file in it says who does. A file without its process is taken over."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self._descriptor: int | None = None

    def __enter__(self) -> RunLock:
        """Take the lock.

        Raises:
            TrainError: another process holds it (named), or the directory or its file system does not allow it.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise self._unusable(error) from None
        try:
            self._lock(descriptor)
            holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": _now()}
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        except BaseException as error:  # whatever it is: nobody else would close the file
            os.close(descriptor)
            if isinstance(error, OSError):
                raise self._unusable(error) from None
            raise
        self._descriptor = descriptor
        return self

    def _unusable(self, error: OSError) -> TrainError:
        return TrainError(f"{self.path}: cannot be written ({error.strerror}); choose another directory")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of it. The file stays, empty: whoever opened it just now would lock a file that is gone."""
        if self._descriptor is not None:
            with suppress(OSError):  # the lock is what counts
                os.ftruncate(self._descriptor, 0)
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)  # also for the workers, which share it
            os.close(self._descriptor)
            self._descriptor = None

    def _lock(self, descriptor: int) -> None:
        deadline = time.monotonic() + GRACE_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = _holder(descriptor)
                if not _is_gone(holder) or time.monotonic() > deadline:
                    raise TrainError(self._told(holder)) from None
                time.sleep(0.05)
            except OSError as error:
                raise TrainError(
                    f"{self.path}: its file system cannot lock files ({error.strerror}), so nothing would keep two "
                    "runs apart; choose a directory on another file system, or have it mounted with locks"
                ) from None
            else:
                return

    def _told(self, holder: dict[str, Any]) -> str:
        if not holder:
            return f"{self.path.parent}: in use by another process; wait for it, or choose another directory"
        who = f"process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')}"
        if _is_gone(holder):
            return f"{self.path.parent}: worker processes of {who}, still run though it is dead; end them"
        return f"{self.path.parent}: in use by {who}; wait for it or end it, or choose another directory"


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


def _holder(descriptor: int) -> dict[str, Any]:
    """What the file says; nothing while its holder is writing it."""
    try:
        value = json.loads(os.pread(descriptor, 10_000, 0))
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _is_gone(holder: dict[str, Any]) -> bool:
    """The holder was a process of this machine and is dead."""
    pid = holder.get("pid")
    if holder.get("host") != socket.gethostname() or not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False  # it is another user's
    return False
