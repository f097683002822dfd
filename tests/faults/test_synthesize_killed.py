"""A run killed at every point of the ledger and of the connection in turn: no paid answer is lost or bought twice."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from typing import TYPE_CHECKING

import pytest

from opsin.synthesize.endpoint import Endpoint
from opsin.synthesize.engine import Engine, most_noted
from opsin.synthesize.ledger import Ledger
from opsin.synthesize.workers import work_through
from tests.support.asking import request, with_engine
from tests.support.chat_endpoint import ChatEndpoint, Reply, refused
from tests.support.forks import KILLED, ended, fork

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.chat_endpoint import Asked

NUMBER = 12
CONCURRENCY = 3
MOST_POINTS = 2_000
DONE = 3


def buy_all(folder: Path, url: str) -> dict[str, str]:
    """The answers to all requests, as a run gets them."""
    answers = {}

    async def work(engine: Engine) -> None:
        async def make(number: int) -> None:
            answers[request(number).key] = (await engine.answer(request(number))).text

        await work_through(engine, range(NUMBER), make, workers=CONCURRENCY + 2)

    with_engine(folder, url, work, concurrency=CONCURRENCY)
    return answers


class Bomb:
    """Kills this process when a point is passed for the n-th time."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.passed = 0

    def tick(self) -> None:
        self.passed += 1
        if self.passed == self.at:
            os.kill(os.getpid(), signal.SIGKILL)

    def plant(self) -> None:
        """Before and after each transaction, in the middle of it, and around each request."""
        commit, ask = Ledger._commit, Endpoint.ask

        def committing(ledger: Ledger, rows: list) -> None:
            self.tick()
            ledger._connection.set_progress_handler(self.tick, 25)  # within the statements
            commit(ledger, rows)
            ledger._connection.set_progress_handler(None, 0)
            self.tick()

        async def asking(*arguments: object) -> object:
            self.tick()
            try:
                return await ask(*arguments)
            finally:
                self.tick()

        Ledger._commit = committing
        Endpoint.ask = asking


def run_with_a_bomb(folder: Path, url: str, at: int) -> int:
    bomb = Bomb(at)
    bomb.plant()
    buy_all(folder, url)
    return 0 if bomb.passed >= at else DONE


def expected() -> dict[str, str]:
    return {request(number).key: f"On picture {number}: yes." for number in range(NUMBER)}


def assert_recovers(folder: Path, endpoint: ChatEndpoint) -> int:
    """Run again to the end; returns how many requests have an unknown end."""
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        uncertain = {one.key for one in ledger.uncertain()}
        kept = {key for key in expected() if ledger.lookup(key)}
        before = len(endpoint.asked)
        unknown = [asked.key for asked in endpoint.asked if asked.key not in kept | uncertain]
        assert unknown == []  # nothing goes out before the ledger knows
        assert len(uncertain) == len(ledger.uncertain()) <= most_noted(CONCURRENCY)
    assert buy_all(folder, endpoint.url) == expected()
    again = endpoint.keys[before:]
    assert len(set(again)) == len(again)
    assert set(again) == expected().keys() - kept
    assert len(endpoint.asked) <= NUMBER + most_noted(CONCURRENCY)
    return len(uncertain)


@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.slow)], ids=["each third", "each"])
def test_killed_at_every_point(tmp_path: Path, step: int) -> None:
    uncertain = []
    for at in range(1, MOST_POINTS, step):
        folder = tmp_path / str(at)
        with ChatEndpoint(latency=0.001, idempotent=True) as endpoint:
            code = ended(fork(lambda: run_with_a_bomb(folder, endpoint.url, at)))  # noqa: B023 (it runs now)
            if code == DONE:
                break
            assert code == KILLED, f"point {at}"
            uncertain.append(assert_recovers(folder, endpoint))
            assert sorted(endpoint.charged) == sorted(expected())
        shutil.rmtree(folder)
    print(f"{len(uncertain)} kills, {sum(uncertain)} requests under way")  # noqa: T201
    assert code == DONE
    assert len(uncertain) >= 20
    assert max(uncertain) > 0


def faults(asked: Asked) -> Reply:
    return refused(503, "busy") if asked.number % 5 == 1 else Reply(delay=random.random() * 0.01)


@pytest.mark.slow
def test_killed_at_any_time_again_and_again(tmp_path: Path) -> None:
    draw = random.Random(0)
    for attempt in range(25):
        folder = tmp_path / str(attempt)
        kills = 0
        with ChatEndpoint(faults, idempotent=True) as endpoint:
            while True:
                pid = fork(lambda: 0 if buy_all(folder, endpoint.url) == expected() else 1)  # noqa: B023 (it runs now)
                time.sleep(draw.uniform(0.01, 0.2))
                os.kill(pid, signal.SIGKILL)
                code = ended(pid)
                assert code in (0, KILLED)
                if code == 0 or kills > 50:
                    break
                kills += 1
            assert buy_all(folder, endpoint.url) == expected()
            assert sorted(endpoint.charged) == sorted(expected())
            with Ledger.open(folder / "ledger.sqlite") as ledger:
                assert len(ledger.uncertain()) <= kills * most_noted(CONCURRENCY)
                assert ledger.totals.answered == NUMBER
