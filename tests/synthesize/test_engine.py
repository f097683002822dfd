from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import TYPE_CHECKING

import pytest
from pydantic import ValidationError

from opsin.core.errors import BudgetError, StoppedError
from opsin.core.stop import Stop
from opsin.synthesize.engine import Engine, Facts
from opsin.synthesize.estimate import estimate, most_of
from opsin.synthesize.ledger import Ledger
from opsin.synthesize.request import Message, Shown, Usage
from opsin.synthesize.teacher_values import Limits, OpenAI, Price, Rules, misfits
from opsin.synthesize.workers import work_through
from tests.support.asking import ask, request, with_engine
from tests.support.chat_endpoint import ChatEndpoint, Reply, completion, refused

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PRICE = Price(input=1_000_000, output=1_000_000)  # a unit for each token


def test_work_is_drawn_only_when_there_is_a_worker_for_it(tmp_path: Path) -> None:
    drawn, done = 0, 0

    def items() -> Iterator[int]:
        nonlocal drawn
        for number in range(30):
            drawn += 1
            yield number

    async def work(engine: Engine) -> None:
        async def make(number: int) -> None:
            nonlocal done
            await engine.answer(request(number))
            done += 1
            assert drawn - done <= 4

        await work_through(engine, items(), make, workers=4)

    with ChatEndpoint() as endpoint:
        with_engine(tmp_path, endpoint.url, work)
    assert (drawn, done) == (30, 30)


def test_the_first_error_ends_the_work_when_those_under_way_are_done(tmp_path: Path) -> None:
    done = []

    async def work(engine: Engine) -> None:
        async def make(number: int) -> None:
            await engine.answer(request(number))
            done.append(number)

        await work_through(engine, range(100), make, workers=4)

    with ChatEndpoint(latency=0.01) as endpoint, pytest.raises(BudgetError, match="max_requests=10"):
        with_engine(tmp_path, endpoint.url, work, max_requests=10)
    assert len(done) == len(endpoint.asked) == 10


async def until_a_signal(engine: Engine, number: signal.Signals, grace_seconds: float) -> None:
    """Ask for much, and be told to end soon."""

    async def make(item: int) -> None:
        await engine.answer(request(item))

    asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), number)
    with Stop(b"") as stop:
        await work_through(engine, range(100), make, workers=8, stop=stop, grace_seconds=grace_seconds)
    assert stop.wanted == number


@pytest.mark.parametrize("latency", [0.2, 9.0], ids=["they land", "they do not"])
def test_a_signal_ends_the_work_in_good_order(tmp_path: Path, latency: float) -> None:
    """Nothing new is asked; what is under way has some time to land; what is known to be unknown is what was sent."""

    async def work(engine: Engine) -> None:
        await until_a_signal(engine, signal.SIGTERM, grace_seconds=1.0)
        with pytest.raises(StoppedError):
            await engine.answer(request(200))

    begun = time.monotonic()
    with ChatEndpoint(latency=latency) as endpoint:
        with_engine(tmp_path, endpoint.url, work, concurrency=4, timeout_seconds=20)
    assert time.monotonic() - begun < 5
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        kept = sum(ledger.lookup(key) is not None for key in endpoint.keys)
        uncertain = {one.key for one in ledger.uncertain()}
        assert (ledger.totals.requests, ledger.totals.failed) == (len(endpoint.asked), 0)
    if latency == 9.0:
        assert (kept, len(endpoint.asked)) == (0, 4)
        assert set(endpoint.keys) == uncertain
    else:
        assert kept == len(endpoint.asked) <= 8
        assert uncertain == set()


def test_the_facts_of_a_run(tmp_path: Path) -> None:
    async def work(engine: Engine) -> Facts:
        await asyncio.gather(*(engine.answer(request(number)) for number in range(5)))
        await engine.answer(request(0))
        return engine.facts()

    with ChatEndpoint([refused(500, "oops")]) as endpoint:
        ask(tmp_path, endpoint.url, [request("before")], price=PRICE)
        facts = with_engine(tmp_path, endpoint.url, work, price=PRICE)
    assert (facts.sent, facts.answered, facts.from_ledger, facts.failed) == (5, 5, 1, 0)
    assert (facts.in_flight, facts.waiting, facts.paused_for, facts.problem) == (0, 0, 0.0, "")
    assert (facts.used, facts.spent.cost) == (Usage(50, 25, 75.0), 90.0)
    assert facts.per_second > 0


def test_the_most_that_a_request_can_use() -> None:
    teacher = OpenAI(model="tiny", price=Price(input=2, output=10), tokens_per_picture=1000)
    shown = Shown(b"x" * 5000, "image/png")
    messages = (Message("system", "猫" * 10), Message("user", "cat", (shown, shown)))
    most = most_of(request(messages=messages), teacher)
    assert (most.prompt_tokens, most.answer_tokens) == (64 + 16 + 30 + 16 + 3 + 2000, 50)
    assert most.cost == pytest.approx((2129 * 2 + 50 * 10) / 1e6)


def test_an_estimate_knows_the_ledger_and_learns_from_it(tmp_path: Path) -> None:
    teacher = OpenAI(model="tiny", price=PRICE)
    limits = Limits(requests_per_minute=60, concurrency=1)
    requests = [request(f"{number:02}") for number in range(50)]
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        first = estimate([*requests, requests[0]], ledger, teacher, limits)
    assert (first.requests, first.in_ledger, first.to_buy) == (50, 0, 50)
    assert (first.most, first.seconds) == (Usage(50 * 90, 50 * 50, 50 * 140), 50)
    assert first.expected == Usage(50 * 27, 50 * 25, 50 * 52)
    with ChatEndpoint(latency=0.01) as endpoint:
        ask(tmp_path, endpoint.url, requests[:30], price=PRICE)
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        second = estimate(requests, ledger, teacher, Limits(concurrency=1))
    assert (second.in_ledger, second.to_buy) == (30, 20)
    assert second.expected == Usage(20 * 10, 20 * 5, 20 * 15)  # as the endpoint counted for others of that size
    assert second.seconds is not None
    assert 0.2 < second.seconds < 10


