from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from opsin.core.errors import TrainError
from opsin.core.lock import LOCK, RunLock

if TYPE_CHECKING:
    from pathlib import Path

HOLD = """
import sys
from pathlib import Path
from opsin.core.lock import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def holding(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    with process:
        process.kill()


def test_a_second_run_is_refused_and_told_who_holds_the_directory(tmp_path: Path) -> None:
    process = holding(tmp_path)
    try:
        since = json.loads((tmp_path / LOCK).read_text(encoding="utf-8"))["since"]
        with pytest.raises(TrainError) as caught, RunLock(tmp_path):
            pass
        assert str(caught.value) == (
            f"{tmp_path}: in use by process {process.pid} on {socket.gethostname()}, since {since}; wait for it or end "
            "it, or choose another directory"
        )
    finally:
        end(process)


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    process = holding(tmp_path)
    process.send_signal(signal.SIGKILL)
    end(process)
    assert json.loads((tmp_path / LOCK).read_text(encoding="utf-8"))["pid"] == process.pid
    with RunLock(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text(encoding="utf-8"))["pid"] == os.getpid()


def test_workers_that_outlive_a_killed_holder_are_waited_for(tmp_path: Path) -> None:
    started, start = os.pipe()
    pid = os.fork()
    if pid == 0:
        RunLock(tmp_path).__enter__()
        if os.fork() == 0:  # a worker, which shares the lock
            signal.signal(signal.SIGALRM, signal.SIG_DFL)  # it ends by this signal
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            os.write(start, b".")
            signal.pause()
        os.read(started, 1)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    with pytest.raises(BlockingIOError), (tmp_path / LOCK).open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with RunLock(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text(encoding="utf-8"))["pid"] == os.getpid()
    for descriptor in (started, start):
        os.close(descriptor)


def test_workers_that_do_not_end_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opsin.core.lock.GRACE_SECONDS", 0.1)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with RunLock(tmp_path):
        holder = {"pid": gone.pid, "host": socket.gethostname(), "since": "then"}
        (tmp_path / LOCK).write_text(json.dumps(holder), encoding="utf-8")
        with pytest.raises(TrainError, match=rf"worker processes of process {gone.pid} on .* still run though it is"):
            RunLock(tmp_path).__enter__()


def test_a_directory_is_free_again_after_its_run_also_for_the_run_itself(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(KeyError), RunLock(tmp_path / "new"):
            raise KeyError
    assert (tmp_path / "new" / LOCK).read_bytes() == b""


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"pid": "x"}', b"\xff\xfe"])
def test_a_damaged_lock_file_names_nobody_and_is_taken_over(tmp_path: Path, content: bytes) -> None:
    with RunLock(tmp_path):
        (tmp_path / LOCK).write_bytes(content)
        with pytest.raises(TrainError, match="in use by"):
            RunLock(tmp_path).__enter__()
    (tmp_path / LOCK).write_bytes(content)
    with RunLock(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text(encoding="utf-8"))["pid"] == os.getpid()


def test_a_file_system_without_locks_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(_descriptor: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.raises(TrainError, match=r"\.lock: its file system cannot lock files \(No locks available\)"):
        RunLock(tmp_path).__enter__()


def test_a_directory_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrainError, match=r"\.lock: cannot be written \(Not a directory\)"):
        RunLock(tmp_path / "file" / "run").__enter__()
