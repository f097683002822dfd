from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from opsin.core.stop import NOTICE, Stop

WAIT = """
import signal, sys, time
from opsin.core.stop import Stop
with Stop() as stop:
    print("ready", flush=True)
    while stop.wanted is None or "again" in sys.argv:
        time.sleep(0.01)
print("saved", flush=True)
sys.exit(stop.exit_code)
"""


def waiting(*arguments: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", WAIT, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_a_signal_is_remembered_and_the_run_ends_in_good_order(number: int, code: int) -> None:
    process = waiting()
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (code, b"saved\n", NOTICE)


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_after_a_signal_leaves_at_once(first: int) -> None:
    process = waiting("again")
    process.send_signal(first)
    assert process.stderr is not None
    assert process.stderr.read(len(NOTICE)) == NOTICE
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (130, b"", b"")


def test_a_scheduler_may_ask_more_than_once(capfd: pytest.CaptureFixture[str]) -> None:
    with Stop() as stop:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert stop.wanted == signal.SIGUSR1
    assert capfd.readouterr().err.encode() == NOTICE


def test_the_handlers_from_before_come_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    with Stop() as stop:
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before
    assert (stop.wanted, stop.exit_code) == (None, None)


def test_in_another_thread_nothing_is_installed() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def work() -> object:
        with Stop():
            return signal.getsignal(signal.SIGTERM)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(work).result() == before


def test_a_forked_worker_still_ends_by_a_signal() -> None:
    with Stop() as stop:
        pid = os.fork()
        if pid == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGTERM
    assert stop.wanted is None