def test_pictures_go_in_front_of_the_text(tmp_path: Path) -> None:
    messages = (Message("user", "what is it?", (Shown(b"\x89PNG", "image/png"),)),)
    with ChatEndpoint() as endpoint:
        ask(tmp_path, endpoint.url, [request(messages=messages)])
    assert endpoint.asked[0].body["messages"] == [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw=="}},
                {"type": "text", "text": "what is it?"},
            ],
        }
    ]


def test_no_budget_without_a_price(tmp_path: Path) -> None:
    with ChatEndpoint() as endpoint, pytest.raises(BudgetError, match="what a request costs is not known; give `price"):
        ask(tmp_path, endpoint.url, [request()], max_cost=1.0)
    assert endpoint.asked == []
    assert list(misfits(Rules(), Limits(max_cost=1.0))) == []


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"base_url": "localhost:8000"}, "expected an address such as https://host/v1"),
        ({"base_url": "https://me:secret@host/v1"}, "an address has no name, password or query"),
        ({"extra_body": {"model": "x", "n": 2}}, "cannot set model, n"),
        ({"modell": "x"}, "Extra inputs"),
        ({"price": {"input": -1, "output": 1}}, "greater than or equal to 0"),
    ],
)
def test_values_that_are_refused(fields: dict[str, object], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        OpenAI.model_validate({"model": "tiny", **fields})


def test_requests_that_a_signal_kept_back_are_not_counted(tmp_path: Path) -> None:
    """Each run is ended while some requests are noted and wait for a slot; the budget of requests is for sent ones."""

    async def work(engine: Engine) -> None:
        await until_a_signal(engine, signal.SIGINT, grace_seconds=1.0)

    with ChatEndpoint(latency=0.15) as endpoint:
        for _ in range(3):
            with_engine(tmp_path, endpoint.url, work, concurrency=2, max_requests=100)
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        assert (ledger.totals.requests, ledger.totals.failed) == (len(endpoint.asked), 0)
        assert ledger.uncertain() == []


def test_a_bill_over_max_tokens_is_learned_before_others_are_sent(tmp_path: Path) -> None:
    """An endpoint that bills hidden reasoning: 400 answer tokens where 50 are allowed."""
    reply = Reply(body=completion("On it: yes.", usage={"prompt_tokens": 10, "completion_tokens": 400}))
    with ChatEndpoint([reply] * 50) as endpoint:
        requests = [request(f"{number:02}") for number in range(50)]
        answers = ask(tmp_path, endpoint.url, requests, price=PRICE, max_cost=3000)
        ask(tmp_path, endpoint.url, requests, price=PRICE, max_cost=3200)  # another run has learned it, too
    assert len(endpoint.asked) == 7  # of 410 each, though 21 of 140 would have been
    told = "2,870.0000 of max_cost=3,000.0000 USD are spent in this directory, and the next request may cost 410.0000"
    errors = {str(answer) for answer in answers if isinstance(answer, BudgetError)}
    assert errors == {
        f"{told} (bills here were up to 270.0000 over what max_tokens allows); raise max_cost to go on from here"
    }


def test_a_lost_answer_is_booked_with_what_bills_were_over_max_tokens(tmp_path: Path) -> None:
    dear = Reply(body=completion("On it: yes.", usage={"prompt_tokens": 10, "completion_tokens": 400}))
    lost = Reply(body=dear.body, cut=200)  # read in part: nothing tells what it has cost
    with ChatEndpoint([dear, lost, dear]) as endpoint:
        ask(tmp_path, endpoint.url, [request(0)], price=PRICE, max_cost=9000)
        ask(tmp_path, endpoint.url, [request(1)], price=PRICE, max_cost=9000)
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        assert (ledger.totals.failed, ledger.totals.spent.cost) == (1, 3 * 410)


def test_a_request_that_is_cancelled_leaves_no_more_for_others_than_the_next_run_would(tmp_path: Path) -> None:
    dear = Reply(body=completion("On it: yes.", usage={"prompt_tokens": 10, "completion_tokens": 400}))

    async def work(engine: Engine) -> None:
        await engine.answer(request(0))
        cancelled = asyncio.create_task(engine.answer(request(1)))
        async with asyncio.timeout(20):
            while len(endpoint.asked) < 2:
                await asyncio.sleep(0.01)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        with pytest.raises(BudgetError, match=r"820\.0000 of max_cost=1,000\.0000"):
            await engine.answer(request(2))

    with ChatEndpoint([dear, Reply(delay=5)]) as endpoint:
        with_engine(tmp_path, endpoint.url, work, price=PRICE, max_cost=1000, timeout_seconds=20)
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        assert ledger.totals.spent.cost == 820


def test_slow_requests_do_not_keep_others_from_their_slots(tmp_path: Path) -> None:
    with ChatEndpoint([Reply(delay=1.5)]) as endpoint:
        begun = time.monotonic()
        ask(tmp_path, endpoint.url, [request(number) for number in range(30)], concurrency=2)
        times = [asked.at - begun for asked in endpoint.asked]
    assert max(times) < 1.4
